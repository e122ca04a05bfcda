//! The queue probe as the sampler sees it.

use super::accounting::map_error;
use super::btf::Types;
use super::load::{BTF_PATH, object_error, program, program_error, take_map};
use super::net_device::{Taps, Whereabouts};
use super::{ProbeError, ProgramCost, cost};
use aya::programs::{BtfTracePoint, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader};
use gnomon_common::abi::queues::TapQueue;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What ends the timing of a packet, and its tracepoint. Attached first: none is left in the table that nobody takes out.
const ENDS: [(&str, &str); 2] = [("packet_lost", "kfree_skb"), ("packet_taken", "consume_skb")];

/// What begins it.
const BEGIN: (&str, &str) = ("packet_queued", "net_dev_queue");

/// [`TapQueue`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodQueue(TapQueue);

// SAFETY: integers of 64 bits, without padding.
unsafe impl aya::Pod for PodQueue {}

/// How long packets waited at devices since those were first watched, by the device's number.
pub type Queues = BTreeMap<u32, TapQueue>;

/// The queue probe, attached while this lives. It sees devices of the network namespace that it was loaded in.
pub struct QueueProbe {
    ebpf: Ebpf,
    taps: Taps<PodQueue>,
}

impl QueueProbe {
    /// Loads and attaches the probe.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it.
    pub fn load() -> Result<Self, ProbeError> {
        let blob = fs::read(BTF_PATH).map_err(|source| ProbeError::NoBtf { path: BTF_PATH, source })?;
        let types = Types::parse(&blob).map_err(|source| ProbeError::Btf { path: BTF_PATH, source })?;
        let whereabouts = Whereabouts::of(&types)?;
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::AttachPoint { what: "the kernel", source })?;
        let mut loader = EbpfLoader::new();
        whereabouts.tell(loader.btf(Some(&btf)));
        let mut ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/queues"))).map_err(object_error)?;
        drop(loader);
        for (name, tracepoint) in ENDS {
            let loaded = program::<RawTracePoint>(&mut ebpf, name)?;
            loaded.load().and_then(|()| loaded.attach(tracepoint)).map_err(|e| program_error(name, e))?;
        }
        let (name, tracepoint) = BEGIN;
        let loaded = program::<BtfTracePoint>(&mut ebpf, name)?;
        loaded.load(tracepoint, &btf).and_then(|()| loaded.attach()).map_err(|e| program_error(name, e))?;
        Ok(Self { taps: Taps::of(take_map(&mut ebpf, "TAPS")?), ebpf })
    }

    /// Times packets at the devices of these numbers from now on, and at no others.
    ///
    /// # Errors
    /// If the kernel refuses: mostly because a map is full. What is watched then is told by the next reading all the same.
    pub fn watch(&mut self, ifindexes: &BTreeSet<u32>) -> Result<(), ProbeError> {
        self.taps.watch(ifindexes, PodQueue(TapQueue::default()))
    }

    /// The counters of all watched devices: one system call for each.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&self) -> Result<Queues, ProbeError> {
        let queue = |&ifindex| Ok((ifindex, self.taps.map.get(&ifindex, 0).map_err(map_error("TAPS"))?.0));
        self.taps.watched().iter().map(queue).collect()
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &[ENDS[0].0, ENDS[1].0, BEGIN.0])
    }
}
