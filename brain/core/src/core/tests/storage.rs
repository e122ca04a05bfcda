//! Disks that only a VM's host has.

use gnomon_common::wire::{Action, Command, Copied, Immovable, LocalStorage, MigrationFacts, Moved, OutcomeResult};

use super::bench::{Bench, facts, host, policy, report_of, vm};
use super::{Input, at};
use crate::io::Output;
use crate::policy::{MigratePolicy, Mode, Policy};

const GIB: u64 = 1 << 30;

/// Four VMs of nearly a core each, on a host of four.
const FULL: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];

fn local(own_gib: u64, image_gib: u64) -> Option<LocalStorage> {
    Some(LocalStorage { own_bytes: own_gib * GIB, image_bytes: image_gib * GIB })
}

/// Hosts whose agents copy 10 GiB of a VM's disks.
fn bench(copy_storage: bool) -> Bench {
    let migrate =
        MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, copy_storage, ..MigratePolicy::default() };
    let mut bench = Bench::new(Policy { migrate, ..policy(Mode::Auto) });
    for name in ["a", "b"] {
        let migration = Some(MigrationFacts { uri: "test:///default".to_owned(), copy_bytes_max: 10 * GIB });
        let facts = gnomon_common::wire::HostFacts { migration, ..facts() };
        bench.core.handle(at(0), Input::HostUp { host: host(name), facts });
    }
    bench.take();
    bench
}

/// Three windows in which the first host is too full; the moves that are commanded.
fn moves(bench: &mut Bench, storage: [Option<LocalStorage>; 4]) -> Vec<Command> {
    let mut commands = Vec::new();
    for second in [0, 10, 20] {
        bench.report_on("b", second, &[], Some(1.0));
        let mut report = report_of("a", second, &FULL, Some(1.0));
        report.vms.iter_mut().zip(storage).for_each(|(window, storage)| window.storage = storage);
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        commands.extend(bench.commands_by_the_rules());
    }
    commands.retain(|command| matches!(command.action, Action::Migrate(_)));
    commands
}

#[test]
fn disks_on_one_host_keep_a_vm_there_unless_policy_and_its_agent_let_them_be_copied() {
    assert!(moves(&mut bench(false), [local(1, 0); 4]).is_empty());
    assert!(moves(&mut bench(true), [local(11, 0); 4]).is_empty());
    let refusal = |copy_storage, storage| {
        let mut bench = bench(copy_storage);
        moves(&mut bench, [storage; 4]);
        bench.core.may_migrate(vm(4), &host("b")).err().map(|refusal| refusal.to_string()).unwrap_or_default()
    };
    assert!(
        refusal(false, local(1, 0)).contains("policy.migrate.copy_storage is false"),
        "{}",
        refusal(false, local(1, 0))
    );
    assert!(refusal(true, local(11, 0)).contains("migration.copy_bytes_max"), "{}", refusal(true, local(11, 0)));

    let mut bench = bench(true);
    let moves = moves(&mut bench, [local(1, 2); 4]);
    assert_eq!(moves.len(), 1);
    let Action::Migrate(migration) = &moves[0].action else { panic!("{moves:?}") };
    // 3 GiB at 100 MB/s take 32 s, and twice that is granted.
    assert!(migration.copy_storage && (660_000..668_000).contains(&migration.timeout_ms), "{migration:?}");
    assert!(
        moves[0].reason.ends_with("4096 MiB have to travel, 3072 MiB of them from its disks"),
        "{}",
        moves[0].reason
    );
    let told = bench.core.explain(vm(4)).unwrap().lines.join(" ");
    assert!(told.contains("1024 MiB in its own files and 2048 MiB in images below these: they are copied"), "{told}");
}

#[test]
fn a_vm_whose_disks_are_shared_goes_before_one_whose_disks_have_to_be_copied() {
    let moves = moves(&mut bench(true), [local(2, 0), local(1, 0), None, local(3, 0)]);
    assert_eq!(moves[0].vm, vm(3));
    assert!(!moves[0].reason.contains("disks"), "{}", moves[0].reason);
}

#[test]
fn files_that_are_left_are_told() {
    let mut bench = bench(true);
    let id = moves(&mut bench, [local(1, 0); 4])[0].id;
    let copied = Copied { bytes: Some(GIB), is_layered: false, left: vec!["/srv/a.qcow2".to_owned()] };
    let moved = Moved { took_us: 2_000_000, copied: Some(copied), ..Moved::default() };
    bench.outcome_of(vm(1), 35, id, OutcomeResult::Moved(moved));
    let told = bench.take().into_iter().find_map(|output| match output {
        Output::Notice(notice) if notice.kind == "disks_left" => Some(notice.text),
        _ => None,
    });
    let told = told.unwrap();
    assert!(told.contains("on host a are left /srv/a.qcow2"), "{told}");
}

#[test]
fn a_target_without_a_place_for_its_disks_is_left_alone_and_another_one_is_not() {
    for (why, stays) in [
        (Immovable::NoPlace("no storage pool".to_owned()), false),
        (Immovable::Storage("vda (/srv/a)".to_owned()), true),
    ] {
        let mut bench = bench(true);
        let facts = gnomon_common::wire::HostFacts {
            migration: Some(MigrationFacts { uri: "test:///default".to_owned(), copy_bytes_max: 10 * GIB }),
            ..facts()
        };
        bench.core.handle(at(0), Input::HostUp { host: host("c"), facts });
        bench.report_on("c", 0, &[], Some(1.0));
        let id = moves(&mut bench, [local(1, 0), local(11, 0), local(11, 0), local(11, 0)])[0].id;
        bench.outcome_of(vm(1), 35, id, OutcomeResult::Immovable(why));
        bench.take();
        // Back-off aside, what is remembered is the host or the VM.
        let travel = &bench.core.fleet.vms[&vm(1)].travel;
        assert_eq!(travel.is_rooted(at(40)), stays);
        assert!(travel.avoids(&host("b"), at(40)) != travel.avoids(&host("c"), at(40)));
    }
}
