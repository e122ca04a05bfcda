//! What the probes of network devices have in common: where the kernel keeps a packet's device, and which devices are looked at.

use super::ProbeError;
use super::accounting::{is_not_found, map_error};
use super::btf::{BtfError, Types};
use super::load::{BTF_PATH, MemberPath, offset};
use aya::maps::{HashMap, MapData};
use aya::{EbpfLoader, Pod};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

const OFFSETS: [(&str, MemberPath); 4] = [
    ("SKB_DEVICE_OFFSET", &[("sk_buff", "dev")]),
    ("DEVICE_NUMBER_OFFSET", &[("net_device", "ifindex")]),
    // A structure of one member: the pointer.
    ("DEVICE_NAMESPACE_OFFSET", &[("net_device", "nd_net")]),
    ("NAMESPACE_NUMBER_OFFSET", &[("net", "ns"), ("ns_common", "inum")]),
];

/// The network namespace of the calling thread; its inode's number is the kernel's number of the namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Where the kernel that runs keeps what tells a packet's device, and the network namespace whose devices are meant: the calling thread's.
pub(super) struct Whereabouts {
    offsets: [u32; OFFSETS.len()],
    own_namespace: u32,
}

impl Whereabouts {
    pub(super) fn of(types: &Types<'_>) -> Result<Self, ProbeError> {
        let wrong = |source: BtfError| ProbeError::Btf { path: BTF_PATH, source };
        let mut offsets = [0; OFFSETS.len()];
        for (found, (_, path)) in offsets.iter_mut().zip(OFFSETS) {
            *found = offset(types, path).map_err(wrong)?;
        }
        let own_namespace = fs::metadata(OWN_NAMESPACE)
            .map_err(|source| ProbeError::System { what: "finding the agent's network namespace", source })?
            // Of 32 bits, as all inodes of this file system.
            .ino() as u32;
        Ok(Self { offsets, own_namespace })
    }

    /// Tells an object that is to be loaded.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("OWN_NAMESPACE", &self.own_namespace, true);
        for ((global, _), offset) in OFFSETS.iter().zip(&self.offsets) {
            loader.override_global(global, offset, true);
        }
    }
}

/// The devices that a probe looks at: the map `TAPS`, by their numbers.
pub(super) struct Taps<V: Pod> {
    pub(super) map: HashMap<MapData, u32, V>,
    watched: BTreeSet<u32>,
}

impl<V: Pod> Taps<V> {
    pub(super) fn of(map: HashMap<MapData, u32, V>) -> Self {
        Self { map, watched: BTreeSet::new() }
    }

    pub(super) fn watched(&self) -> &BTreeSet<u32> {
        &self.watched
    }

    /// Looks at these and at no others; those that are new begin with that value. What is watched when the kernel refuses (mostly because the map
    /// is full) is told by [`Self::watched`] all the same.
    pub(super) fn watch(&mut self, ifindexes: &BTreeSet<u32>, fresh: V) -> Result<(), ProbeError> {
        let gone: Vec<u32> = self.watched.difference(ifindexes).copied().collect();
        for ifindex in gone {
            match self.map.remove(&ifindex) {
                Err(error) if !is_not_found(&error) => return Err(map_error("TAPS")(error)),
                _ => self.watched.remove(&ifindex),
            };
        }
        let new: Vec<u32> = ifindexes.difference(&self.watched).copied().collect();
        for ifindex in new {
            self.map.insert(ifindex, fresh, 0).map_err(map_error("TAPS"))?;
            self.watched.insert(ifindex);
        }
        Ok(())
    }
}
