//! The block probe as the sampler sees it.

use super::accounting::{map_error, now_ns};
use super::btf::Types;
use super::keys::{Members, remove, replace};
use super::load::{BTF_PATH, MemberPath, object_error, offset, program, program_error, take_map};
use super::{ProbeError, ProgramCost, cost};
use crate::reading::{BlockReading, DiskId};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use gnomon_common::abi::block::{DiskAccount, DiskKey, VM_NONE};
use gnomon_common::wire::VmId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Globals of the object, and the member whose offset each wants.
const OFFSETS: [(&str, MemberPath); 12] = [
    ("RQ_QUEUE_OFFSET", &[("request", "q")]),
    ("RQ_FLAGS_OFFSET", &[("request", "cmd_flags")]),
    ("RQ_BYTES_OFFSET", &[("request", "__data_len")]),
    ("RQ_BIO_OFFSET", &[("request", "bio")]),
    ("QUEUE_DISK_OFFSET", &[("request_queue", "disk")]),
    ("DISK_MAJOR_OFFSET", &[("gendisk", "major")]),
    ("DISK_MINOR_OFFSET", &[("gendisk", "first_minor")]),
    ("BIO_BLKG_OFFSET", &[("bio", "bi_blkg")]),
    ("BLKG_BLKCG_OFFSET", &[("blkcg_gq", "blkcg")]),
    ("BLKCG_CGROUP_OFFSET", &[("blkcg", "css"), ("cgroup_subsys_state", "cgroup")]),
    ("CGROUP_NODE_OFFSET", &[("cgroup", "kn")]),
    ("NODE_ID_OFFSET", &[("kernfs_node", "id")]),
];

const MADE: &str = "request_made";
const ISSUED: &str = "request_issued";
const COMPLETED: &str = "request_completed";

/// Where a request is made in its maker's context: the first of these that the kernel has.
const MADE_AT: [&str; 2] = ["block_io_start", "block_rq_insert"];

/// [`DiskKey`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodKey(DiskKey);

// SAFETY: three `u32`, without padding.
unsafe impl aya::Pod for PodKey {}

/// [`DiskAccount`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodAccount(DiskAccount);

// SAFETY: integers only, and its size is the sum of theirs.
unsafe impl aya::Pod for PodAccount {}

/// The block probe, attached while this lives.
///
/// The agent must run in the host's PID namespace: process ids are those of the kernel.
pub struct BlockProbe {
    ebpf: Ebpf,
    members: Members,
    cgroup_vm: HashMap<MapData, u64, u32>,
    accounts: HashMap<MapData, PodKey, PodAccount>,
    missed: Array<MapData, u64>,
    /// By VM, those in `cgroup_vm`.
    cgroups: BTreeMap<VmId, BTreeSet<u64>>,
}

impl BlockProbe {
    /// Loads and attaches the probe.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it.
    pub fn load() -> Result<Self, ProbeError> {
        let blob = fs::read(BTF_PATH).map_err(|source| ProbeError::NoBtf { path: BTF_PATH, source })?;
        let wrong = |source| ProbeError::Btf { path: BTF_PATH, source };
        let types = Types::parse(&blob).map_err(wrong)?;
        let mut offsets = Vec::with_capacity(OFFSETS.len());
        for (_, path) in OFFSETS {
            offsets.push(offset(&types, path).map_err(wrong)?);
        }
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::AttachPoint { what: "the kernel", source })?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for ((global, _), offset) in OFFSETS.iter().zip(&offsets) {
            loader.override_global(global, offset, true);
        }
        let mut ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/block"))).map_err(object_error)?;
        drop(loader);
        let mut probe = Self {
            members: Members::of(&mut ebpf, VM_NONE)?,
            cgroup_vm: take_map(&mut ebpf, "CGROUP_VM")?,
            accounts: take_map(&mut ebpf, "DISK_ACCOUNTS")?,
            missed: take_map(&mut ebpf, "REQUESTS_MISSED")?,
            ebpf,
            cgroups: BTreeMap::new(),
        };
        probe.attach(&btf)?;
        Ok(probe)
    }

    fn attach(&mut self, btf: &Btf) -> Result<(), ProbeError> {
        let made = program::<BtfTracePoint>(&mut self.ebpf, MADE)?;
        let mut loaded = made.load(MADE_AT[0], btf);
        if matches!(loaded, Err(aya::programs::ProgramError::Btf(_))) {
            loaded = made.load(MADE_AT[1], btf);
        }
        loaded.map_err(|e| program_error(MADE, e))?;
        for (name, tracepoint) in [(ISSUED, "block_rq_issue"), (COMPLETED, "block_rq_complete")] {
            program::<BtfTracePoint>(&mut self.ebpf, name)?
                .load(tracepoint, btf)
                .map_err(|e| program_error(name, e))?;
        }
        // What is made from now on is known from its beginning.
        for name in [MADE, ISSUED, COMPLETED] {
            program::<BtfTracePoint>(&mut self.ebpf, name)?.attach().map_err(|e| program_error(name, e))?;
        }
        Ok(())
    }

    /// Counts requests that these processes make, and requests of no VM's process that are charged to these control groups (the numbers of
    /// their inodes), as those of `vm`. To be called again whenever they may have changed; what was counted stays with the VM.
    ///
    /// # Errors
    /// If the kernel refuses: mostly because a map is full. Then the VM is not tracked: what is counted in part is not told.
    pub fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), ProbeError> {
        let number = self.members.admit(vm);
        let present = self.cgroups.entry(vm).or_default();
        let done = self
            .members
            .follow(vm, tgids)
            .and_then(|()| replace(&mut self.cgroup_vm, "CGROUP_VM", present, cgroups, number));
        if done.is_err() {
            // What of it fails fails on the way to an error that is reported anyway.
            let _ = self.untrack(vm);
        }
        done
    }

    /// Stops counting for a VM and forgets its counters. Unknown VMs are none.
    ///
    /// # Errors
    /// If the kernel refuses; the VM is forgotten all the same.
    pub fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        let Some((number, emptied)) = self.members.forget(vm) else { return Ok(()) };
        let mut present = self.cgroups.remove(&vm).unwrap_or_default();
        replace(&mut self.cgroup_vm, "CGROUP_VM", &mut present, &[], number).and(emptied)
    }

    /// The counters of all tracked VMs and of the rest of the host: two system calls for each pair of VM and disk that was ever used.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&mut self) -> Result<BlockReading, ProbeError> {
        let by_number = self.members.by_number();
        let mut reading = BlockReading {
            taken_ns: now_ns(),
            vms: self.members.iter().map(|(vm, _)| (vm, BTreeMap::new())).collect(),
            rest: BTreeMap::new(),
            requests_missed: self.missed.get(&0, 0).map_err(map_error("REQUESTS_MISSED"))?,
        };
        let mut orphans = Vec::new();
        for entry in self.accounts.iter() {
            let (PodKey(key), PodAccount(account)) = entry.map_err(map_error("DISK_ACCOUNTS"))?;
            let disk = DiskId { major: key.major, minor: key.minor };
            if key.vm == VM_NONE {
                reading.rest.insert(disk, account);
            } else if let Some(counters) = by_number.get(&key.vm).and_then(|vm| reading.vms.get_mut(vm)) {
                counters.insert(disk, account);
            } else {
                orphans.push(key);
            }
        }
        for key in orphans {
            remove(&mut self.accounts, "DISK_ACCOUNTS", &PodKey(key))?;
        }
        Ok(reading)
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a
    /// [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &[MADE, ISSUED, COMPLETED])
    }
}
