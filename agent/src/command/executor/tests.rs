//! A host and its VMs as fakes that survive the executor, and the tests by theme.

mod away;
mod crash;
mod dirty_rates;
mod lives;
mod migrations;
mod obedience;
mod reconcile;
mod shadows;
mod steps;
mod thread;

use super::*;
use crate::actuate::migrate::{CopyRecord, News, Order};
use crate::actuate::shadow::{ShadowNews, Task};
use crate::command::clock::BootInstant;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, Fence, Means, Mode, VmId, VmTerms};
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
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
    /// What the mover was told to begin, and to abort.
    begun: Vec<Order>,
    aborted: Vec<VmId>,
    forgotten: Vec<VmId>,
    /// Of which VMs it was told that what is to be made of them elsewhere is written down.
    recorded: Vec<VmId>,
    /// What it has to tell.
    news: Vec<(VmId, News)>,
    /// What was begun of shadows, what has become of it, and how often it was looked for what they left.
    tasks: Vec<Task>,
    shadow_news: Vec<ShadowNews>,
    tidied: Vec<BTreeSet<VmId>>,
    given_up: Vec<VmId>,
    /// What is to be measured, and what came of it.
    measured: Vec<(CommandId, u8)>,
    measurements: Vec<(Command, OutcomeResult)>,
    terms: VmTerms,
    keepsakes: Vec<(VmId, String)>,
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

/// Moves VMs when the test says so.
struct PlayedMover {
    world: Shared,
    under_way: BTreeSet<VmId>,
}

impl Mover for PlayedMover {
    fn begin(&mut self, order: Order) -> std::io::Result<()> {
        self.under_way.insert(order.vm);
        self.world.lock().unwrap().begun.push(order);
        Ok(())
    }

    fn has(&self, vm: VmId) -> bool {
        self.under_way.contains(&vm)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    fn abort(&mut self, vm: VmId) {
        self.world.lock().unwrap().aborted.push(vm);
    }

    fn recorded(&mut self, vm: VmId) {
        self.world.lock().unwrap().recorded.push(vm);
    }

    fn forget_keepsake(&mut self, vm: VmId) {
        self.world.lock().unwrap().forgotten.push(vm);
    }

    fn news(&mut self) -> Vec<(VmId, News)> {
        let all = std::mem::take(&mut self.world.lock().unwrap().news);
        for (vm, news) in &all {
            if matches!(news, News::Ended(_)) {
                self.under_way.remove(vm);
            }
        }
        all
    }
}

/// Sees to shadows when the test says so.
struct PlayedShadower {
    world: Shared,
    under_way: BTreeSet<CommandId>,
}

impl Shadower for PlayedShadower {
    fn begin(&mut self, task: Task) -> std::io::Result<()> {
        self.under_way.insert(task.command.id);
        self.world.lock().unwrap().tasks.push(task);
        Ok(())
    }

    fn has(&self, id: CommandId) -> bool {
        self.under_way.contains(&id)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    fn give_up_copies(&mut self, of: VmId) {
        self.world.lock().unwrap().given_up.push(of);
    }

    fn tidy(&mut self, under_way: BTreeSet<VmId>) -> std::io::Result<()> {
        self.world.lock().unwrap().tidied.push(under_way);
        Ok(())
    }

    fn news(&mut self) -> Vec<ShadowNews> {
        let all = std::mem::take(&mut self.world.lock().unwrap().shadow_news);
        for news in &all {
            if let ShadowNews::Ended(command, _) = news {
                self.under_way.remove(&command.id);
            }
        }
        all
    }
}

/// Measures what the test says.
struct PlayedMeter {
    world: Shared,
    under_way: BTreeSet<CommandId>,
}

impl DirtyRateMeter for PlayedMeter {
    fn begin(&mut self, command: &Command, period_s: u8) -> std::io::Result<()> {
        if self.under_way.len() >= 2 {
            return Err(std::io::Error::other("too many"));
        }
        self.under_way.insert(command.id);
        self.world.lock().unwrap().measured.push((command.id, period_s));
        Ok(())
    }

    fn has(&self, id: CommandId) -> bool {
        self.under_way.contains(&id)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    fn news(&mut self) -> Vec<(Command, OutcomeResult)> {
        let all = std::mem::take(&mut self.world.lock().unwrap().measurements);
        self.under_way.retain(|id| all.iter().all(|(command, _)| command.id != *id));
        all
    }
}

impl VmDirectory for Host {
    fn keepsakes(&self) -> Vec<(VmId, String)> {
        self.0.lock().unwrap().keepsakes.clone()
    }

    fn terms(&self, _: VmId) -> Option<VmTerms> {
        Some(self.0.lock().unwrap().terms.clone())
    }

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
        beside: Beside {
            mover: Box::new(PlayedMover { world: Arc::clone(world), under_way: BTreeSet::new() }),
            shadower: Box::new(PlayedShadower { world: Arc::clone(world), under_way: BTreeSet::new() }),
            meter: Box::new(PlayedMeter { world: Arc::clone(world), under_way: BTreeSet::new() }),
        },
        policy: Policy {
            host: HostId::new("h1").unwrap(),
            migrations_most: 1,
            shadows_max: 2,
            copies: true,
            bounds,
            allowed: Allowed::default(),
            dry_run,
        },
        clock: Box::new(move || now(&clock_world)),
        metrics: Metrics::register(&mut Registry::default()),
        presence: BrainPresence::gone_since(now(world).boot),
        adopted: BTreeMap::new(),
        tending: None,
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
