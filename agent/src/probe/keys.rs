//! Keys of the maps by which a probe knows its VMs.

use super::ProbeError;
use super::accounting::{is_not_found, map_error};
use super::load::take_map;
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use gnomon_common::wire::VmId;
use std::collections::{BTreeMap, BTreeSet};

const TGID_VM: &str = "TGID_VM";

/// The VMs of a probe, each with a number of its own, and their processes in the map `TGID_VM`. No number is given twice, so what the programs
/// still add for a VM that is gone goes to nobody.
pub(super) struct Members {
    tgid_vm: HashMap<MapData, u32, u32>,
    vms: BTreeMap<VmId, Member>,
    last_number: u32,
}

struct Member {
    number: u32,
    tgids: BTreeSet<u32>,
}

impl Members {
    /// Takes the map out of an object. Numbers begin above `reserved`.
    pub(super) fn of(ebpf: &mut Ebpf, reserved: u32) -> Result<Self, ProbeError> {
        Ok(Self { tgid_vm: take_map(ebpf, TGID_VM)?, vms: BTreeMap::new(), last_number: reserved })
    }

    /// The number of a VM, if it has one.
    pub(super) fn number(&self, vm: VmId) -> Option<u32> {
        self.vms.get(&vm).map(|member| member.number)
    }

    /// Gives a VM that is new a number.
    pub(super) fn admit(&mut self, vm: VmId) -> u32 {
        let member = self.vms.entry(vm).or_insert_with(|| {
            self.last_number += 1;
            Member { number: self.last_number, tgids: BTreeSet::new() }
        });
        member.number
    }

    /// Makes the processes of a VM those that are named; it is admitted if it is new.
    pub(super) fn follow(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), ProbeError> {
        let number = self.admit(vm);
        let Some(member) = self.vms.get_mut(&vm) else { return Ok(()) };
        replace(&mut self.tgid_vm, TGID_VM, &mut member.tgids, tgids, number)
    }

    /// Forgets a VM in any case, and tells whether the kernel took its processes out of the map; `None` for one that is unknown.
    pub(super) fn forget(&mut self, vm: VmId) -> Option<(u32, Result<(), ProbeError>)> {
        let Member { number, mut tgids } = self.vms.remove(&vm)?;
        Some((number, replace(&mut self.tgid_vm, TGID_VM, &mut tgids, &[], number)))
    }

    /// All of them, with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (VmId, u32)> {
        self.vms.iter().map(|(&vm, member)| (vm, member.number))
    }

    /// Which number is whose.
    pub(super) fn by_number(&self) -> BTreeMap<u32, VmId> {
        self.iter().map(|(vm, number)| (number, vm)).collect()
    }
}

/// Makes a VM's keys in a map those that are wanted. What is noted in `present` is in the map, also where this fails midway.
pub(super) fn replace<K: aya::Pod + Ord>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    present: &mut BTreeSet<K>,
    wanted: &[K],
    number: u32,
) -> Result<(), ProbeError> {
    let gone: Vec<K> = present.iter().copied().filter(|key| !wanted.contains(key)).collect();
    for key in gone {
        remove(map, name, &key)?;
        present.remove(&key);
    }
    for &key in wanted {
        if !present.contains(&key) {
            map.insert(key, number, 0).map_err(map_error(name))?;
            present.insert(key);
        }
    }
    Ok(())
}

/// Removes a key from a map, where it is there.
pub(super) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), ProbeError> {
    match map.remove(key) {
        Err(error) if !is_not_found(&error) => Err(map_error(name)(error)),
        _ => Ok(()),
    }
}
