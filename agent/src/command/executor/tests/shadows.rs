//! Orders about shadows: one intent from the command to the knowledge of what came of it, whatever happens to the agent meanwhile.

use super::*;
use gnomon_common::wire::{
    Blueprint, Boot, CPU_WEIGHT_DEFAULT, DiskCopy, Imaged, Imaging, Migration, Profile, ShadowDone, ShadowOrder,
    ShadowSize, ShadowSpec, Unshadowable,
};

/// The shadow; no VM of the host is it yet.
const SHADOW: u128 = 9;

fn blueprint() -> Blueprint {
    Blueprint {
        name: "web".into(),
        kvm: false,
        arch: "x86_64".into(),
        machine: "q35".into(),
        cpu_model: None,
        boot: Boot::Bios,
        vcpus: 1,
        memory_bytes: 1 << 30,
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks: Vec::new(),
        interfaces: Vec::new(),
    }
}

fn copy(cpu_cores: f64) -> ShadowOrder {
    let size = ShadowSize {
        cpu_cores,
        vcpus: 1,
        cpu_weight: 10,
        memory_bytes: 64 << 20,
        disk_bytes_per_s: None,
        network_bytes_per_s: None,
    };
    ShadowOrder::Copy(Box::new(ShadowSpec { of: vm(1), blueprint: blueprint(), size }))
}

fn order(number: u64, order: ShadowOrder) -> Command {
    command(number, SHADOW, Action::Shadow(order))
}

fn describe(number: u64) -> Command {
    command(number, 1, Action::Describe)
}

fn ends(executor: &mut Executor, world: &Shared, command: &Command, result: OutcomeResult) {
    world.lock().unwrap().shadow_news.push(ShadowNews::Ended(Box::new(command.clone()), result));
    assert!(executor.take_shadow_news().unwrap());
}

fn done(done: ShadowDone) -> OutcomeResult {
    OutcomeResult::Shadow(done)
}

fn refused(why: RefusedCommand) -> OutcomeResult {
    OutcomeResult::Refused(why)
}

#[test]
fn an_order_is_under_way_until_it_is_known_what_came_of_it() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    let ordered = order(1, copy(0.1));
    send(&mut executor, &world, &ordered);
    assert_eq!(executor.ledger.intents().unwrap().len(), 1);
    let (at, time_left) = (Timestamp::from_unix_ms(1_000), Duration::from_secs(1));
    let task = Task { command: ordered.clone(), at, time_left, waited: Duration::ZERO };
    assert_eq!(world.lock().unwrap().tasks, [task]);
    // It comes again, and what is next comes: one is answered in time, the other is begun behind it.
    send(&mut executor, &world, &ordered);
    let start = order(2, ShadowOrder::Start);
    send(&mut executor, &world, &start);
    assert_eq!((results(&executor), world.lock().unwrap().tasks.len()), (vec![], 2));
    world.lock().unwrap().us += 300_000;
    ends(&mut executor, &world, &ordered, done(ShadowDone::Copied { took_us: 0, copied_bytes: 0 }));
    ends(&mut executor, &world, &start, OutcomeResult::Unshadowable(Unshadowable::NoShadow));
    let copied = done(ShadowDone::Copied { took_us: 300_000, copied_bytes: 0 });
    assert_eq!(results(&executor), [(1, copied.clone()), (2, OutcomeResult::Unshadowable(Unshadowable::NoShadow))]);
    assert_eq!(executor.ledger.intents().unwrap(), []);
    send(&mut executor, &world, &ordered);
    assert_eq!((results(&executor)[1].clone(), world.lock().unwrap().tasks.len()), ((1, copied), 2));
    // An older order than the last is none.
    send(&mut executor, &world, &Command { id: CommandId { term: 1, number: 9 }, ..ordered });
    let seen = Fence { term: 1, generation: 2 };
    assert_eq!(results(&executor)[2], (9, refused(RefusedCommand::StaleFence { seen })));
}

#[test]
fn an_agent_that_was_killed_sees_to_it_that_an_order_comes_to_its_end() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &order(1, ShadowOrder::Start));
    drop(before);
    world.lock().unwrap().us += 400_000;
    let mut dry = executor(&path, &world, true);
    dry.try_resolve();
    assert_eq!(world.lock().unwrap().tasks.len(), 1, "a dry run leaves it");
    drop(dry);
    let mut after = executor(&path, &world, false);
    assert!(after.try_resolve(), "it is not resolved at once");
    after.try_resolve();
    let lefts: Vec<_> = world.lock().unwrap().tasks.iter().map(|task| task.time_left.as_millis()).collect();
    assert_eq!(lefts, [1_000, 600], "begun again once, with the rest of its time");
    ends(&mut after, &world, &order(1, ShadowOrder::Start), done(ShadowDone::Started { took_us: 0 }));
    assert_eq!(results(&after), [(1, done(ShadowDone::Started { took_us: 400_000 }))]);
    assert!(!after.try_resolve());
}

#[test]
fn what_takes_too_long_is_told_once_and_its_end_takes_the_place_of_that() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    let retire = order(1, ShadowOrder::Retire);
    send(&mut executor, &world, &retire);
    world.lock().unwrap().us += 119_000_000;
    assert!(!executor.take_shadow_news().unwrap());
    world.lock().unwrap().us += 2_000_000;
    assert!(executor.take_shadow_news().unwrap());
    let told = OutcomeResult::Failed { error: "not done after 120 s; it goes on".to_owned(), retryable: true };
    assert_eq!(results(&executor), [(1, told)]);
    assert!(!executor.take_shadow_news().unwrap());
    ends(&mut executor, &world, &retire, done(ShadowDone::Retired));
    assert_eq!(results(&executor), [(1, done(ShadowDone::Retired))]);
}

#[test]
fn a_vm_is_described_without_a_trace_unless_its_owner_wants_no_shadow_of_it() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, true);
    send(&mut executor, &world, &describe(1));
    send(&mut executor, &world, &describe(1));
    assert_eq!(world.lock().unwrap().tasks.len(), 1, "the one under way answers");
    assert_eq!((executor.ledger.intents().unwrap(), executor.ledger.fence(vm(1)).unwrap()), (vec![], None));
    let described = OutcomeResult::Described(Box::new(blueprint()));
    ends(&mut executor, &world, &describe(1), described.clone());
    assert_eq!(results(&executor), [(1, described)]);
    world.lock().unwrap().terms.mode = Some(Mode::Observe);
    send(&mut executor, &world, &describe(2));
    assert_eq!(world.lock().unwrap().tasks.len(), 2, "nothing is done to it");
    world.lock().unwrap().terms.shadow = Some(false);
    send(&mut executor, &world, &describe(3));
    send(&mut executor, &world, &command(4, 5, Action::Describe));
    assert_eq!(
        results(&executor)[1..],
        [(3, refused(RefusedCommand::OptedOut)), (4, refused(RefusedCommand::UnknownVm))]
    );
}

#[test]
fn what_the_host_does_not_take_is_refused_and_what_it_has_can_still_be_retired() {
    let (_folder, path, world) = host();
    let mut dry = executor(&path, &world, true);
    send(&mut dry, &world, &order(1, copy(0.1)));
    assert_eq!(results(&dry), [(1, OutcomeResult::DryRun)]);
    drop(dry);
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &order(2, copy(f64::NAN)));
    let long = Profile { valid_ms: 1, steps: vec![Default::default(); 257] };
    send(&mut executor, &world, &order(3, ShadowOrder::Pace(long)));
    executor.policy.shadows_max = 0;
    send(&mut executor, &world, &order(4, copy(0.1)));
    send(&mut executor, &world, &order(5, ShadowOrder::Start));
    use RefusedCommand::{Nonsense, ShadowsNotAllowed};
    assert_eq!(
        results(&executor)[1..],
        [(2, Nonsense), (3, Nonsense), (4, ShadowsNotAllowed), (5, ShadowsNotAllowed)]
            .map(|(n, why)| (n, refused(why)))
    );
    assert_eq!(world.lock().unwrap().tasks, []);
    send(&mut executor, &world, &order(6, ShadowOrder::Retire));
    assert_eq!(world.lock().unwrap().tasks.len(), 1);
}

#[test]
fn what_was_set_on_a_shadow_is_forgotten_with_it() {
    let (_folder, path, world) = host();
    world.lock().unwrap().limits.insert(vm(SHADOW), Some(0.1));
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &command(1, SHADOW, Action::Set(quota(Some(0.2)))));
    assert_eq!(executor.ledger.undo_records().unwrap().len(), 1);
    let retire = order(2, ShadowOrder::Retire);
    send(&mut executor, &world, &retire);
    ends(&mut executor, &world, &retire, done(ShadowDone::Retired));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn what_shadows_left_is_looked_for_but_not_where_an_order_is_under_way_nor_in_a_dry_run() {
    let (_folder, path, world) = host();
    let mut dry = executor(&path, &world, true);
    dry.tidy_shadows();
    drop(dry);
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &order(1, copy(0.1)));
    executor.tidy_shadows();
    assert_eq!(world.lock().unwrap().tidied, [BTreeSet::from([vm(SHADOW)])]);
    world.lock().unwrap().shadow_news.push(ShadowNews::Tidied(3));
    executor.take_shadow_news().unwrap();
    assert_eq!(executor.metrics.shadow_orphans.get(), 3);
}

fn image(number: u64) -> Command {
    let imaging = Imaging { shadow: vm(SHADOW), bandwidth_bytes_per_s: None, timeout_ms: 600_000, send_to: None };
    command(number, 1, Action::Image(imaging))
}

#[test]
fn disks_are_copied_in_their_own_time_while_everything_else_goes_on() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &image(1));
    send(&mut executor, &world, &set(2, 1.0));
    assert_eq!(results(&executor), [(2, applied(Some(2.0), Some(1.0)))]);
    executor.tidy_shadows();
    assert_eq!(world.lock().unwrap().tidied, [BTreeSet::from([vm(SHADOW)])], "not while it is made");
    world.lock().unwrap().us += 700_000_000;
    assert!(!executor.take_shadow_news().unwrap(), "an hour is as good as a second");
    world.lock().unwrap().shadow_news.push(ShadowNews::Copying(3, 7));
    executor.take_shadow_news().unwrap();
    let disks = vec![("vda".to_owned(), DiskCopy { path: "/c/vda".into(), bytes: 7, sha256: String::new() })];
    let imaged = |took_us| OutcomeResult::Imaged(Box::new(Imaged { took_us, disks: disks.clone() }));
    ends(&mut executor, &world, &image(1), imaged(0));
    assert_eq!(results(&executor)[1], (1, imaged(700_000_700)));
    assert_eq!((executor.ledger.intents().unwrap(), executor.ledger.undo_records().unwrap().len()), (vec![], 1));
    // One that ends nowhere is told of.
    send(&mut executor, &world, &image(3));
    world.lock().unwrap().us += 721_000_000;
    assert!(executor.take_shadow_news().unwrap());
}

#[test]
fn disks_are_copied_only_where_host_and_owner_allow_it() {
    use RefusedCommand::{CopiesNotAllowed, Nonsense, OptedOut, UnknownVm};
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    let mut never = image(1);
    never.action =
        Action::Image(Imaging { shadow: vm(SHADOW), bandwidth_bytes_per_s: None, timeout_ms: 0, send_to: None });
    send(&mut executor, &world, &never);
    send(&mut executor, &world, &Command { vm: vm(5), ..image(2) });
    let allowed = world.lock().unwrap().terms.clone();
    let terms = [
        VmTerms { copy_disks: Some(false), ..allowed.clone() },
        VmTerms { shadow: Some(false), ..allowed.clone() },
        VmTerms { mode: Some(Mode::Observe), ..allowed.clone() },
    ];
    for (number, terms) in (3..).zip(terms) {
        world.lock().unwrap().terms = terms;
        send(&mut executor, &world, &image(number));
    }
    world.lock().unwrap().terms = allowed;
    executor.policy.copies = false;
    send(&mut executor, &world, &image(6));
    let expected = [Nonsense, UnknownVm, OptedOut, OptedOut, OptedOut, CopiesNotAllowed];
    assert_eq!(results(&executor), (1..).zip(expected.map(refused)).collect::<Vec<_>>());
    assert_eq!(world.lock().unwrap().tasks, []);
}

#[test]
fn a_vm_that_is_to_move_is_not_copied_any_longer() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &image(1));
    let (to, uri) = (HostId::new("h2").unwrap(), "qemu+tls://h2/system".to_owned());
    let migration = Migration {
        to,
        uri,
        timeout_ms: 1_000,
        bandwidth_bytes_per_s: None,
        auto_converge: false,
        copy_storage: false,
    };
    send(&mut executor, &world, &command(2, 1, Action::Migrate(migration)));
    assert_eq!(world.lock().unwrap().given_up, [vm(1)]);
    assert_eq!(world.lock().unwrap().begun.len(), 1);
    send(&mut executor, &world, &image(3));
    assert_eq!(results(&executor), [(3, refused(RefusedCommand::Migrating))]);
}
