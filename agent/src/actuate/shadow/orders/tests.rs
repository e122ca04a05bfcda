//! Orders on a host that the test plays, with real files.

mod copies;
mod resizes;

use super::*;
use crate::actuate::shadow::host::Backups;
use crate::config::ShadowConfig;
use crate::host::bridge::{Bridge, Port};
use crate::host::libvirt::ShadowLimits;
use crate::host::libvirt::backup::BackupJob;
use crate::host::machine::Machine;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Blueprint, Boot, CPU_WEIGHT_DEFAULT, Command, CommandId, DiskBlueprint, Fence, HostId, ShadowSize,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// What libvirt has.
#[derive(Default)]
struct World {
    domains: BTreeMap<VmId, FoundShadow>,
    names: Vec<String>,
    /// What a domain gets for a port when it starts.
    isolates: bool,
    bridge: Bridge,
    network: Option<String>,
    networks_removed: u32,
    /// What is not done, once.
    fails: Option<&'static str>,
    paced: Vec<(VmId, String)>,
    /// What a backup writes.
    backup: Option<Vec<PathBuf>>,
    /// Guests' drivers do not follow their balloons' targets.
    is_rigid: bool,
    /// How often something was changed on a shadow.
    changes: u32,
    /// How long libvirt takes to say what a VM is.
    find_takes: Duration,
}

#[derive(Clone)]
struct Played(Arc<Mutex<World>>);

impl Played {
    fn passes(&self, what: &'static str) -> Result<(), HypervisorError> {
        let fails = self.0.lock().unwrap().fails.take_if(|fails| *fails == what).is_some();
        let error = || HypervisorError::Call { what, message: "no".into(), retryable: true };
        if fails { Err(error()) } else { Ok(()) }
    }
}

impl Here for Played {
    fn find(&mut self, vm: VmId) -> Result<FoundShadow, HypervisorError> {
        self.passes("find")?;
        std::thread::sleep(self.0.lock().unwrap().find_takes);
        Ok(self.0.lock().unwrap().domains.get(&vm).cloned().unwrap_or(FoundShadow::Absent))
    }

    fn has_name(&mut self, name: &str) -> Result<bool, HypervisorError> {
        Ok(self.0.lock().unwrap().names.iter().any(|known| known == name))
    }

    fn shadows(&mut self) -> Result<Vec<ShadowDomain>, HypervisorError> {
        let shadow = |found: &FoundShadow| match found {
            FoundShadow::Shadow { shadow, .. } => Some(shadow.clone()),
            _ => None,
        };
        Ok(self.0.lock().unwrap().domains.values().filter_map(shadow).collect())
    }

    fn define(&mut self, xml: &str) -> Result<(), HypervisorError> {
        self.passes("define")?;
        let shadow = crate::host::libvirt::parse_shadow(xml).expect("what is defined is a shadow");
        self.0.lock().unwrap().domains.insert(shadow.vm, FoundShadow::Shadow { shadow, is_active: false });
        Ok(())
    }

    fn start(&mut self, vm: VmId) -> Result<(), HypervisorError> {
        self.passes("start")?;
        let mut world = self.0.lock().unwrap();
        let is_isolated = world.isolates;
        if let Some(FoundShadow::Shadow { shadow, is_active }) = world.domains.get_mut(&vm) {
            *is_active = true;
            shadow.taps = vec!["vnet1".to_owned()];
        }
        world.bridge.ports.push(Port { device: "vnet1".to_owned(), is_isolated });
        Ok(())
    }

    fn resize(&mut self, vm: VmId, _: bool, from: &ShadowLimits, to: &ShadowLimits) -> Result<(), HypervisorError> {
        self.passes("resize")?;
        let change = |set: fn(&mut ShadowLimits, &ShadowLimits)| {
            let mut world = self.0.lock().unwrap();
            let Some(FoundShadow::Shadow { shadow, .. }) = world.domains.get_mut(&vm) else { panic!("no shadow") };
            set(&mut shadow.limits, to);
            world.changes += 1;
        };
        change(|limits, to| (limits.quota_us, limits.shares) = (to.quota_us, to.shares));
        self.passes("limit")?;
        change(|limits, to| (limits.disks, limits.interfaces) = (to.disks.clone(), to.interfaces.clone()));
        let is_rigid = self.0.lock().unwrap().is_rigid;
        if from.memory_bytes != to.memory_bytes && !is_rigid {
            change(|limits, to| limits.memory_bytes = to.memory_bytes);
        }
        Ok(())
    }

    fn ballooned(&mut self, vm: VmId, _: u64) -> Result<u64, HypervisorError> {
        match self.0.lock().unwrap().domains.get(&vm) {
            Some(FoundShadow::Shadow { shadow, .. }) => Ok(shadow.limits.memory_bytes),
            _ => Err(HypervisorError::NoSuchDomain(vm)),
        }
    }

    fn remove(&mut self, vm: VmId) -> Result<bool, HypervisorError> {
        self.passes("remove")?;
        let mut world = self.0.lock().unwrap();
        if world.domains.get(&vm) == Some(&FoundShadow::Other) {
            return Ok(false);
        }
        world.domains.remove(&vm);
        world.bridge.ports.retain(|port| port.device != "vnet1");
        Ok(true)
    }

    fn network(&mut self) -> Result<Result<(), String>, HypervisorError> {
        Ok(self.0.lock().unwrap().network.clone().map_or(Ok(()), Err))
    }

    fn remove_network(&mut self) -> Result<(), HypervisorError> {
        self.0.lock().unwrap().networks_removed += 1;
        Ok(())
    }

    fn bridge(&mut self) -> std::io::Result<Bridge> {
        Ok(self.0.lock().unwrap().bridge.clone())
    }

    fn available_bytes(&mut self) -> u64 {
        200 * MIB
    }

    fn shares(&self, weight: u32) -> u64 {
        weight.into()
    }
}

impl Backups for Played {
    fn describe(&mut self, vm: VmId) -> Result<Result<Blueprint, Unshadowable>, HypervisorError> {
        match vm {
            vm if vm == id(1) => {
                let mut blueprint = spec(0.1, MIB).blueprint;
                let (device, bus) = ("vda".to_owned(), "virtio".to_owned());
                blueprint.disks = vec![DiskBlueprint { device, bus, size_bytes: MIB, base: Base::Copyable }];
                Ok(Ok(blueprint))
            }
            _ => Err(HypervisorError::NoSuchDomain(vm)),
        }
    }

    fn backup_job(&mut self, _: VmId) -> Result<BackupJob, HypervisorError> {
        Ok(self.0.lock().unwrap().backup.clone().map_or(BackupJob::None, |targets| BackupJob::Backup {
            targets,
            done_bytes: 0,
            total_bytes: 0,
        }))
    }

    fn begin_backup(&mut self, _: VmId, _: &[(String, PathBuf)]) -> Result<(), HypervisorError> {
        panic!("no order on this thread copies disks")
    }

    fn set_backup_speed(&mut self, _: VmId, _: &str, _: u64) -> Result<bool, HypervisorError> {
        panic!("no order on this thread copies disks")
    }

    fn last_backup(&mut self, _: VmId) -> Result<Result<(), String>, HypervisorError> {
        panic!("no order on this thread copies disks")
    }

    fn abort_job(&mut self, _: VmId) -> Result<(), HypervisorError> {
        self.0.lock().unwrap().backup = None;
        Ok(())
    }
}

impl Pacing for Played {
    fn pace(&mut self, shadow: VmId, socket: &std::path::Path, _: &Profile) -> Result<(), String> {
        self.0.lock().unwrap().paced.push((shadow, socket.to_string_lossy().into_owned()));
        Ok(())
    }
}

struct Bench {
    folder: tempfile::TempDir,
    world: Arc<Mutex<World>>,
    orders: Orders<Played>,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let world = Arc::new(Mutex::new(World { isolates: true, ..World::default() }));
    let shadow = ShadowConfig {
        shadows_max: 2,
        share_max: 0.25,
        directory: folder.path().join("s"),
        image_paths: vec![folder.path().join("images")],
        copies_directory: Some(folder.path().join("c")),
        received_directory: Some(folder.path().join("r")),
        received_bytes_max: MIB,
        ..ShadowConfig::default()
    };
    let config = ShadowerConfig {
        host: HostId::new("h1").unwrap(),
        uri: String::new(),
        shadow,
        capacity_cores: 2.0,
        memory_bytes: 1024 * MIB,
        reserve_bytes: 64 * MIB,
        machine: Machine::default(),
    };
    let pacing: Box<dyn Pacing> = Box::new(Played(Arc::clone(&world)));
    Bench { orders: Orders::new(Played(Arc::clone(&world)), config, Busy::default(), Some(pacing)), folder, world }
}

fn id(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn spec(cpu_cores: f64, memory_bytes: u64) -> Box<ShadowSpec> {
    let size = ShadowSize {
        cpu_cores,
        vcpus: 1,
        cpu_weight: 10,
        memory_bytes,
        disk_bytes_per_s: None,
        network_bytes_per_s: None,
    };
    let blueprint = Blueprint {
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
        interfaces: vec!["virtio".into()],
    };
    Box::new(ShadowSpec { of: id(1), blueprint, size })
}

fn copy() -> ShadowOrder {
    ShadowOrder::Copy(spec(0.1, 64 * MIB))
}

fn task(vm: u128, order: ShadowOrder, time_left: Duration) -> Task {
    let command = Command {
        id: CommandId { term: 1, number: 1 },
        vm: id(vm),
        action: Action::Shadow(order),
        fence: Fence::default(),
        time_to_live_ms: 1_000,
        reason: "it is new".into(),
    };
    Task { command, at: Timestamp::from_unix_ms(0), time_left, waited: Duration::ZERO }
}

impl Bench {
    fn left(&mut self, vm: u128, order: ShadowOrder, time_left: Duration) -> OutcomeResult {
        let task = task(vm, order, time_left);
        // A while ago: what has no time left is late for sure.
        let begun = Instant::now().checked_sub(Duration::from_millis(20)).unwrap();
        self.orders.carry_out(&task, begun)
    }

    fn order(&mut self, vm: u128, order: ShadowOrder) -> OutcomeResult {
        self.left(vm, order, Duration::from_secs(60))
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn folders(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("s")).map_or(0, Iterator::count)
    }
}

fn is_late(result: &OutcomeResult) -> bool {
    matches!(result, OutcomeResult::Refused(RefusedCommand::Expired { .. }))
}

fn is_copied(result: &OutcomeResult) -> bool {
    matches!(result, OutcomeResult::Shadow(ShadowDone::Copied { .. }))
}

fn unshadowable(why: Unshadowable) -> OutcomeResult {
    OutcomeResult::Unshadowable(why)
}

fn started() -> OutcomeResult {
    OutcomeResult::Shadow(ShadowDone::Started { took_us: 0 })
}

#[test]
fn each_order_done_twice_is_done_once_and_in_the_end_nothing_is_left() {
    let mut bench = bench();
    for _ in 0..2 {
        let copied = bench.order(9, copy());
        assert!(is_copied(&copied), "{copied:?}");
    }
    assert_eq!((bench.folders(), bench.world().domains.len()), (1, 1));
    for _ in 0..2 {
        assert_eq!(bench.order(9, ShadowOrder::Start), started());
    }
    assert_eq!(bench.order(9, ShadowOrder::Pace(Profile::default())), OutcomeResult::Shadow(ShadowDone::Paced));
    let socket = bench.folder.path().join(format!("s/{}/pacer.sock", id(9)));
    assert_eq!(bench.world().paced, [(id(9), socket.to_string_lossy().into_owned())]);
    for _ in 0..2 {
        assert_eq!(bench.order(9, ShadowOrder::Retire), OutcomeResult::Shadow(ShadowDone::Retired));
    }
    assert_eq!((bench.folders(), bench.world().domains.len()), (0, 0));
    assert_eq!(bench.world().networks_removed, 2);
}

#[test]
fn a_production_vm_never_becomes_a_shadow_and_is_never_retired() {
    let mut bench = bench();
    bench.world().domains.insert(id(1), FoundShadow::Other);
    assert_eq!(bench.order(1, ShadowOrder::Retire), unshadowable(Unshadowable::NoShadow));
    assert_eq!(bench.order(1, ShadowOrder::Start), unshadowable(Unshadowable::NoShadow));
    assert_eq!(bench.order(1, ShadowOrder::Pace(Profile::default())), unshadowable(Unshadowable::NoShadow));
    assert_eq!(bench.order(1, copy()), unshadowable(Unshadowable::Taken));
    bench.world().domains.clear();
    // Not even where it does not run.
    assert_eq!(bench.order(1, copy()), unshadowable(Unshadowable::Taken));
    bench.world().names.push("web.shadow".to_owned());
    assert_eq!(bench.order(9, copy()), unshadowable(Unshadowable::Taken));
    assert_eq!(bench.folders(), 0);
}

#[test]
fn a_copy_that_fails_anywhere_leaves_nothing() {
    let mut bench = bench();
    bench.world().fails = Some("define");
    let failed = bench.order(9, copy());
    assert!(matches!(failed, OutcomeResult::Failed { retryable: true, .. }), "{failed:?}");
    assert_eq!((bench.folders(), bench.world().domains.len()), (0, 0));
    let mut bound = spec(0.1, MIB);
    bound.blueprint.boot = Boot::Kernel { kernel: "/etc/shadow".into(), initrd: None, command_line: String::new() };
    let refused = bench.order(9, ShadowOrder::Copy(bound));
    assert!(matches!(refused, OutcomeResult::Unshadowable(Unshadowable::Definition(_))), "{refused:?}");
    assert_eq!(bench.folders(), 0);
}

#[test]
fn shadows_have_their_share_of_the_host_and_no_more() {
    let mut bench = bench();
    let no_room = |result: OutcomeResult| matches!(result, OutcomeResult::Unshadowable(Unshadowable::NoRoom(_)));
    assert!(no_room(bench.order(9, ShadowOrder::Copy(spec(0.6, MIB)))), "a quarter of 2 cores");
    assert!(no_room(bench.order(9, ShadowOrder::Copy(spec(0.1, 257 * MIB)))), "a quarter of the memory");
    assert!(no_room(bench.order(9, ShadowOrder::Copy(spec(0.1, 137 * MIB)))), "the reserve");
    let named = |name: &str, cores| {
        let mut spec = spec(cores, 64 * MIB);
        spec.blueprint.name = name.to_owned();
        ShadowOrder::Copy(spec)
    };
    assert!(is_copied(&bench.order(9, named("a", 0.3))));
    assert!(no_room(bench.order(10, named("b", 0.3))), "both together");
    assert!(is_copied(&bench.order(10, named("b", 0.2))));
    assert!(no_room(bench.order(11, named("c", 0.01))), "two are the most");
    assert!(is_copied(&bench.order(9, named("a", 0.3))), "what is there is there");
}

#[test]
fn a_shadow_runs_only_where_it_reaches_nothing() {
    let mut bench = bench();
    bench.order(9, copy());
    let isolated =
        |result: &OutcomeResult| !matches!(result, OutcomeResult::Unshadowable(Unshadowable::NotIsolated(_)));
    bench.world().network = Some("it has <ip>".to_owned());
    assert!(!isolated(&bench.order(9, ShadowOrder::Start)));
    bench.world().network = None;
    bench.world().bridge.has_address = true;
    assert!(!isolated(&bench.order(9, ShadowOrder::Start)));
    bench.world().bridge =
        Bridge { ports: vec![Port { device: "eth0".into(), is_isolated: true }], has_address: false };
    assert!(!isolated(&bench.order(9, ShadowOrder::Start)));
    assert_eq!(bench.world().domains.len(), 1, "it was not started, and stays");
    bench.world().bridge = Bridge::default();
    // A kernel that cannot isolate ports is found out when there is one.
    bench.world().isolates = false;
    assert!(!isolated(&bench.order(9, ShadowOrder::Start)));
    assert_eq!((bench.world().domains.len(), bench.folders()), (0, 0), "it ran, and is retired");
}

#[test]
fn what_comes_too_late_is_not_begun_and_what_was_begun_of_it_is_undone() {
    let mut bench = bench();
    bench.orders.files.make(id(9), &spec(0.1, MIB).blueprint).unwrap();
    assert!(is_late(&bench.left(9, copy(), Duration::ZERO)));
    assert_eq!(bench.folders(), 0);
    assert!(is_copied(&bench.order(9, copy())));
    assert!(is_copied(&bench.left(9, copy(), Duration::ZERO)), "it was done in time");
    assert!(is_late(&bench.left(9, ShadowOrder::Start, Duration::ZERO)));
    assert_eq!(bench.order(9, ShadowOrder::Start), started());
    assert_eq!(bench.left(9, ShadowOrder::Start, Duration::ZERO), started());
    assert!(is_late(&bench.left(9, ShadowOrder::Pace(Profile::default()), Duration::ZERO)));
    assert_eq!(bench.left(9, ShadowOrder::Retire, Duration::ZERO), OutcomeResult::Shadow(ShadowDone::Retired));
}

#[test]
fn without_a_way_to_pacers_no_shadow_is_paced() {
    let mut bench = bench();
    bench.orders.pacing = None;
    bench.order(9, copy());
    assert_eq!(bench.order(9, ShadowOrder::Pace(Profile::default())), unshadowable(Unshadowable::NoShadow));
    bench.order(9, ShadowOrder::Start);
    let error = "this agent has no pacer link".to_owned();
    let paced = bench.order(9, ShadowOrder::Pace(Profile::default()));
    assert_eq!(paced, OutcomeResult::Failed { error, retryable: false });
}

#[test]
fn what_nobody_knows_of_is_removed_and_nothing_else() {
    let mut bench = bench();
    let none = BTreeSet::new();
    bench.orders.files.make(id(7), &spec(0.1, MIB).blueprint).unwrap();
    assert_eq!(bench.orders.tidy(&BTreeSet::from([id(7)])), 0, "an order is under way");
    // A libvirt that does not answer has not said that there is no domain.
    bench.world().fails = Some("find");
    assert_eq!((bench.orders.tidy(&none), bench.folders()), (0, 1));
    assert_eq!((bench.orders.tidy(&none), bench.folders()), (1, 0));
    bench.order(9, copy());
    bench.world().domains.insert(id(1), FoundShadow::Other);
    assert_eq!(bench.orders.tidy(&none), 0);
    bench.orders.files.remove(id(9)).unwrap();
    assert_eq!(bench.orders.tidy(&none), 1);
    assert_eq!(bench.world().domains.keys().collect::<Vec<_>>(), [&id(1)]);
}
