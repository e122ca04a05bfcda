use super::*;
use crate::command::clock::BootInstant;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, Fence, Means, VmId};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use uuid::Uuid;

/// Where a crash may come: everything between two of these is one synced transaction or one call to libvirt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    BeforeIntent,
    BeforeActuation,
    AfterActuation,
    AfterOutcome,
}

/// The host as the fakes see it; it survives the executor, as a real one does.
#[derive(Debug, Default)]
struct World {
    limits: BTreeMap<VmId, Option<f64>>,
    changes: Vec<(VmId, Option<f64>)>,
    failing: Option<ActuateError>,
    /// How often a VM was restarted, on its definition each time.
    restarts: BTreeMap<VmId, u64>,
    /// The first survey is not done yet.
    unsurveyed: bool,
    boot: u128,
    us: u64,
    /// At this point the ledger's bytes and the host are put aside, as a kill there would leave them.
    crash: Option<(Point, PathBuf)>,
    crashed: Option<Wreck>,
}

/// What a kill left behind.
#[derive(Debug)]
struct Wreck {
    ledger: PathBuf,
    limits: BTreeMap<VmId, Option<f64>>,
    changes: usize,
}

type Shared = Arc<Mutex<World>>;

impl World {
    fn pass(&mut self, point: Point) {
        if let Some((_, ledger)) = self.crash.take_if(|(at, _)| *at == point) {
            let copy = ledger.with_extension("killed");
            std::fs::copy(&ledger, &copy).unwrap();
            self.crashed = Some(Wreck { ledger: copy, limits: self.limits.clone(), changes: self.changes.len() });
        }
    }

    fn life(&self, vm: VmId) -> Option<VmLife> {
        let start_ticks = self.restarts.get(&vm).copied().unwrap_or(0);
        Some(VmLife { boot: Uuid::from_u128(self.boot), pid: 4_711, start_ticks })
    }

    /// The domain ends and starts again, with what its definition says.
    fn restart(&mut self, vm: VmId, defined_cores: Option<f64>) {
        *self.restarts.entry(vm).or_default() += 1;
        self.limits.insert(vm, defined_cores);
    }

    /// Sets the host back to the kill, if there was one, and returns the ledger it left.
    fn back_to_the_kill(&mut self) -> Option<PathBuf> {
        self.crash = None;
        let wreck = self.crashed.take()?;
        self.limits = wreck.limits;
        self.changes.truncate(wreck.changes);
        Some(wreck.ledger)
    }
}

struct Host(Shared);

impl Actuator for Host {
    fn in_force(&mut self, vm: VmId, _: Means) -> Result<Setting, ActuateError> {
        let mut world = self.0.lock().unwrap();
        world.pass(Point::BeforeIntent);
        match &world.failing {
            Some(error) => Err(error.clone()),
            None => world.limits.get(&vm).copied().map(quota).ok_or(ActuateError::NoSuchVm(vm)),
        }
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Setting::CpuQuota { cores: target_cores } = target else { panic!("asked for {target}") };
        let mut world = self.0.lock().unwrap();
        world.pass(Point::BeforeActuation);
        if let Some(error) = &world.failing {
            return Err(error.clone());
        }
        world.limits.insert(vm, target_cores);
        world.changes.push((vm, target_cores));
        world.us += 700;
        world.pass(Point::AfterActuation);
        Ok(target)
    }
}

impl VmDirectory for Host {
    fn find(&self, vm: VmId) -> Known {
        let world = self.0.lock().unwrap();
        if world.unsurveyed {
            return Known { sighting: Sighting::Unknown, name: None, life: None };
        }
        match world.limits.contains_key(&vm) {
            true => {
                Known { sighting: Sighting::Active { vcpus: 4 }, name: Some("web".to_owned()), life: world.life(vm) }
            }
            false => Known { sighting: Sighting::Absent, name: None, life: None },
        }
    }
}

fn now(world: &Shared) -> Now {
    let world = world.lock().unwrap();
    let boot = BootInstant { boot: Uuid::from_u128(world.boot), us: world.us };
    Now { wall: Timestamp::from_unix_ms(1_000), boot }
}

fn executor(path: &Path, world: &Shared, dry_run: bool) -> Executor {
    let bounds = CpuBounds { floor_cores: 0.1, ceiling_cores: 8.0 };
    let clock_world = Arc::clone(world);
    Executor {
        ledger: Ledger::open(path).unwrap(),
        actuator: Box::new(Host(Arc::clone(world))),
        vms: Box::new(Host(Arc::clone(world))),
        policy: Policy { bounds, allowed: Allowed::default(), dry_run },
        clock: Box::new(move || now(&clock_world)),
        metrics: Metrics::register(&mut Registry::default()),
    }
}

fn quota(cores: Option<f64>) -> Setting {
    Setting::CpuQuota { cores }
}

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn command(number: u64, of: u128, action: Action) -> Command {
    Command {
        id: CommandId { term: 1, number },
        vm: vm(of),
        action,
        fence: Fence { term: 1, generation: number },
        time_to_live_ms: 1_000,
        reason: "the forecast says so".to_owned(),
    }
}

fn set(number: u64, cores: f64) -> Command {
    command(number, 1, Action::Set(quota(Some(cores))))
}

fn send(executor: &mut Executor, world: &Shared, command: &Command) {
    let received = now(world);
    executor.handle(Request::Command { command: Box::new(command.clone()), received }).unwrap();
}

fn results(executor: &Executor) -> Vec<(u64, OutcomeResult)> {
    executor.answers().unwrap().pending.iter().map(|(_, outcome)| (outcome.id.number, outcome.result.clone())).collect()
}

fn applied(before: Option<f64>, after: Option<f64>) -> OutcomeResult {
    OutcomeResult::Applied { before: vec![quota(before)], after: vec![quota(after)], took_us: 700 }
}

fn untouched() -> OutcomeResult {
    OutcomeResult::Applied { before: Vec::new(), after: Vec::new(), took_us: 0 }
}

/// One VM with a limit of 2 cores.
fn host() -> (tempfile::TempDir, PathBuf, Shared) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("commands.redb");
    let world = World { limits: BTreeMap::from([(vm(1), Some(2.0))]), boot: 1, ..World::default() };
    (folder, path, Arc::new(Mutex::new(world)))
}

/// Carries `first` out and lets a kill -9 come at `point`: the returned executor starts from what that left behind, `later` after.
fn killed_at(point: Point, first: &Command, later: impl FnOnce(&mut World)) -> (tempfile::TempDir, Executor, Shared) {
    killed_at_last(point, std::slice::from_ref(first), later)
}

/// The same with several commands, of which the last one is killed.
fn killed_at_last(
    point: Point,
    commands: &[Command],
    later: impl FnOnce(&mut World),
) -> (tempfile::TempDir, Executor, Shared) {
    let (folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    let (last, earlier) = commands.split_last().unwrap();
    earlier.iter().for_each(|command| send(&mut executor_1, &world, command));
    world.lock().unwrap().crash = Some((point, path));
    send(&mut executor_1, &world, last);
    world.lock().unwrap().pass(Point::AfterOutcome);
    let left = {
        let mut world = world.lock().unwrap();
        let left = world.back_to_the_kill().unwrap();
        world.changes.clear();
        later(&mut world);
        left
    };
    let mut executor_2 = executor(&left, &world, false);
    assert!(!executor_2.try_resolve(), "nothing is left unresolved after {point:?}");
    (folder, executor_2, world)
}

#[test]
fn a_command_is_applied_and_remembered_with_how_to_undo_it() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &set(2, 3.0));
    assert_eq!(results(&executor), [(1, applied(Some(2.0), Some(1.5))), (2, applied(Some(1.5), Some(3.0)))]);
    let undo = executor.ledger.undo(vm(1)).unwrap().unwrap();
    assert_eq!((undo.baselines, undo.name.as_str()), (vec![quota(Some(2.0))], "web"));
    assert_eq!(executor.answers().unwrap().fence_highest, Some(Fence { term: 1, generation: 2 }));
}

#[test]
fn a_command_that_comes_twice_is_applied_once_and_answered_twice() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    executor.handle(Request::Acknowledged(set(1, 1.5).id)).unwrap();
    assert_eq!(results(&executor), []);
    send(&mut executor, &world, &set(1, 1.5));
    assert_eq!(results(&executor), [(1, applied(Some(2.0), Some(1.5)))]);
    assert_eq!(world.lock().unwrap().changes.len(), 1);
}

#[test]
fn a_release_restores_the_baseline_and_forgets_the_undo_record() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
    send(&mut executor, &world, &command(3, 1, Action::Release));
    assert_eq!(results(&executor)[2], (3, untouched()), "releasing the untouched is no failure");
}

#[test]
fn a_release_in_a_later_life_changes_nothing() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().restart(vm(1), Some(3.0));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(results(&executor)[1], (2, untouched()));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(3.0), "not the 2 cores of the life before");
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn the_first_change_of_a_later_life_takes_that_lifes_limit_as_the_baseline() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().restart(vm(1), None);
    send(&mut executor, &world, &set(2, 1.0));
    send(&mut executor, &world, &set(3, 1.25));
    send(&mut executor, &world, &command(4, 1, Action::Release));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], None);
}

#[test]
fn an_intent_of_an_earlier_life_is_not_carried_out_in_a_later_one() {
    let restart = |world: &mut World| world.restart(vm(1), Some(3.0));
    for point in [Point::BeforeActuation, Point::AfterActuation] {
        let (_folder, executor, world) = killed_at(point, &set(1, 1.5), restart);
        assert!(matches!(results(&executor)[..], [(1, OutcomeResult::Failed { retryable: true, .. })]), "{point:?}");
        assert_eq!(world.lock().unwrap().changes, [], "{point:?}");
        let release = command(2, 1, Action::Release);
        let (_folder, executor, world) = killed_at_last(point, &[set(1, 1.5), release], restart);
        assert!(
            matches!(&results(&executor)[..], [_, (2, OutcomeResult::Applied { after, .. })] if after[..] == [quota(Some(3.0))])
        );
        assert_eq!(world.lock().unwrap().changes, [], "{point:?}");
    }
}

#[test]
fn an_intent_waits_until_it_is_known_whether_its_vm_was_restarted() {
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().unsurveyed = true;
    let mut executor_2 = executor(&left, &world, false);
    assert!(executor_2.try_resolve());
    assert_eq!(world.lock().unwrap().changes, []);
    world.lock().unwrap().unsurveyed = false;
    assert!(!executor_2.try_resolve());
    assert_eq!(world.lock().unwrap().changes, [(vm(1), Some(1.5))]);
}

#[test]
fn releasing_a_vm_that_is_gone_forgets_its_undo_record() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().limits.clear();
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(results(&executor)[1], (2, OutcomeResult::Refused(RefusedCommand::UnknownVm)));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn a_brain_of_a_higher_term_makes_the_commands_of_lower_terms_stale() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    executor.handle(Request::Term(2)).unwrap();
    send(&mut executor, &world, &set(1, 1.5));
    let seen = Fence { term: 2, generation: 0 };
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::StaleFence { seen }))]);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_dry_run_changes_nothing_and_leaves_nothing_to_undo() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, true);
    send(&mut executor, &world, &set(2, 1.5));
    send(&mut executor, &world, &set(1, 1.0));
    let seen = Fence { term: 1, generation: 2 };
    let stale = OutcomeResult::Refused(RefusedCommand::StaleFence { seen });
    assert_eq!(results(&executor), [(2, OutcomeResult::DryRun), (1, stale)], "it judges as a real run does");
    assert_eq!(world.lock().unwrap().changes, []);
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn a_failure_is_answered_with_whether_it_may_succeed_later() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    for (number, error) in [(1, ActuateError::Stuck), (2, ActuateError::Rejected("no".to_owned()))] {
        world.lock().unwrap().failing = Some(error.clone());
        send(&mut executor, &world, &set(number, 1.5));
        let result = results(&executor).pop().unwrap().1;
        assert_eq!(result, OutcomeResult::Failed { error: error.to_string(), retryable: error.retryable() });
    }
}

#[test]
fn a_kill_at_any_point_neither_loses_a_command_nor_applies_it_twice() {
    for point in [Point::BeforeIntent, Point::BeforeActuation, Point::AfterActuation, Point::AfterOutcome] {
        let (_folder, mut executor, world) = killed_at(point, &set(1, 1.5), |world| world.us += 300_000);
        // The brain has no outcome: it sends the command again.
        send(&mut executor, &world, &set(1, 1.5));
        let results = results(&executor);
        assert!(
            matches!(
                &results[..],
                [(1, OutcomeResult::Applied { before, after, .. })]
                    if before[..] == [quota(Some(2.0))] && after[..] == [quota(Some(1.5))]
            ),
            "{point:?}: {results:?}"
        );
        let world = world.lock().unwrap();
        assert_eq!(world.limits[&vm(1)], Some(1.5), "{point:?}");
        let expected = usize::from(matches!(point, Point::BeforeIntent | Point::BeforeActuation));
        assert_eq!(world.changes.len(), expected, "{point:?}: changes made after the restart");
        assert_eq!(executor.ledger.undo(vm(1)).unwrap().unwrap().baselines, [quota(Some(2.0))], "{point:?}");
        assert_eq!(executor.ledger.intents().unwrap(), [], "{point:?}");
    }
}

#[test]
fn a_kill_during_a_release_finishes_the_release() {
    for point in [Point::BeforeActuation, Point::AfterActuation] {
        let (_folder, path, world) = host();
        let mut executor_1 = executor(&path, &world, false);
        send(&mut executor_1, &world, &set(1, 1.5));
        executor_1.handle(Request::Acknowledged(set(1, 1.5).id)).unwrap();
        world.lock().unwrap().crash = Some((point, path));
        send(&mut executor_1, &world, &command(2, 1, Action::Release));
        let left = world.lock().unwrap().back_to_the_kill().unwrap();
        let mut executor_2 = executor(&left, &world, false);
        assert_eq!(executor_2.ledger.undo_records().unwrap().len(), 1, "kept until the baseline is confirmed");
        assert!(!executor_2.try_resolve());
        assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0), "{point:?}");
        assert_eq!(executor_2.ledger.undo_records().unwrap(), [], "{point:?}");
        let results = results(&executor_2);
        assert!(
            matches!(&results[..], [(2, OutcomeResult::Applied { after, .. })] if after[..] == [quota(Some(2.0))]),
            "{results:?}"
        );
    }
}

#[test]
fn after_a_restart_an_expired_intent_is_carried_out_only_if_it_already_was() {
    let late = |world: &mut World| world.us += 1_500_000;
    let (_folder, executor, world) = killed_at(Point::BeforeActuation, &set(1, 1.5), late);
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::Expired { late_ms: 500 }))]);
    assert_eq!(world.lock().unwrap().changes, []);
    let (_folder, executor, _) = killed_at(Point::AfterActuation, &set(1, 1.5), late);
    assert!(matches!(results(&executor)[..], [(1, OutcomeResult::Applied { .. })]));
}

#[test]
fn a_reboot_expires_an_intent_however_short_it_was() {
    let reboot = |world: &mut World| (world.boot, world.us) = (2, 0);
    let (_folder, executor, world) = killed_at(Point::BeforeActuation, &set(1, 1.5), reboot);
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::Expired { late_ms: 0 }))]);
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0));
}

#[test]
fn an_intent_of_a_vm_that_is_gone_is_refused() {
    let (_folder, executor, _) = killed_at(Point::BeforeActuation, &set(1, 1.5), |world| world.limits.clear());
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::UnknownVm))]);
}

#[test]
fn an_unresolved_intent_is_never_carried_out_after_a_newer_command() {
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("down".to_owned()));
    let mut executor_2 = executor(&left, &world, false);
    assert!(executor_2.try_resolve(), "libvirt is down: left unresolved");
    send(&mut executor_2, &world, &set(2, 3.0));
    assert!(matches!(results(&executor_2)[..], [(2, OutcomeResult::Failed { retryable: true, .. })]));
    world.lock().unwrap().failing = None;
    send(&mut executor_2, &world, &set(3, 3.5));
    let changes: Vec<_> = world.lock().unwrap().changes.iter().map(|(_, limit)| limit.unwrap()).collect();
    assert_eq!(changes, [1.5, 3.5], "in the order of their fences");
}

#[test]
fn the_thread_answers_refuses_an_overflow_and_ends_with_its_last_user() {
    let (_folder, path, world) = host();
    let executor = executor(&path, &world, false);
    let held = world.lock().unwrap(); // the executor stops at its first look at the host
    let (commands, thread) = spawn(executor).unwrap();
    let received = Now { wall: Timestamp::from_unix_ms(1_000), boot: BootInstant { boot: Uuid::from_u128(1), us: 0 } };
    for number in 1..=COMMANDS_WAITING_MAX as u64 {
        commands.submit(set(number, 1.0), received).unwrap();
    }
    assert_eq!(commands.submit(set(999, 1.0), received), Err(super::super::NotTaken::Full));
    commands.acknowledge(set(1, 1.0).id).unwrap(); // still has room
    drop(held);
    let mut answers = commands.answers();
    let patience = Instant::now() + Duration::from_secs(20);
    // The first was acknowledged, all others are pending.
    while answers.borrow_and_update().pending.len() != COMMANDS_WAITING_MAX - 1 {
        assert!(Instant::now() < patience, "{} outcomes", answers.borrow().pending.len());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(commands);
    thread.join().unwrap();
}

#[test]
fn steady_traffic_does_not_keep_an_intent_from_being_resolved() {
    const RESOLVE: Duration = Duration::from_millis(50);
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("down".to_owned()));
    let mut executor_2 = executor(&left, &world, false);
    let (queue, requests) = sync_channel(COMMANDS_WAITING_MAX);
    let (publish, answers) = watch::channel(Answers::default());
    let thread = std::thread::spawn(move || executor_2.run_every(RESOLVE, &requests, &AtomicUsize::new(0), &publish));
    let patience = Instant::now() + Duration::from_secs(20);
    while answers.borrow().pending.is_empty() {
        assert!(Instant::now() < patience, "the intent starves");
        // Far more often than the interval, so that the queue is never silent for as long as it.
        queue.send(Request::Term(1)).unwrap();
        std::thread::sleep(RESOLVE / 50);
        // The first answers come after the first try, which has failed by then.
        if answers.has_changed().unwrap() {
            world.lock().unwrap().failing = None;
        }
    }
    drop(queue);
    thread.join().unwrap();
    assert_eq!(world.lock().unwrap().changes.last(), Some(&(vm(1), Some(1.5))));
}

#[derive(Clone, Debug)]
enum Step {
    Send { number: u64, vm: u128, quarter_cores: u8 },
    Release { number: u64, vm: u128 },
    Acknowledge(u64),
    Kill(Point),
}

fn step() -> impl Strategy<Value = Step> {
    let point = prop::sample::select(vec![Point::BeforeIntent, Point::BeforeActuation, Point::AfterActuation]);
    prop_oneof![
        5 => (1..12_u64, 1..3_u128, 1..20_u8).prop_map(|(number, vm, quarter_cores)| Step::Send { number, vm, quarter_cores }),
        1 => (1..12_u64, 1..3_u128).prop_map(|(number, vm)| Step::Release { number, vm }),
        2 => (1..12_u64).prop_map(Step::Acknowledge),
        2 => point.prop_map(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Commands out of order, repeated, out of bounds, and kills at any point: limits only ever follow rising fences, and a VM that
    /// differs from its baseline has an undo record with that baseline.
    #[test]
    fn limits_follow_rising_fences_and_stay_undoable_whatever_happens(steps in prop::collection::vec(step(), 1..25)) {
        let (_folder, mut path, world) = host();
        world.lock().unwrap().limits.insert(vm(2), None);
        let mut executor_now = executor(&path, &world, false);
        let mut sent: BTreeMap<u64, Command> = BTreeMap::new();
        let mut generation_of_change: BTreeMap<VmId, u64> = BTreeMap::new();
        let mut kills = 0;
        for step in steps {
            let to_send = match step {
                Step::Send { number, vm, quarter_cores } => {
                    let action = Action::Set(quota(Some(f64::from(quarter_cores) / 4.0)));
                    Some(sent.entry(number).or_insert_with(|| command(number, vm, action)).clone())
                }
                Step::Release { number, vm } => Some(sent.entry(number).or_insert_with(|| command(number, vm, Action::Release)).clone()),
                Step::Acknowledge(number) => {
                    executor_now.handle(Request::Acknowledged(CommandId { term: 1, number })).unwrap();
                    None
                }
                Step::Kill(point) => {
                    world.lock().unwrap().crash = Some((point, path.clone()));
                    None
                }
            };
            let Some(command) = to_send else { continue };
            let changes_before = world.lock().unwrap().changes.len();
            send(&mut executor_now, &world, &command);
            let left = world.lock().unwrap().back_to_the_kill();
            if let Some(left) = left {
                drop(executor_now);
                kills += 1;
                path = path.with_file_name(format!("after-{kills}.redb"));
                std::fs::rename(left, &path).unwrap();
                executor_now = executor(&path, &world, false);
                prop_assert!(!executor_now.try_resolve());
            }
            let changed = world.lock().unwrap().changes.len() > changes_before;
            if changed {
                let last = generation_of_change.insert(command.vm, command.fence.generation);
                prop_assert!(last.unwrap_or(0) < command.fence.generation, "{:?} after {:?}", command.id, last);
            }
            for (vm, baseline) in [(vm(1), Some(2.0)), (vm(2), None)] {
                let undo = executor_now.ledger.undo(vm).unwrap();
                if world.lock().unwrap().limits[&vm] != baseline {
                    prop_assert_eq!(undo.map(|undo| undo.baselines), Some(vec![quota(baseline)]));
                }
            }
            prop_assert_eq!(executor_now.ledger.intents().unwrap(), []);
        }
    }
}
