//! What is read of memory, once a window: the processes' files, and the memory probe.

use super::Reader;
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::process::Proc;
use crate::reading::{ReclaimCounters, ReclaimReading};
use crate::sample::memory::HostMemoryReading;
use gnomon_common::wire::VmId;
use std::collections::BTreeMap;

impl Reader {
    /// Reads of all VMs that have a process.
    pub(super) fn read_memory(&mut self, inventory: &Inventory, taken_ns: u64) -> BTreeMap<VmId, HostMemoryReading> {
        let reclaim = self.drain_reclaim();
        let read = |facts: &VmFacts| read(&self.config.proc, facts, reclaim.get(&facts.id).copied(), taken_ns);
        inventory.vms.iter().filter_map(|facts| Some((facts.id, read(facts)?))).collect()
    }

    /// Drains the memory probe; nothing where there is none, or it is shed.
    fn drain_reclaim(&mut self) -> ReclaimReading {
        match self.sources.reclaim.as_mut().map(|probe| probe.drain()) {
            Some(Ok(reading)) => reading.unwrap_or_default(),
            Some(Err(error)) => {
                self.metrics.reclaim_failures.inc();
                tracing::warn!(%error, "no reading of reclaim in this window");
                ReclaimReading::new()
            }
            None => ReclaimReading::new(),
        }
    }
}

/// What a VM's process and control group tell of its memory, if its process is still the one the inventory knows.
fn read(proc: &Proc, facts: &VmFacts, reclaim: Option<ReclaimCounters>, taken_ns: u64) -> Option<HostMemoryReading> {
    let process = facts.process.as_ref()?;
    let footprint = proc.footprint(process.pid).ok()?;
    let faults_of_group = facts.cgroup.as_ref().map_or(Ok(None), |cgroup| cgroup.major_faults()).ok()?;
    let stalled_us = facts.cgroup.as_ref().and_then(|cgroup| cgroup.memory_stalled_us().ok()?);
    // Read after the memory: if the pid belongs to another process by now, this tells.
    let stat = proc.stat(process.pid).ok().filter(|stat| stat.start_ticks == process.start_ticks)?;
    Some(HostMemoryReading {
        taken_ns,
        footprint,
        minor_faults: stat.minor_faults,
        major_faults: faults_of_group.unwrap_or(stat.major_faults),
        stalled_us,
        reclaim,
    })
}
