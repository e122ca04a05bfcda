//! What a packet costs that waits at a device, and one that is dropped there.
//!
//! *Queues*: a process sends itself echo requests over the loopback device, which the kernel answers: both packets are queued there and given
//! back. *Drops*: it sends datagrams to a port that takes none. All that all programs of a candidate ran is divided by the packets queued, or
//! dropped, meanwhile. The peers are bpftrace programs that do the same jobs for every device of the host: one notes when a packet is queued, by its
//! address, and counts by powers of two how long it was until it was given back; one counts drops by reason. Ours look at VMs' devices alone, and
//! tell them apart.

use super::attached::{Attached, BPFTRACE, Peer};
use super::number;
use super::spread::median;
use super::workload::{Workload, ping_pong, settle};
use anyhow::{Context, Result};
use gnomon_agent::probe::{DropProbe, QueueProbe, Tracefs};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, send, socket};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// `LOOPBACK_IFINDEX` of `include/net/flow.h`.
const LOOPBACK: u32 = 1;

/// What bpftrace is to do.
const TIME: &str = "tracepoint:net:net_dev_queue { @since[args->skbaddr] = nsecs; } \
    tracepoint:skb:consume_skb /@since[args->skbaddr]/ { @us = hist((nsecs - @since[args->skbaddr]) / 1000); delete(@since[args->skbaddr]); } \
    tracepoint:skb:kfree_skb { delete(@since[args->skbaddr]); }";
const COUNT: &str = "tracepoint:skb:kfree_skb { @[args->reason] = count(); }";

/// An echo request (RFC 792) of number 0 without data: type 8, and the checksum that makes its words add up to all ones.
const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// How long packets wait.
    Queues,
    /// Why they are dropped.
    Drops,
}

impl Job {
    /// The workload's argument.
    fn workload(self) -> &'static str {
        match self {
            Self::Queues => "--echoes",
            Self::Drops => "--datagrams-to-nobody",
        }
    }

    /// `None` if the peer is not installed, or what it needs is not mounted (tracefs).
    fn attach(self, candidate: Candidate) -> Result<Option<Attached>> {
        let watched = BTreeSet::from([LOOPBACK]);
        let watched = if candidate == Candidate::Vm { watched } else { BTreeSet::new() };
        Ok(Some(match (candidate, self) {
            (Candidate::Nothing, _) => Attached::Nothing,
            (Candidate::Bpftrace, _) if Tracefs::find().is_err() => return Ok(None),
            (Candidate::Bpftrace, Self::Queues) => return Peer::start(BPFTRACE, &["-e", TIME], 3),
            (Candidate::Bpftrace, Self::Drops) => return Peer::start(BPFTRACE, &["-e", COUNT], 1),
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
        }))
    }

    /// Whether a program runs once for each packet. bpftrace names its programs after their tracepoints.
    fn is_counted_by(self, program: &str) -> bool {
        match self {
            Self::Queues => program == "packet_queued" || program == "net_dev_queue",
            Self::Drops => program == "packet_dropped" || program == "kfree_skb",
        }
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
            Self::NoVm => "probe, a device of no VM",
            Self::Vm => "probe, a VM's device",
            Self::Bpftrace => "bpftrace, the same job",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    candidate: &'static str,
    packet_ns: Option<f64>,
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
    packet_ns: Vec<f64>,
}

pub(super) fn measure(job: Job, rounds: usize) -> Result<Summary> {
    let mut workload = Workload::start(&[job.workload().as_ref()])?;
    let mut samples = vec![Samples::default(); Candidate::ALL.len()];
    for round in 1..=rounds {
        for (candidate, samples) in Candidate::ALL.into_iter().zip(&mut samples) {
            take(job, candidate, &mut workload, samples)
                .with_context(|| format!("{job:?}, {} in round {round}", candidate.title()))?;
        }
    }
    Ok(summarise(job, &samples))
}

fn take(job: Job, candidate: Candidate, workload: &mut Workload, samples: &mut Samples) -> Result<()> {
    let Some(attached) = job.attach(candidate)? else { return Ok(()) };
    let measured = super::measure(attached, workload)?;
    let (packets, _) = measured.spent(|program| job.is_counted_by(program));
    let (_, run_ns) = measured.spent(|_| true);
    samples.packet_ns.extend((packets > 0).then(|| run_ns as f64 / packets as f64));
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

fn summarise(job: Job, samples: &[Samples]) -> Summary {
    let rows: Vec<Row> = Candidate::ALL
        .iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.packet_ns.is_empty())
        .map(|(candidate, samples)| Row { candidate: candidate.title(), packet_ns: median(&samples.packet_ns) })
        .collect();
    let cost = |candidate: Candidate| rows.iter().find(|row| row.candidate == candidate.title())?.packet_ns;
    let vm_to_bpftrace = cost(Candidate::Vm).zip(cost(Candidate::Bpftrace)).map(|(ours, theirs)| ours / theirs);
    let job = match job {
        Job::Queues => "queues",
        Job::Drops => "drops",
    };
    Summary { job, vm_to_bpftrace, rows }
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let line = |name: &str, packet: &str| format!("{name:<26} {packet:>10}\n");
        let mut text = line(self.job, "packet ns");
        for row in &self.rows {
            text += &line(row.candidate, &number(row.packet_ns, 0));
        }
        text + &line("VM / bpftrace", &number(self.vm_to_bpftrace, 2))
    }
}
