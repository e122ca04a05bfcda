//! Sizes that are commanded, one after the other: within their bounds, and not up and down.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, Means, MemoryWindow, Setting, VmId};
use gnomon_core::{PlannedAction, Reason};

use super::{Checker, Scene, ensure};
use crate::agent::Agent;
use crate::vm::SimVm;

/// Memory is handed out in steps of this.
const MIB: u64 = 1 << 20;

/// Growths that are remembered of one VM and means.
const GROWTHS_MAX: usize = 64;

/// How the sizes of one VM and means went up and down, in cores or bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Swing {
    grown: Vec<(Timestamp, f64)>,
    shrunk: Option<Timestamp>,
}

/// What was told of VMs' memory last.
pub(super) type ToldMemory = BTreeMap<VmId, MemoryWindow>;

impl Checker {
    /// Judges a size that was planned for a VM on a host.
    pub(super) fn judge_size(
        &mut self,
        scene: &Scene<'_>,
        host: &HostId,
        vm: Option<&SimVm>,
        planned: &PlannedAction,
        target: Setting,
    ) -> Result<(), (&'static str, String)> {
        let (Some(agent), Some(vm)) = (scene.agents.get(host), vm) else { return Ok(()) };
        let shrinks = matches!(planned.reason, Reason::Slack { .. } | Reason::MemorySlack { .. });
        match target {
            Setting::CpuQuota { cores: Some(cores) } => {
                let floor = scene.policy.cpu.floor_cores.max(agent.facts.cpu_bounds.floor_cores);
                let ceiling = agent.facts.cpu_bounds.ceiling_cores.min(f64::from(vm.allocation.vcpus));
                ensure((floor..=ceiling).contains(&cores), "no size is out of bounds", || {
                    format!("{floor}..={ceiling}")
                })?;
                let rhythm = (scene.policy.cpu.shrink_dwell_ms, scene.policy.cpu.shrink_interval_ms);
                self.judge_rhythm(scene.now, (vm.id, target.means()), shrinks, cores, rhythm)
            }
            Setting::Memory { bytes } => {
                let floor = scene.policy.memory.floor_bytes.min(vm.allocation.memory_bytes);
                let within = (floor..=vm.allocation.memory_bytes).contains(&bytes);
                ensure(within, "no size is out of bounds", || format!("not below {floor}"))?;
                if shrinks {
                    self.judge_taking(scene, agent, vm, bytes)?;
                } else {
                    let others: u64 = agent.vms.iter().filter(|other| other.id != vm.id).map(SimVm::has_bytes).sum();
                    let has = agent.facts.memory_bytes;
                    ensure(others + bytes <= has, "no balloon grows beyond what its host has", || {
                        format!("{} of {has}", others + bytes)
                    })?;
                }
                let rhythm = (scene.policy.memory.shrink_dwell_ms, scene.policy.memory.shrink_interval_ms);
                self.judge_rhythm(scene.now, (vm.id, target.means()), shrinks, bytes as f64, rhythm)
            }
            other => Err(("only planned means are used", other.to_string())),
        }
    }

    /// Memory that is taken away: by no more than a step, and never below live use, as it was told last, and the reserve.
    fn judge_taking(
        &self,
        scene: &Scene<'_>,
        agent: &Agent,
        vm: &SimVm,
        bytes: u64,
    ) -> Result<(), (&'static str, String)> {
        let bounds = agent.facts.memory_bounds;
        let step_max = bounds.shrink_step_max.min(scene.policy.memory.shrink_step_max);
        let has = vm.has_bytes();
        let least = has - (has as f64 * step_max) as u64;
        ensure(bytes + MIB > least, "memory is taken in small steps", || format!("{bytes} of {has}"))?;
        let demand = self.told_memory.get(&vm.id).and_then(MemoryWindow::guest_demand_bytes).unwrap_or(0);
        let least = (demand + bounds.reserve_bytes).min(vm.allocation.memory_bytes);
        ensure(bytes + MIB > least, "no memory is taken below live use and reserve", || format!("{bytes} of {least}"))
    }

    /// What was grown is not taken back within the dwell time, and shrinks keep their distance: so a size turns around twice in a dwell time at
    /// most, however its demand does.
    fn judge_rhythm(
        &mut self,
        now: Timestamp,
        of: (VmId, Means),
        shrinks: bool,
        size: f64,
        (dwell_ms, interval_ms): (u64, u64),
    ) -> Result<(), (&'static str, String)> {
        let (dwell, interval) = (Duration::from_millis(dwell_ms), Duration::from_millis(interval_ms));
        let swing = self.swings.entry(of).or_default();
        swing.grown.retain(|(at, _)| now.since(*at) < dwell);
        if !shrinks {
            swing.grown.truncate(GROWTHS_MAX - 1);
            swing.grown.push((now, size));
            return Ok(());
        }
        let taken = swing.grown.iter().find(|(_, grown)| size < grown - 1e-9);
        ensure(taken.is_none(), "what was just grown is not taken back", || format!("{size} after {taken:?}"))?;
        let shrunk = swing.shrunk.replace(now);
        let rested = shrunk.is_none_or(|at| now.since(at) >= interval);
        ensure(rested, "shrinks keep their distance", || format!("the last one was at {shrunk:?}"))
    }
}
