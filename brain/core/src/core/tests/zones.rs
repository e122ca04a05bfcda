//! Zones and labels: who may leave one, who meets whom there, and who goes where that is said of a host.

use gnomon_common::wire::{Action, Command, HostFacts, Labels, NumaNode, VmTerms};

use super::bench::{Bench, facts, host, policy, report_of, vm};
use super::{Input, at};
use crate::MoveRefusal;
use crate::io::{OperatorRequest, Output};
use crate::policy::{Approval, CapacityPolicy, MigratePolicy, Mode, Policy};

fn moving(across_zones: bool) -> Policy {
    let migrate =
        MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, across_zones, ..MigratePolicy::default() };
    Policy { migrate, ..policy(Mode::Auto) }
}

/// VMs of nearly a core each, more than a host of 4.0 has room for.
const FULL: [u128; 4] = [1, 2, 3, 4];

/// Hosts by name and zone.
fn town(policy: Policy, hosts: &[(&str, Option<&str>)]) -> Bench {
    let mut bench = Bench::new(policy);
    for (name, zone) in hosts {
        let facts = HostFacts { zone: zone.map(str::to_owned), ..facts() };
        bench.core.handle(at(0), Input::HostUp { host: host(name), facts });
    }
    bench
}

/// A window of a host with such VMs, of which those of `group` belong in different zones.
fn report(bench: &mut Bench, name: &str, second: u64, vms: &[u128], group: &[u128]) {
    let demands: Vec<(u128, f64, f64)> = vms.iter().map(|number| (*number, 0.95, 0.95)).collect();
    let mut report = report_of(name, second, &demands, Some(1.0));
    for window in report.vms.iter_mut().filter(|window| group.iter().any(|number| vm(*number) == window.vm)) {
        window.terms = VmTerms { apart_zones: Some("site".to_owned()), ..VmTerms::default() };
    }
    bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
}

/// What came out: moves, and notices.
fn seen(bench: &mut Bench) -> (Vec<Command>, Vec<String>) {
    let (mut moves, mut notices) = (Vec::new(), Vec::new());
    for output in bench.take() {
        match output {
            Output::Command { command, .. } if matches!(command.action, Action::Migrate(_)) => moves.push(command),
            Output::Notice(notice) => notices.push(format!("{}: {}", notice.kind, notice.text)),
            _ => {}
        }
    }
    (moves, notices)
}

/// Windows of a full host `a` and others without VMs; where VMs were sent, and what was said.
fn relieved(bench: &mut Bench, others: &[&str]) -> (Vec<String>, Vec<String>) {
    for second in [0, 10, 20] {
        others.iter().for_each(|name| report(bench, name, second, &[], &[]));
        report(bench, "a", second, &FULL, &[]);
    }
    let (moves, notices) = seen(bench);
    let targets = moves.iter().map(|command| match &command.action {
        Action::Migrate(migration) => migration.to.to_string(),
        other => panic!("{other:?}"),
    });
    (targets.collect(), notices)
}

#[test]
fn a_vm_stays_in_its_zone_and_where_only_another_has_room_that_is_told() {
    let hosts = [("a", Some("north")), ("b", Some("south"))];
    let (targets, notices) = relieved(&mut town(moving(false), &hosts), &["b"]);
    assert_eq!(targets, [] as [&str; 0]);
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    assert!(notice.starts_with("no_room") && notice.contains("zone south would have room"), "{notice}");
    assert_eq!(relieved(&mut town(moving(true), &hosts), &["b"]).0, ["b"]);
}

#[test]
fn its_own_zone_is_enough_however_empty_another_is_and_hosts_without_one_are_a_zone() {
    let hosts = [("a", Some("north")), ("b", Some("south")), ("c", Some("north"))];
    let mut bench = town(moving(false), &hosts);
    for second in [0, 10] {
        report(&mut bench, "b", second, &[], &[]);
        report(&mut bench, "c", second, &[9], &[]);
        report(&mut bench, "a", second, &FULL, &[]);
    }
    let (moves, notices) = seen(&mut bench);
    assert!(
        matches!(&moves[..], [one] if matches!(&one.action, Action::Migrate(to) if to.to == host("c"))),
        "{moves:?}"
    );
    assert_eq!(notices, [] as [&str; 0]);

    assert_eq!(relieved(&mut town(moving(false), &[("a", None), ("b", None)]), &["b"]).0, ["b"]);
    let (targets, notices) = relieved(&mut town(moving(false), &[("a", None), ("b", Some("south"))]), &["b"]);
    assert!(targets.is_empty() && notices[0].contains("zone south would have room"), "{notices:?}");
    let (targets, notices) = relieved(&mut town(moving(false), &[("a", Some("south")), ("b", None)]), &["b"]);
    assert!(targets.is_empty() && notices[0].contains("the zone of hosts that name none would"), "{notices:?}");
}

#[test]
fn a_host_that_is_emptied_keeps_its_vms_in_their_zone_and_an_operators_word_does_not() {
    let mut bench = town(moving(false), &[("a", Some("north")), ("b", Some("south"))]);
    bench.operate(1, OperatorRequest::Drain { host: host("a") });
    for second in [0, 10] {
        report(&mut bench, "b", second, &[], &[]);
        report(&mut bench, "a", second, &[1], &[]);
    }
    let (moves, notices) = seen(&mut bench);
    assert_eq!(moves, []);
    assert!(
        notices.iter().any(|notice| notice.contains("is to be emptied") && notice.contains("zone south")),
        "{notices:?}"
    );
    let action = bench.core.may_migrate(vm(1), &host("b")).unwrap();
    assert_eq!(bench.core.remarks_on_move(&action), ["it leaves zone north for zone south"]);
    bench.operate(21, OperatorRequest::Migrate { vm: vm(1), to: host("b") });
    assert_eq!(seen(&mut bench).0.len(), 1);
}

#[test]
fn vms_that_belong_in_different_zones_do_not_meet_by_plan_or_by_hand_and_are_free_within_one() {
    let hosts = [("a", Some("north")), ("b", Some("south")), ("c", Some("south"))];
    let mut bench = town(moving(true), &hosts);
    for second in [0, 10, 20] {
        report(&mut bench, "c", second, &[9], &[9]);
        report(&mut bench, "b", second, &[], &[]);
        report(&mut bench, "a", second, &FULL, &FULL);
    }
    let (moves, notices) = seen(&mut bench);
    assert_eq!(moves, [], "9 is in that zone, though on another host");
    assert!(
        notices.iter().any(|notice| notice.starts_with("no_room") && !notice.contains("would have room")),
        "{notices:?}"
    );
    let refused = bench.core.may_migrate(vm(1), &host("b")).unwrap_err();
    assert!(matches!(&refused, MoveRefusal::Rule(why) if why.contains("in one zone")), "{refused}");
    // Within its zone it meets nobody whom it has not met.
    let action = bench.core.may_migrate(vm(9), &host("b")).unwrap();
    assert_eq!(bench.core.remarks_on_move(&action), [] as [&str; 0]);
}

#[test]
fn one_that_is_on_its_way_to_a_zone_counts_there() {
    let hosts = [("a", Some("north")), ("b", Some("south")), ("c", Some("south")), ("d", Some("west"))];
    let mut bench = town(moving(true), &hosts);
    for name in ["b", "c"] {
        report(&mut bench, name, 0, &[], &[]);
    }
    report(&mut bench, "a", 0, &[1], &[1]);
    report(&mut bench, "d", 0, &[2], &[2]);
    bench.operate(11, OperatorRequest::Migrate { vm: vm(1), to: host("b") });
    assert_eq!(seen(&mut bench).0.len(), 1);
    let refused = bench.core.may_migrate(vm(2), &host("c")).unwrap_err();
    assert!(matches!(&refused, MoveRefusal::Rule(why) if why.contains("in one zone")), "{refused}");
}

#[test]
fn a_request_for_capacity_says_that_another_zone_would_have_room() {
    let capacity = CapacityPolicy {
        has_provider: true,
        approval: Approval::Automatic,
        full_for_ms: 30_000,
        ..CapacityPolicy::default()
    };
    let reason = |south_is_full: bool| {
        let policy = Policy { capacity: capacity.clone(), ..moving(false) };
        let mut bench = town(policy, &[("a", Some("north")), ("b", Some("south"))]);
        for second in (0..60).step_by(10) {
            report(&mut bench, "b", second, if south_is_full { &[5, 6, 7] } else { &[] }, &[]);
            report(&mut bench, "a", second, &FULL, &[]);
        }
        bench.core.capacity().remove(0).reason
    };
    assert!(
        reason(false).ends_with("no move within their zone helps; another zone would have room"),
        "{}",
        reason(false)
    );
    assert!(reason(true).ends_with("and no move helps"), "{}", reason(true));
}

/// A window of a full host `a` whose VMs' owners ask for these labels, and of an empty `b`; what came out.
fn labelled(bench: &mut Bench, second: u64, labels: &Labels) -> (Vec<Command>, Vec<String>) {
    report(bench, "b", second, &[], &[]);
    let demands: Vec<(u128, f64, f64)> = FULL.iter().map(|number| (*number, 0.95, 0.95)).collect();
    let mut full = report_of("a", second, &demands, Some(1.0));
    full.vms.iter_mut().for_each(|window| window.terms.labels = labels.clone());
    bench.core.handle(at(second + 10), Input::Report(Box::new(full)));
    seen(bench)
}

#[test]
fn a_vm_goes_only_where_its_owner_s_labels_are_and_by_no_operator_s_word_elsewhere() {
    let labels = |text: &str| text.parse::<Labels>().unwrap();
    let mut bench = town(moving(false), &[("a", None), ("b", None)]);
    let tell = |bench: &mut Bench, second, of_b: &Labels| {
        let facts = HostFacts { labels: of_b.clone(), ..facts() };
        bench.core.handle(at(second), Input::HostUp { host: host("b"), facts });
    };
    let wanted = labels("disk=nvme,room=7");
    tell(&mut bench, 0, &labels("disk=nvme,room=8"));
    for second in [0, 10, 20] {
        assert_eq!(labelled(&mut bench, second, &wanted).0, []);
    }
    let stuck = bench.core.host(&host("a")).unwrap().stuck.unwrap();
    assert_eq!(stuck.vms[0].why, "no other host can have it: 1 lacks a label that its owner asks for");
    let refused = bench.core.may_migrate(vm(1), &host("b")).unwrap_err();
    assert_eq!(refused.to_string(), "host b lacks the label room=7, which its owner asks for");
    // More than is asked for is no hindrance.
    tell(&mut bench, 30, &labels("disk=nvme,room=7,gpu=none"));
    let (moves, _) = labelled(&mut bench, 30, &wanted);
    let to = moves.iter().map(|command| &command.action);
    assert!(to.clone().all(|action| matches!(action, Action::Migrate(migration) if migration.to == host("b"))));
    assert_eq!(to.count(), 1);
}

#[test]
fn an_operator_is_told_of_a_vm_that_fits_no_single_numa_node_of_the_host_it_is_sent_to() {
    let remarks = |nodes: &[(u32, u64)]| {
        let mut bench = town(moving(false), &[("a", None)]);
        let node = |(node, &(cpus, memory_mib)): (usize, &(u32, u64))| NumaNode {
            node: u32::try_from(node).unwrap(),
            cpus,
            memory_bytes: memory_mib << 20,
        };
        let facts = HostFacts { numa: nodes.iter().enumerate().map(node).collect(), ..facts() };
        bench.core.handle(at(0), Input::HostUp { host: host("b"), facts });
        report(&mut bench, "b", 0, &[], &[]);
        // One vCPU and a GiB.
        report(&mut bench, "a", 0, &[1], &[]);
        let action = bench.core.may_migrate(vm(1), &host("b")).unwrap();
        bench.core.remarks_on_move(&action)
    };
    assert_eq!(remarks(&[]), [] as [String; 0], "nobody says");
    assert_eq!(remarks(&[(4, 512)]), [] as [String; 0], "there is no other node to reach");
    assert_eq!(remarks(&[(4, 512), (4, 1024)]), [] as [String; 0]);
    let told = "it fits no single NUMA node there: it has 1 vCPUs and 1024 MiB, and of 2 nodes none has more than 4 CPUs, none more than 4096 MiB";
    assert_eq!(remarks(&[(4, 1000), (0, 4096)]), [told]);
}
