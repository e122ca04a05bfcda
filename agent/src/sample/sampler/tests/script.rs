//! A source of every kind whose counters the test writes.

use super::S;
use crate::cost::Costed;
use crate::reading::{
    BlockReading, DiskCounters, ExitReading, ReclaimReading, SchedCounters, SchedReading, WaitCauses,
};
use crate::sample::{DeviceSource, DropReading, QueueReading, SchedSource, SourceError, VmSource};
use gnomon_common::abi::queues::TapQueue;
use gnomon_common::wire::VmId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A probe whose counters the test writes.
#[derive(Clone, Default)]
pub(super) struct Script(pub(super) Arc<Mutex<ScriptState>>);

#[derive(Default)]
pub(super) struct ScriptState {
    pub(super) now_ns: u64,
    pub(super) counters: BTreeMap<VmId, SchedCounters>,
    pub(super) culprits: BTreeMap<VmId, WaitCauses>,
    pub(super) disks: BTreeMap<VmId, DiskCounters>,
    pub(super) reclaim: ReclaimReading,
    pub(super) exits: ExitReading,
    /// That came to each device so far.
    pub(super) packets: u64,
    pub(super) calls: Vec<String>,
    pub(super) broken: bool,
    /// Which of the sources takes no VM.
    pub(super) refusing: Option<&'static str>,
    pub(super) shed: bool,
    pub(super) turn: u32,
}

impl ScriptState {
    fn refuses(&self, source: &'static str) -> Result<(), SourceError> {
        if self.refusing == Some(source) { Err("the map is full".into()) } else { Ok(()) }
    }
}

impl Costed for Script {
    fn name(&self) -> &'static str {
        "script"
    }
}

impl SchedSource for Script {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(format!("track {tgids:?}"));
        if state.broken {
            return Err("no slot left".into());
        }
        state.refuses("cpu")?;
        state.counters.entry(vm).or_insert_with(|| SchedCounters { threads: 3, ..SchedCounters::default() });
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        let mut state = self.0.lock().unwrap();
        state.calls.push("untrack".into());
        state.counters.remove(&vm);
        Ok(())
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken {
            return Err("broken".into());
        }
        Ok(SchedReading {
            taken_ns: state.now_ns,
            vms: state.counters.clone(),
            culprits: state.culprits.clone(),
            threads_unmeasured: 3,
            turn: state.turn,
        })
    }
}

impl VmSource<BlockReading> for Script {
    fn track(&mut self, vm: VmId, _tgids: &[u32], _cgroups: &[u64]) -> Result<(), SourceError> {
        let mut state = self.0.lock().unwrap();
        state.refuses("disks")?;
        state.disks.entry(vm).or_default();
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.0.lock().unwrap().disks.remove(&vm);
        Ok(())
    }

    fn drain(&mut self) -> Result<Option<BlockReading>, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken {
            return Err("broken".into());
        }
        if state.shed {
            return Ok(None);
        }
        let rest = state.disks.values().next().cloned().unwrap_or_default();
        let (taken_ns, vms) = (state.now_ns, state.disks.clone());
        Ok(Some(BlockReading { taken_ns, vms, rest, requests_missed: state.now_ns / S }))
    }
}

impl VmSource<ExitReading> for Script {
    fn track(&mut self, vm: VmId, _tgids: &[u32], _cgroups: &[u64]) -> Result<(), SourceError> {
        let mut state = self.0.lock().unwrap();
        state.refuses("exits")?;
        state.exits.entry(vm).or_default();
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.0.lock().unwrap().exits.remove(&vm);
        Ok(())
    }

    fn drain(&mut self) -> Result<Option<ExitReading>, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken { Err("broken".into()) } else { Ok((!state.shed).then(|| state.exits.clone())) }
    }
}

impl VmSource<ReclaimReading> for Script {
    fn track(&mut self, vm: VmId, _tgids: &[u32], _cgroups: &[u64]) -> Result<(), SourceError> {
        let mut state = self.0.lock().unwrap();
        state.refuses("reclaim")?;
        state.reclaim.entry(vm).or_default();
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.0.lock().unwrap().reclaim.remove(&vm);
        Ok(())
    }

    fn drain(&mut self) -> Result<Option<ReclaimReading>, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken { Err("broken".into()) } else { Ok((!state.shed).then(|| state.reclaim.clone())) }
    }
}

/// On every device that is watched one packet in four was dropped, and the others waited.
impl DeviceSource<DropReading> for Script {
    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Option<DropReading>, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken {
            return Err("broken".into());
        }
        let counted = devices.values().map(|&ifindex| (ifindex, [(2, state.packets / 4)].into())).collect();
        let reasons = [(2, "full_ring".to_owned())].into();
        Ok((!state.shed).then_some(DropReading { devices, counted, reasons, missed: Some(7) }))
    }
}

impl DeviceSource<QueueReading> for Script {
    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Option<QueueReading>, SourceError> {
        let state = self.0.lock().unwrap();
        if state.broken {
            return Err("broken".into());
        }
        let waited = state.packets - state.packets / 4;
        let mut queue = TapQueue { waited_ns: waited * 2_000_000, ..TapQueue::default() };
        queue.waits_log2[11] = waited;
        let counted = devices.values().map(|&ifindex| (ifindex, queue)).collect();
        Ok((!state.shed).then_some(QueueReading { devices, counted }))
    }
}
