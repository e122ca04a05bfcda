//! Looking back: what came of what was foreseen. Each verdict goes to the audit log, beside the command that it is about.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, Report, VmId};

use super::{ACTOR, Core};
use crate::plan::size::live_cores;
use crate::plan::surge::Surge;

impl Core {
    /// A command was carried out: if it was for a surge, that is awaited.
    pub(super) fn await_surge(&mut self, id: VmId, command: CommandId) {
        let near = Duration::from_millis(self.policy.forecast.resolution_ms);
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        // Which of its forecasts saw the surge is not told: the coarser one is no better known than to its step.
        let step = || vm.pattern.ahead(vm.window_end, Duration::ZERO).map_or(near, |far| near.max(far.step));
        let planned = vm.recent.iter().find(|recent| recent.id == Some(command)).map(|recent| &recent.action);
        let Some(surge) = planned.and_then(|action| Surge::of(command, action, step)) else { return };
        match &mut vm.surge {
            Some(awaited) => awaited.widen(&surge),
            none => *none = Some(surge),
        }
    }

    /// Holds the windows of a report, which ended at `end`, against the surges that its VMs were grown for.
    pub(super) fn look_back(&mut self, now: Timestamp, report: &Report, end: Timestamp) {
        let headroom = self.policy.cpu.headroom;
        let mut over = Vec::new();
        for window in &report.vms {
            // The host that it has left may tell of it for a while.
            let vm = self.fleet.vms.get_mut(&window.vm).filter(|vm| vm.host.as_ref() == Some(&report.host));
            let Some(vm) = vm else { continue };
            let Some(surge) = &mut vm.surge else { continue };
            if let Some(cpu) = vm.cpu {
                surge.see(end, live_cores(&cpu, &vm.allocation), vm.allocation.cpu_limit_cores());
            }
            if !surge.is_over(end) {
                continue;
            }
            let (command, seen) = (surge.command, surge.seen(headroom));
            vm.surge = None;
            // A VM that nobody measured meanwhile teaches nothing.
            let Some(seen) = seen else { continue };
            if let Some(recent) = vm.recent.iter_mut().find(|recent| recent.id == Some(command)) {
                recent.remark = Some(seen.to_string());
            }
            over.push((window.vm, command, seen));
        }
        for (vm, command, seen) in over {
            self.audit(now, ACTOR, seen.aftermath.name(), format!("vm {vm}"), format!("{command} {seen}"));
        }
    }
}
