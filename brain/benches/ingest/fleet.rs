//! Hosts and VMs that are not there: what they would report, window by window, and what a command changes about them.
//!
//! Half of the VMs follow a season of two hours, the others a level with noise. A share of them surges in each window: such a
//! VM wants more than its quota gives, is throttled, and goes on wanting it until some windows later. The numbers are drawn from the VM's
//! and the window's number, so that two runs see the same fleet.

use std::f64::consts::TAU;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    AgentEpoch, Allocation, CpuBounds, CpuSource, CpuWindow, CulpritShare, Culprits, DiskFlow, DiskRest, DiskShare,
    DiskWindow, ExitReason, ExitShare, GuestDisk, GuestMemory, Hello, HostFacts, HostId, HostWindow, InterfaceWindow,
    KeptCopies, Labels, Losses, MeanMax, Means, MemoryBounds, MemoryDemand, MemoryWindow, ProcessIo, QueueWindow,
    ReclaimStalls, Report, Sequence, Traffic, VERSIONS, VmId, VmState, VmTerms, VmWindow, WaitHistogram, Who,
};
use uuid::Uuid;

/// vCPUs of each VM.
const VCPUS: u32 = 4;
/// The quota that a VM has when it is first seen.
const QUOTA_CORES: f64 = 1.0;
/// A surge wants this much of the quota.
const SURGE: f64 = 1.3;
/// Windows that a surge lasts.
const SURGE_WINDOWS: u32 = 3;
/// The season's length.
const SEASON: Duration = Duration::from_secs(2 * 3600);

/// One VM.
struct Vm {
    id: VmId,
    name: String,
    base_cores: f64,
    season_share: f64,
    phase: f64,
    quota_cores: f64,
    surge_cores: f64,
    surge_windows: u32,
}

/// A host and its VMs, in the order of their ids.
pub(crate) struct Host {
    pub(crate) id: HostId,
    number: u64,
    epoch: AgentEpoch,
    sequence: u64,
    vms: Vec<Vm>,
}

/// A report and the VMs that begin to surge in it.
pub(crate) struct Window {
    pub(crate) report: Report,
    pub(crate) surging: Vec<VmId>,
}

impl Host {
    /// Host number `number` with so many VMs, none of them on any other host.
    pub(crate) fn new(number: usize, vms: usize, epoch: AgentEpoch) -> Self {
        let id = HostId::new(format!("host-{number}")).unwrap_or_else(|error| panic!("{error}"));
        let number = number as u64;
        let mut vms: Vec<Vm> = (0..vms as u64).map(|vm| Vm::new(number << 20 | vm)).collect();
        vms.sort_by_key(|vm| vm.id);
        Self { id, number, epoch, sequence: 0, vms }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            versions: VERSIONS,
            host: self.id.clone(),
            epoch: self.epoch,
            fence_highest: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: HostFacts {
                capacity_cores: 256.0,
                memory_bytes: 1 << 40,
                kernel: "6.1.0".to_owned(),
                hypervisor: "QEMU".to_owned(),
                cpu_bounds: CpuBounds { floor_cores: 0.05, ceiling_cores: f64::from(VCPUS) },
                memory_bounds: MemoryBounds::default(),
                means: vec![Means::CpuQuota],
                migration: None,
                zone: None,
                numa: Vec::new(),
                labels: Labels::default(),
                shadows: None,
                copies: KeptCopies::default(),
                dry_run: false,
                cpu_source: CpuSource::TaskStorage,
            },
        }
    }

    /// What the host measured from `start` on; `surge_share` of its VMs begin to surge.
    pub(crate) fn window(&mut self, start: Timestamp, length: Duration, surge_share: f64) -> Window {
        self.sequence += 1;
        let mut surging = Vec::new();
        let (sequence, host) = (self.sequence, self.number);
        let windows = self.vms.iter_mut().enumerate().map(|(index, vm)| {
            let draw = mix(host << 40 ^ (index as u64) << 20 ^ sequence);
            if vm.begins_to_surge(share(draw), surge_share) {
                surging.push(vm.id);
            }
            vm.window(start, share(mix(draw)))
        });
        let vms: Vec<VmWindow> = windows.collect();
        let cpu_cores = vms.iter().filter_map(|vm| vm.cpu).map(|cpu| cpu.demand_low.mean).sum();
        let report = Report {
            host: self.id.clone(),
            epoch: self.epoch,
            sequence: Sequence(self.sequence),
            start,
            window_ms: u32::try_from(length.as_millis()).unwrap_or(u32::MAX),
            host_window: HostWindow {
                cpu_cores: same(cpu_cores),
                memory_available_bytes: 1 << 38,
                disk_rest: Some(DiskRest { write_bytes_per_s: 8e6, ..DiskRest::default() }),
                probes_shed: Vec::new(),
            },
            vms,
            inventory_complete: true,
            losses: Losses::default(),
        };
        Window { report, surging }
    }

    /// Brings a VM's quota to `cores`; returns what it was, or `None` if the VM is not here.
    pub(crate) fn set_quota(&mut self, vm: VmId, cores: f64) -> Option<f64> {
        let index = self.vms.binary_search_by_key(&vm, |vm| vm.id).ok()?;
        Some(std::mem::replace(&mut self.vms[index].quota_cores, cores))
    }
}

impl Vm {
    fn new(number: u64) -> Self {
        let (one, two) = (mix(number), mix(!number));
        Self {
            // As libvirt's are: without order.
            id: VmId(Uuid::from_u64_pair(one, two)),
            name: format!("guest-{number:x}"),
            base_cores: 0.1 + 0.3 * share(one),
            season_share: if two % 2 == 0 { 0.5 } else { 0.0 },
            phase: TAU * share(two),
            quota_cores: QUOTA_CORES,
            surge_cores: 0.0,
            surge_windows: 0,
        }
    }

    fn begins_to_surge(&mut self, draw: f64, surge_share: f64) -> bool {
        self.surge_windows = self.surge_windows.saturating_sub(1);
        let wanted = self.quota_cores * SURGE;
        if self.surge_windows > 0 || draw >= surge_share || wanted > f64::from(VCPUS) {
            return false;
        }
        (self.surge_cores, self.surge_windows) = (wanted, SURGE_WINDOWS);
        true
    }

    fn window(&self, start: Timestamp, noise: f64) -> VmWindow {
        let turn = (start.unix_ms() as f64 / SEASON.as_millis() as f64) * TAU + self.phase;
        let usual = self.base_cores * (1.0 + self.season_share * turn.sin() + 0.1 * (noise - 0.5));
        let wanted = if self.surge_windows > 0 { self.surge_cores } else { usual };
        let run = wanted.min(self.quota_cores);
        let throttled = (wanted - run) / f64::from(VCPUS);
        let mut waits = [0; 32];
        // A log-normal kind of bump, some tens of thousands of waits in ten seconds.
        waits[8..20].copy_from_slice(&[3, 40, 210, 900, 2_400, 5_100, 7_700, 5_000, 1_300, 220, 31, 4]);
        VmWindow {
            vm: self.id,
            name: self.name.clone(),
            state: VmState::Running,
            cpu: Some(CpuWindow {
                covered: 1.0,
                demand_low: same(run),
                demand_high: same(wanted),
                usage: same(run),
                throttled: same(throttled),
                wakeups_per_s: Some(2_290.0),
                preemptions_per_s: Some(12.5),
                wait: Some(WaitHistogram(waits)),
            }),
            memory: Some(MemoryWindow {
                resident_bytes: 3 << 30,
                balloon_bytes: Some(4 << 30),
                guest: Some(GuestMemory {
                    total_bytes: 4 << 30,
                    unused_bytes: 1 << 29,
                    usable_bytes: Some(3 << 29),
                    ..GuestMemory::default()
                }),
                demand: Some(MemoryDemand::known(5 << 29)),
                reclaim: Some(ReclaimStalls::default()),
                ..MemoryWindow::default()
            }),
            interfaces: vec![InterfaceWindow {
                device: "vnet12".into(),
                received: Traffic { bytes_per_s: same(3e5), packets_per_s: 400.0, dropped_per_s: 0.0 },
                sent: Traffic { bytes_per_s: same(9e5), packets_per_s: 700.0, dropped_per_s: 0.0 },
                drops: Some(Vec::new()),
                queue: Some(QueueWindow::default()),
            }],
            disk: Some(DiskWindow {
                write: DiskFlow {
                    bytes_per_s: same(2e6),
                    operations_per_s: 120.0,
                    device_ms: Some(0.8),
                    queued_ms: Some(0.01),
                },
                queue_depth: 0.1,
                process: Some(ProcessIo { read_bytes_per_s: 0.0, write_bytes_per_s: 2e6 }),
                disks: vec![DiskShare { name: "nvme0n1".into(), write_bytes_per_s: 2e6, ..DiskShare::default() }],
                guest: vec![GuestDisk { target: "vda".into(), write_bytes_per_s: 2e6, ..GuestDisk::default() }],
                ..DiskWindow::default()
            }),
            allocation: Allocation {
                quota_cores: Some(self.quota_cores),
                vcpus: VCPUS,
                vcpus_max: VCPUS,
                memory_bytes: 4 << 30,
            },
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: None,
            exits: Some(vec![ExitShare { reason: ExitReason::Halt, exits_per_s: 800.0, away_vcpus: 1.5 }]),
            culprits: Some(Culprits {
                own_quota_cores: Some((wanted - run) as f32),
                named: vec![CulpritShare { who: Who::Task("kworker".into()), cores: 0.002 }],
                ..Culprits::default()
            }),
        }
    }
}

fn same(value: f64) -> MeanMax {
    MeanMax { mean: value, max: value }
}

/// 0..1 of any bits.
fn share(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finaliser of SplitMix64 (Steele and others, 2014).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
