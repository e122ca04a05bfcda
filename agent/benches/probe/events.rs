//! What an event costs: a packet that waits at a device, one that is dropped there, and a reclaim of memory.
//!
//! *Queues*: a process sends itself echo requests over the loopback device, which the kernel answers: both packets are queued there and given
//! back. *Drops*: it sends datagrams to a port that takes none. *Reclaims*: it reads a file through a page cache that does not hold it, since its control
//! group is at its limit. All that all programs of a candidate ran is divided by the packets queued, those dropped, or the reclaims meanwhile. The
//! peers are bpftrace programs that do the same jobs for the whole host: one notes when a packet is queued, by its address, and counts by powers of two
//! how long it was until it was given back; one counts drops by reason; one sums up how long each process reclaims. Ours look at VMs alone, and tell
//! them apart.

use super::attached::{Attached, BPFTRACE, Peer};
use super::spread::median;
use super::workload::{Workload, ping_pong, settle};
use super::{Measured, number};
use anyhow::{Context, Result};
use gnomon_agent::probe::{DropProbe, MemoryProbe, QueueProbe, Tracefs};
use gnomon_common::wire::VmId;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, send, socket};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// `LOOPBACK_IFINDEX` of `include/net/flow.h`.
const LOOPBACK: u32 = 1;

/// What bpftrace is to do.
const TIME: &str = "tracepoint:net:net_dev_queue { @since[args->skbaddr] = nsecs; } \
    tracepoint:skb:consume_skb /@since[args->skbaddr]/ { @us = hist((nsecs - @since[args->skbaddr]) / 1000); delete(@since[args->skbaddr]); } \
    tracepoint:skb:kfree_skb { delete(@since[args->skbaddr]); }";
const COUNT: &str = "tracepoint:skb:kfree_skb { @[args->reason] = count(); }";
const SUM: &str = "tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin { @since[tid] = nsecs; } \
    tracepoint:vmscan:mm_vmscan_memcg_reclaim_end /@since[tid]/ { @reclaims[pid] = count(); @ns[pid] = sum(nsecs - @since[tid]); delete(@since[tid]); }";

/// An echo request (RFC 792) of number 0 without data: type 8, and the checksum that makes its words add up to all ones.
const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];

/// What the control group of the workload that reclaims may have, and the file that it reads: of holes, so that no disk is in it.
const LIMIT_BYTES: u64 = 32 << 20;
const FILE_BYTES: u64 = 512 << 20;
/// What is read in an operation: about one reclaim.
const CHUNK_BYTES: usize = 2 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// How long packets wait.
    Queues,
    /// Why they are dropped.
    Drops,
    /// How long threads reclaim memory for themselves.
    Reclaims,
}

impl Job {
    /// `None` where it cannot be had, which is said.
    fn start(self) -> Result<Option<Running>> {
        let running = |argument: &str| -> Result<Option<Running>> {
            Ok(Some(Running { workload: Workload::start(&[argument.as_ref()])?, tight: None }))
        };
        match self {
            Self::Queues => running("--echoes"),
            Self::Drops => running("--datagrams-to-nobody"),
            Self::Reclaims => Running::reclaiming(),
        }
    }

    /// `None` if the peer is not installed, or what it needs is not mounted (tracefs).
    fn attach(self, candidate: Candidate, workload: &Workload) -> Result<Option<Attached>> {
        let watched = BTreeSet::from([LOOPBACK]);
        let watched = if candidate == Candidate::Vm { watched } else { BTreeSet::new() };
        Ok(Some(match (candidate, self) {
            (Candidate::Nothing, _) => Attached::Nothing,
            (Candidate::Bpftrace, _) if Tracefs::find().is_err() => return Ok(None),
            (Candidate::Bpftrace, Self::Queues) => return Peer::start(BPFTRACE, &["-e", TIME], 3),
            (Candidate::Bpftrace, Self::Drops) => return Peer::start(BPFTRACE, &["-e", COUNT], 1),
            (Candidate::Bpftrace, Self::Reclaims) => return Peer::start(BPFTRACE, &["-e", SUM], 2),
            (Candidate::NoVm | Candidate::Vm, Self::Queues) => {
                let mut probe = QueueProbe::load()?;
                probe.watch(&watched)?;
                Attached::Queues(Box::new(probe))
            }
            (Candidate::NoVm | Candidate::Vm, Self::Drops) => {
                let mut probe = DropProbe::load()?;
                probe.watch(&watched)?;
                Attached::Drops(Box::new(probe))
            }
            (Candidate::NoVm | Candidate::Vm, Self::Reclaims) => {
                let mut probe = MemoryProbe::load()?;
                if candidate == Candidate::Vm {
                    probe.track(VmId(Uuid::from_u128(1)), &[workload.pid()])?;
                }
                Attached::Memory(Box::new(probe))
            }
        }))
    }

    /// How many events the programs saw. bpftrace names its programs after their tracepoints.
    fn events(self, measured: &Measured) -> u64 {
        match self {
            Self::Queues => measured.spent(|program| program == "packet_queued" || program == "net_dev_queue").0,
            Self::Drops => measured.spent(|program| program == "packet_dropped" || program == "kfree_skb").0,
            // One runs at the begin and one at the end.
            Self::Reclaims => measured.spent(|_| true).0 / 2,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Drops => "drops",
            Self::Reclaims => "reclaims",
        }
    }
}

/// A workload, and what it runs in: removed after it.
struct Running {
    workload: Workload,
    tight: Option<(TightGroup, tempfile::NamedTempFile)>,
}

impl Running {
    fn reclaiming() -> Result<Option<Self>> {
        let Some(group) = TightGroup::make()? else {
            println!("Reclaims are not measured: there is no hierarchy of control groups for memory.");
            return Ok(None);
        };
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(FILE_BYTES)?;
        let arguments: [&OsStr; 3] = ["--reclaim".as_ref(), file.path().as_os_str(), "--group".as_ref()];
        let workload = Workload::start(&[&arguments[..], &[group.0.as_os_str()]].concat())?;
        Ok(Some(Self { workload, tight: Some((group, file)) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((group, _)) = &self.tight {
            // A group is removed when nobody is in it any more.
            self.workload.end();
            if let Err(error) = fs::remove_dir(&group.0) {
                println!("{} is left: {error}", group.0.display());
            }
        }
    }
}

/// A control group that may have [`LIMIT_BYTES`].
struct TightGroup(PathBuf);

impl TightGroup {
    /// Of version 2 if memory is there, else of version 1; `None` where it is in neither.
    fn make() -> Result<Option<Self>> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        let (hierarchy, limit) = if controllers.split_whitespace().any(|controller| controller == "memory") {
            (root.to_owned(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        if !hierarchy.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let group = hierarchy.join(format!("gnomon-bench-{}", std::process::id()));
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        fs::write(group.join(limit), LIMIT_BYTES.to_string())?;
        Ok(Some(Self(group)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Nothing,
    NoVm,
    Vm,
    Bpftrace,
}

impl Candidate {
    const ALL: [Self; 4] = [Self::Nothing, Self::NoVm, Self::Vm, Self::Bpftrace];

    fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NoVm => "probe, no VM's",
            Self::Vm => "probe, a VM's",
            Self::Bpftrace => "bpftrace, the same job",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    candidate: &'static str,
    event_ns: Option<f64>,
}

/// The medians of all, and how they compare.
#[derive(Serialize)]
pub(super) struct Summary {
    job: &'static str,
    rows: Vec<Row>,
    vm_to_bpftrace: Option<f64>,
}

#[derive(Clone, Debug, Default)]
struct Samples {
    event_ns: Vec<f64>,
}

/// `None` where the workload cannot be had.
pub(super) fn measure(job: Job, rounds: usize) -> Result<Option<Summary>> {
    let Some(mut running) = job.start()? else { return Ok(None) };
    let mut samples = vec![Samples::default(); Candidate::ALL.len()];
    for round in 1..=rounds {
        for (candidate, samples) in Candidate::ALL.into_iter().zip(&mut samples) {
            take(job, candidate, &mut running.workload, samples)
                .with_context(|| format!("{job:?}, {} in round {round}", candidate.title()))?;
        }
    }
    Ok(Some(summarise(job, &samples)))
}

fn take(job: Job, candidate: Candidate, workload: &mut Workload, samples: &mut Samples) -> Result<()> {
    let Some(attached) = job.attach(candidate, workload)? else { return Ok(()) };
    let measured = super::measure(attached, workload)?;
    let events = job.events(&measured);
    let (_, run_ns) = measured.spent(|_| true);
    samples.event_ns.extend((events > 0).then(|| run_ns as f64 / events as f64));
    Ok(())
}

/// Echoes to oneself, between which two threads pass a byte to and fro: a workload sleeps once in each operation.
pub(super) fn echoes(cpu: usize) -> Result<()> {
    settle(cpu)?;
    let echoes = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    connect(&echoes, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    ping_pong(cpu, || {
        send(&echoes, &ECHO, SendFlags::empty())?;
        // A raw socket is handed the request, too.
        for _ in 0..2 {
            recv(&echoes, &mut [0; 128], RecvFlags::empty())?;
        }
        Ok(())
    })
}

/// Datagrams to a port that is taken by a socket connected to another: nobody's.
pub(super) fn datagrams_to_nobody(cpu: usize) -> Result<()> {
    settle(cpu)?;
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let (taken, peer, sender) = (bind()?, bind()?, bind()?);
    taken.connect(peer.local_addr()?)?;
    let address = taken.local_addr()?;
    ping_pong(cpu, || Ok(sender.send_to(&[0; 1000], address).map(drop)?))
}

/// Reads what does not fit into the control group that it enters first.
pub(super) fn reclaim(cpu: usize, file: &Path, group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0")?;
    let (mut file, mut chunk) = (File::open(file)?, vec![0; CHUNK_BYTES]);
    ping_pong(cpu, || {
        if file.read(&mut chunk)? == 0 {
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(())
    })
}

fn summarise(job: Job, samples: &[Samples]) -> Summary {
    let rows: Vec<Row> = Candidate::ALL
        .iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.event_ns.is_empty())
        .map(|(candidate, samples)| Row { candidate: candidate.title(), event_ns: median(&samples.event_ns) })
        .collect();
    let cost = |candidate: Candidate| rows.iter().find(|row| row.candidate == candidate.title())?.event_ns;
    let vm_to_bpftrace = cost(Candidate::Vm).zip(cost(Candidate::Bpftrace)).map(|(ours, theirs)| ours / theirs);
    Summary { job: job.title(), vm_to_bpftrace, rows }
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let line = |name: &str, each: &str| format!("{name:<26} {each:>10}\n");
        let mut text = line(self.job, "ns each");
        for row in &self.rows {
            text += &line(row.candidate, &number(row.event_ns, 0));
        }
        text + &line("VM / bpftrace", &number(self.vm_to_bpftrace, 2))
    }
}
