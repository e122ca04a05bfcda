//! The drop probe as the sampler sees it.

use super::accounting::{is_not_found, map_error};
use super::btf::Types;
use super::load::{BTF_PATH, object_error, program, program_error, take_map};
use super::net_device::{Taps, Whereabouts};
use super::{ProbeError, ProgramCost, cost};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use gnomon_common::abi::drops::DropKey;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const PROGRAM: &str = "packet_dropped";

/// What the kernel's names of reasons begin with.
const REASON_PREFIX: &str = "SKB_DROP_REASON_";

/// [`DropKey`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodKey(DropKey);

// SAFETY: two `u32`, without padding.
unsafe impl aya::Pod for PodKey {}

/// Packets dropped since their device was first watched, by the device's number and the reason's.
pub type Drops = BTreeMap<u32, BTreeMap<u32, u64>>;

/// The drop probe, attached while this lives. It sees devices of the network namespace that it was loaded in.
pub struct DropProbe {
    ebpf: Ebpf,
    taps: Taps<u32>,
    drops: HashMap<MapData, PodKey, u64>,
    missed: Array<MapData, u64>,
    reasons: BTreeMap<u32, String>,
}

impl DropProbe {
    /// Loads and attaches the probe.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it: kernels before 5.17 tell no reasons.
    pub fn load() -> Result<Self, ProbeError> {
        let blob = fs::read(BTF_PATH).map_err(|source| ProbeError::NoBtf { path: BTF_PATH, source })?;
        let wrong = |source| ProbeError::Btf { path: BTF_PATH, source };
        let types = Types::parse(&blob).map_err(wrong)?;
        let reasons = types.enumerators("skb_drop_reason").map_err(wrong)?;
        let whereabouts = Whereabouts::of(&types)?;
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::AttachPoint { what: "the kernel", source })?;
        let mut loader = EbpfLoader::new();
        whereabouts.tell(loader.btf(Some(&btf)));
        let mut ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drops"))).map_err(object_error)?;
        drop(loader);
        let loaded = program::<BtfTracePoint>(&mut ebpf, PROGRAM)?;
        loaded.load("kfree_skb", &btf).and_then(|()| loaded.attach()).map_err(|e| program_error(PROGRAM, e))?;
        Ok(Self {
            taps: Taps::of(take_map(&mut ebpf, "TAPS")?),
            drops: take_map(&mut ebpf, "DROPS")?,
            missed: take_map(&mut ebpf, "DROPS_MISSED")?,
            ebpf,
            reasons,
        })
    }

    /// Counts on the devices of these numbers from now on, and on no others.
    ///
    /// # Errors
    /// If the kernel refuses: mostly because a map is full. What is watched then is told by the next reading all the same.
    pub fn watch(&mut self, ifindexes: &BTreeSet<u32>) -> Result<(), ProbeError> {
        self.taps.watch(ifindexes, 0)
    }

    /// The counters of all watched devices: two system calls for each pair of device and reason.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&mut self) -> Result<Drops, ProbeError> {
        let (mut drops, mut orphans) = (Drops::new(), Vec::new());
        for entry in self.drops.iter() {
            let (PodKey(key), count) = entry.map_err(map_error("DROPS"))?;
            if self.taps.watched().contains(&key.ifindex) {
                drops.entry(key.ifindex).or_default().insert(key.reason, count);
            } else {
                orphans.push(key);
            }
        }
        for key in orphans {
            match self.drops.remove(&PodKey(key)) {
                Err(error) if !is_not_found(&error) => return Err(map_error("DROPS")(error)),
                _ => {}
            }
        }
        Ok(drops)
    }

    /// Packets that were dropped without being counted, since load: there was no room for their device and reason.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn missed(&self) -> Result<u64, ProbeError> {
        self.missed.get(&0, 0).map_err(map_error("DROPS_MISSED"))
    }

    /// What this kernel calls a reason, in lower case and without its prefix: `full_ring`. A subsystem's own have no names here, but numbers.
    pub fn reason(&self, reason: u32) -> String {
        let named = self.reasons.get(&reason).and_then(|name| name.strip_prefix(REASON_PREFIX));
        named.map_or_else(|| format!("{}/{}", reason >> 16, reason & 0xffff), str::to_ascii_lowercase)
    }

    /// What the attached program has cost since it was loaded. All zero while nobody holds a [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &[PROGRAM])
    }
}
