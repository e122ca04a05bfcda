//! The fuzzer's first corpus: what well-behaved peers send. Made from the types rather than kept as files, so that it never falls behind
//! them.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{
    Action, AgentEpoch, AgentMessage, Allocation, Base, Blueprint, Boot, BrainMessage, CPU_WEIGHT_DEFAULT, CaPin,
    Command, CommandId, Copied, CpuBounds, CpuSource, CpuWindow, DiskBlueprint, DiskCopy, DiskShare, DiskWindow,
    EnrolReply, EnrolRequest, ExitReason, ExitShare, Fence, GuestDisk, GuestMemory, Hello, HostFacts, HostId,
    HostWindow, Imaged, Imaging, Immovable, KeptCopies, LocalCause, LocalStorage, Losses, MeanMax, Means, MemoryBounds,
    MemoryDemand, MemoryWindow, Migration, MigrationFacts, MigrationProgress, Moved, NumaNode, Origin, Outcome,
    OutcomeResult, ProcessIo, Profile, ProfileStep, Receiving, ReclaimStalls, RefusalCode, RefusedCommand, Report,
    ReportAck, Sequence, Setting, ShadowDone, ShadowFacts, ShadowOrder, ShadowSize, ShadowSpec, Token, TokenId,
    TokenSecret, Unshadowable, VERSIONS, VmId, VmState, VmTerms, VmWindow, Welcome, Whereabouts,
};
use serde::Serialize;
use std::path::Path;
use std::{fs, io};

/// The brain's clock in the targets.
const NOW_UNIX_MS: u64 = 1_700_000_000_000;

/// What pacers and agents say, behind the size of the pieces in which it comes.
const PACER_LINES: [&str; 3] = [
    "@gnomon-pacer/1 profile valid_ms=60000 after_ms=0 cpu_cores=0.5 memory_bytes=67108864 network_burst=3 after_ms=30000 cpu_cores=0.9\n",
    "\u{7}gnomon-pacer/1 status refused=0 left_ms=59000 wanted.cpu_cores=0.5 made.cpu_cores=0.499 made.disk_read_bytes_per_s=4096\n",
    "\u{1}gnomon-pacer/1 error refused=1 why=not a line of gnomon-pacer/1\n",
];

/// Writes `FOLDER/TARGET/seed-N` for every target.
pub(crate) fn write_all(folder: &Path) -> io::Result<()> {
    let (agent, brain) = (agent_messages(), brain_messages());
    let frames: Vec<_> = agent.iter().map(framed).chain(brain.iter().map(framed)).collect();
    let stream = frames.concat();
    write(folder, "frame", frames.into_iter().chain([stream]))?;
    write(folder, "hello", agent.iter().map(payload))?;
    write(folder, "command", brain.iter().map(payload))?;
    let ack = ReportAck { epoch: AgentEpoch(1_700_000_000), sequence: Sequence(7) };
    let token = TokenId(7_u64.to_be_bytes());
    let request = EnrolRequest { token, secret: TokenSecret([7; 16]), host: host(), request: vec![0x30, 0x82] };
    let issued = EnrolReply::Issued { certificate: "PEM".to_owned(), ca: "PEM".to_owned() };
    let text = Token { ca: CaPin([7; 32]), id: token, secret: TokenSecret([7; 16]), host: host() }.to_string();
    let message = |report: &Report| frame::encode_wide(report).expect("a seed fits a message");
    // Of a recording: what a frame holds before it is deflated, and as a block that is stored as it is.
    let stored = |bytes: Vec<u8>| {
        let length = u16::try_from(bytes.len()).expect("a seed fits a block");
        [&[1], &length.to_le_bytes()[..], &(!length).to_le_bytes(), &bytes].concat()
    };
    write(folder, "recording", [message(&report(1)), stored(message(&report(0))), stored(message(&report(3)))])?;
    write(folder, "pacer", PACER_LINES.map(Vec::from))?;
    write(folder, "enrol", [payload(&request), payload(&issued), text.into_bytes()])?;
    write(folder, "report", [payload(&report(0)), payload(&report(3)), payload(&ack)])
}

fn write(folder: &Path, target: &str, seeds: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    let folder = folder.join(target);
    fs::create_dir_all(&folder)?;
    seeds.into_iter().enumerate().try_for_each(|(number, seed)| fs::write(folder.join(format!("seed-{number}")), seed))
}

fn framed<T: Serialize>(message: &T) -> Vec<u8> {
    frame::encode(message).expect("a seed fits a frame")
}

fn payload<T: Serialize>(message: &T) -> Vec<u8> {
    framed(message).split_off(PREFIX_BYTES)
}

fn host() -> HostId {
    HostId::new("a").expect("a legal name")
}

fn vm(number: u8) -> VmId {
    format!("00000000-0000-4000-8000-0000000000{number:02x}").parse().expect("a UUID")
}

fn now() -> Timestamp {
    Timestamp::from_unix_ms(NOW_UNIX_MS)
}

fn facts() -> HostFacts {
    HostFacts {
        capacity_cores: 8.0,
        memory_bytes: 16 << 30,
        kernel: "6.1".to_owned(),
        hypervisor: "QEMU".to_owned(),
        cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 8.0 },
        memory_bounds: MemoryBounds::default(),
        means: Means::ALL.to_vec(),
        cpu_source: CpuSource::TaskStorage,
        migration: Some(MigrationFacts { uri: "qemu+tls://a/system".to_owned(), copy_bytes_max: 1 << 40 }),
        zone: Some("room-1".to_owned()),
        numa: vec![NumaNode { node: 0, cpus: 8, memory_bytes: 16 << 30 }],
        labels: "disk=nvme,room=7".parse().expect("legal labels"),
        shadows: Some(ShadowFacts { shadows_max: 4, share_max: 0.25, receives: Some(Box::new(receiving())) }),
        copies: KeptCopies { made: Some(vec![vm(2)]), received: Some(vec![vm(3)]) },
        dry_run: false,
    }
}

fn receiving() -> Receiving {
    let (uri, directory) = ("qemu+tls://h2/system".to_owned(), "/srv/received".to_owned());
    Receiving { uri, directory, owner: 107, group: 107, bytes_max: 100 << 30 }
}

fn disk_copy() -> DiskCopy {
    DiskCopy { path: "/copies/1/vda.qcow2".to_owned(), bytes: 1 << 30, sha256: "0f".repeat(32) }
}

/// A VM that boots by UEFI and has a disk on an image.
fn blueprint() -> Blueprint {
    let base = Base::Image { path: "/images/debian.qcow2".to_owned(), format: "qcow2".to_owned() };
    let disk = |device: &str, base| DiskBlueprint {
        device: device.to_owned(),
        bus: "virtio".to_owned(),
        size_bytes: 10 << 30,
        base,
    };
    Blueprint {
        name: "web".to_owned(),
        kvm: true,
        arch: "x86_64".to_owned(),
        machine: "pc-q35-7.2".to_owned(),
        cpu_model: Some("host-model".to_owned()),
        boot: Boot::Uefi { loader: "/firmware/code.fd".to_owned(), template: None },
        vcpus: 2,
        memory_bytes: 2 << 30,
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: Some(500 << 20),
        network_bytes_per_s_max: None,
        disks: vec![disk("vda", base), disk("vdb", Base::Copied(disk_copy())), disk("vdc", Base::Copyable)],
        interfaces: vec!["virtio".to_owned()],
    }
}

/// One of each means.
fn settings() -> Vec<Setting> {
    vec![
        Setting::CpuQuota { cores: Some(1.5) },
        Setting::CpuWeight { weight: 100 },
        Setting::Memory { bytes: 1 << 30 },
        Setting::Vcpus { count: 2 },
        Setting::DiskLimit { bytes_per_s: Some(1 << 20), operations_per_s: None },
        Setting::NetworkLimit { in_bytes_per_s: None, out_bytes_per_s: Some(1 << 20) },
    ]
}

fn agent_messages() -> Vec<AgentMessage> {
    let id = CommandId { term: 3, number: 7 };
    let reflex = Origin::Local { cause: LocalCause::Reflex, reason: "throttled".to_owned() };
    let outcome = |origin, result| AgentMessage::Outcome(Outcome { id, vm: vm(1), at: now(), origin, result });
    let floor = Setting::CpuQuota { cores: Some(0.1) };
    let copied = Copied { bytes: Some(5 << 30), is_layered: true, left: vec!["/srv/a.qcow2".to_owned()] };
    let too_large = Immovable::StorageTooLarge { bytes: 2 << 30, bytes_max: 1 << 30 };
    let imaged = Imaged { took_us: 16_000_000, disks: vec![("vda".to_owned(), disk_copy())] };
    let parked = OutcomeResult::NotMoved { error: "connection lost".to_owned(), whereabouts: Whereabouts::Parked };
    vec![
        AgentMessage::Hello(Hello {
            versions: VERSIONS,
            host: host(),
            epoch: AgentEpoch(1_700_000_000),
            fence_highest: Some(Fence { term: 3, generation: 9 }),
            agent_version: "0.1.0".to_owned(),
            facts: facts(),
        }),
        AgentMessage::Heartbeat { at: now() },
        outcome(Origin::Command, OutcomeResult::Applied { before: settings(), after: settings(), took_us: 900 }),
        outcome(reflex, OutcomeResult::Failed { error: "libvirt is away".to_owned(), retryable: true }),
        outcome(Origin::Command, OutcomeResult::Refused(RefusedCommand::BelowFloor { floor })),
        outcome(
            Origin::Command,
            OutcomeResult::Moved(Moved { took_us: 2_500_000, copied: Some(copied), ..Moved::default() }),
        ),
        outcome(Origin::Command, parked),
        outcome(Origin::Command, OutcomeResult::Immovable(Immovable::Storage("vda".to_owned()))),
        outcome(Origin::Command, OutcomeResult::Immovable(Immovable::NoPlace("no storage pool".to_owned()))),
        outcome(Origin::Command, OutcomeResult::Immovable(too_large)),
        outcome(Origin::Command, OutcomeResult::DirtyRate { bytes_per_s: 50 << 20 }),
        outcome(Origin::Command, OutcomeResult::Described(Box::new(blueprint()))),
        outcome(Origin::Command, OutcomeResult::Imaged(Box::new(imaged))),
        outcome(Origin::Command, OutcomeResult::Shadow(ShadowDone::Copied { took_us: 900, copied_bytes: 0 })),
        outcome(Origin::Command, OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned()))),
    ]
}

fn brain_messages() -> Vec<BrainMessage> {
    let id = CommandId { term: 3, number: 7 };
    let migration = Migration {
        to: HostId::new("b").expect("a legal name"),
        uri: "qemu+tls://b/system".to_owned(),
        timeout_ms: 600_000,
        bandwidth_bytes_per_s: Some(1 << 30),
        auto_converge: true,
        copy_storage: true,
    };
    let size = ShadowSize {
        cpu_cores: 0.1,
        vcpus: 1,
        cpu_weight: 100,
        memory_bytes: 128 << 20,
        disk_bytes_per_s: Some(1 << 20),
        network_bytes_per_s: None,
    };
    let actions = settings().into_iter().map(Action::Set).chain([
        Action::Release,
        Action::Migrate(migration),
        Action::AbortMigration,
        Action::Describe,
        Action::Image(Imaging {
            shadow: vm(2),
            bandwidth_bytes_per_s: Some(50 << 20),
            timeout_ms: 7_200_000,
            send_to: Some(receiving()),
        }),
        Action::DirtyRate { period_s: 1 },
        Action::Shadow(ShadowOrder::Copy(Box::new(ShadowSpec { of: vm(2), blueprint: blueprint(), size }))),
        Action::Shadow(ShadowOrder::Start),
        Action::Shadow(ShadowOrder::Pace(Profile { valid_ms: 60_000, steps: vec![ProfileStep::default(); 3] })),
        Action::Shadow(ShadowOrder::Retire),
        Action::Shadow(ShadowOrder::Resize(size)),
    ]);
    let command = |action| Command {
        id,
        vm: vm(1),
        action,
        fence: Fence { term: 3, generation: 9 },
        time_to_live_ms: 30_000,
        reason: "forecast demand of 1.40 cores outgrows the quota".to_owned(),
    };
    let mut messages: Vec<BrainMessage> = actions.map(|action| BrainMessage::Command(command(action))).collect();
    messages.push(BrainMessage::Welcome(Welcome {
        version: 1,
        term: 3,
        heartbeat_ms: 1_000,
        acknowledged: Sequence(7),
    }));
    messages.push(BrainMessage::Refused { code: RefusalCode::Identity, reason: "another host's name".to_owned() });
    messages.push(BrainMessage::Heartbeat { at: now() });
    messages.push(BrainMessage::OutcomeAck { id });
    messages
}

/// A window that ended a little ago, with so many VMs.
fn report(vms: u8) -> Report {
    let window = |number| VmWindow {
        vm: vm(number),
        name: format!("vm{number}"),
        state: VmState::Running,
        cpu: Some(CpuWindow {
            covered: 1.0,
            demand_low: MeanMax { mean: 0.5, max: 0.9 },
            demand_high: MeanMax { mean: 0.6, max: 1.0 },
            ..CpuWindow::default()
        }),
        memory: Some(MemoryWindow {
            resident_bytes: 1 << 29,
            balloon_bytes: Some(1 << 30),
            guest: Some(GuestMemory { total_bytes: 1 << 30, usable_bytes: Some(1 << 29), ..GuestMemory::default() }),
            demand: Some(MemoryDemand::known(1 << 29)),
            reclaim: Some(ReclaimStalls { reclaims_per_s: 2.0, stalled_threads: 0.5 }),
            ..MemoryWindow::default()
        }),
        interfaces: Vec::new(),
        disk: Some(DiskWindow {
            queue_depth: 1.5,
            process: Some(ProcessIo { read_bytes_per_s: 4096.0, write_bytes_per_s: 0.0 }),
            disks: vec![DiskShare { name: "sda".into(), device_ms: Some(2.5), ..DiskShare::default() }],
            guest: vec![GuestDisk { target: "vda".into(), write_bytes_per_s: 4096.0, ..GuestDisk::default() }],
            ..DiskWindow::default()
        }),
        allocation: Allocation { quota_cores: Some(0.5), vcpus: 2, vcpus_max: 4, memory_bytes: 2 << 30 },
        baselines: vec![Setting::CpuQuota { cores: None }, Setting::Memory { bytes: 1 << 30 }],
        stood_down: false,
        terms: VmTerms {
            apart: Some("db".to_owned()),
            apart_zones: Some("site".to_owned()),
            labels: "disk=nvme".parse().expect("a legal label"),
            ..VmTerms::default()
        },
        storage: Some(LocalStorage { own_bytes: 5 << 30, image_bytes: 1 << 30 }),
        migration: Some(MigrationProgress { sent_bytes: 1 << 20, ..MigrationProgress::default() }),
        shadow: None,
        culprits: None,
        exits: Some(vec![ExitShare { reason: ExitReason::Halt, exits_per_s: 800.0, away_vcpus: 1.5 }]),
    };
    Report {
        host: host(),
        epoch: AgentEpoch(1_700_000_000),
        sequence: Sequence(7),
        start: Timestamp::from_unix_ms(NOW_UNIX_MS - 12_000),
        window_ms: 10_000,
        host_window: HostWindow::default(),
        vms: (1..=vms).map(window).collect(),
        inventory_complete: true,
        losses: Losses::default(),
    }
}
