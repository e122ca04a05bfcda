//! An operator's own hand: one means of one VM, brought to a state and left there.
//!
//! It is sent at once, whatever the mode and past any pause, and the agent judges it like every other command. Once it is applied the
//! means is held: the planner leaves it alone until the VM is resumed or released. What is refused or fails holds nothing.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, CommandId, HostId, Means, Setting, VmId, VmState};
use thiserror::Error;

use super::Core;
use super::hold::HOLDS_MAX;
use crate::io::{Hold, Record};
use crate::plan::{PlannedAction, Reason};

/// The range of cgroup v2's `cpu.weight` (Documentation/admin-guide/cgroup-v2.rst).
const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Why an operator's setting cannot be sent now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetRefusal {
    /// It is on no host.
    #[error("there is no such VM on any host")]
    UnknownVm,
    /// A target that makes no sense.
    #[error("{0}")]
    Nonsense(&'static str),
    /// It does not run.
    #[error("the VM is {state:?}: its limits can only be set while it runs or is paused")]
    NotRunning {
        /// What it does.
        state: VmState,
    },
    /// The agent may not do it.
    #[error(
        "the agent of host {host} is not configured to change the {means}; see the section [guard] of its configuration"
    )]
    NotAllowed {
        /// Whose agent.
        host: HostId,
        /// Which means.
        means: Means,
    },
    /// A release is in force.
    #[error("the VM is released, so that its limits are left as they were before Gnomon came; resume it first")]
    Released,
    /// The agent keeps its hands off.
    #[error(
        "the agent of host {host} stands down for this VM, because someone else changed its limits; resume it first"
    )]
    StoodDown {
        /// Whose agent.
        host: HostId,
    },
    /// The agent is away.
    #[error("the agent of host {host} is not connected; try again once it is")]
    Away {
        /// Whose agent.
        host: HostId,
    },
    /// One command at a time.
    #[error("command {0} is on its way to this VM; try again once it is answered")]
    InFlight(CommandId),
    /// Too much is held already.
    #[error("{HOLDS_MAX} holds are in force already; resume some VMs")]
    Full,
}

impl Core {
    /// Whether an operator's setting can be sent now, and what would be sent.
    pub fn may_set(&self, vm: VmId, setting: Setting) -> Result<PlannedAction, SetRefusal> {
        sense(setting).map_err(SetRefusal::Nonsense)?;
        let known = self.fleet.vms.get(&vm).ok_or(SetRefusal::UnknownVm)?;
        let host = known.host.clone().ok_or(SetRefusal::UnknownVm)?;
        let facts = &self.fleet.hosts.get(&host).ok_or(SetRefusal::UnknownVm)?.facts;
        let means = setting.means();
        if !matches!(known.state, VmState::Running | VmState::Paused) {
            return Err(SetRefusal::NotRunning { state: known.state });
        }
        if !facts.means.contains(&means) {
            return Err(SetRefusal::NotAllowed { host, means });
        }
        if self.holds.on_vm(vm, Some(&host)) == Some(Hold::Released) {
            return Err(SetRefusal::Released);
        }
        if known.stood_down {
            return Err(SetRefusal::StoodDown { host });
        }
        if !self.is_connected(&host) {
            return Err(SetRefusal::Away { host });
        }
        if let Some(flight) = &known.flight {
            return Err(SetRefusal::InFlight(flight.record.command.id));
        }
        if self.holds.is_full() && !self.holds.on_means(vm, means) {
            return Err(SetRefusal::Full);
        }
        let before = known.in_force(setting);
        Ok(PlannedAction {
            host,
            vm,
            action: Action::Set(setting),
            before,
            reason: Reason::Operator,
            along: None,
            approved_by: None,
        })
    }

    pub(super) fn set(&mut self, now: Timestamp, actor: &str, vm: VmId, setting: Setting) {
        let object = format!("vm {vm}");
        match self.may_set(vm, setting) {
            Ok(action) => {
                self.audit(now, actor, "set", object, action.summary());
                self.send(now, vec![action]);
            }
            Err(refusal) => {
                let detail = format!("set {} -> {setting}: {refusal}", setting.means());
                self.audit(now, actor, "refused", object, detail);
            }
        }
    }

    /// An operator's setting is in force: it is held from now on.
    pub(super) fn hold_setting(&mut self, vm: VmId, asked: Setting, after: &[Setting]) {
        let means = asked.means();
        let setting = after.iter().find(|after| after.means() == means).copied().unwrap_or(asked);
        self.holds.hold_means(vm, setting);
        self.persist(Record::Setting { vm, means, setting: Some(setting) });
    }
}

/// What no agent would take, said before anything is sent.
fn sense(setting: Setting) -> Result<(), &'static str> {
    match setting {
        Setting::CpuQuota { cores: Some(cores) } if !(cores.is_finite() && cores > 0.0) => {
            Err("a CPU quota is a number of cores above 0; null is unlimited")
        }
        Setting::CpuWeight { weight } if !WEIGHTS.contains(&weight) => Err("a CPU weight is within 1 to 10000"),
        Setting::Memory { bytes: 0 } => Err("no guest lives with 0 bytes of memory"),
        Setting::Vcpus { count: 0 } => Err("no guest lives with 0 vCPUs"),
        Setting::DiskLimit { bytes_per_s: Some(0), .. }
        | Setting::DiskLimit { operations_per_s: Some(0), .. }
        | Setting::NetworkLimit { in_bytes_per_s: Some(0), .. }
        | Setting::NetworkLimit { out_bytes_per_s: Some(0), .. } => {
            Err("a limit of 0 would stop all traffic; null is unlimited")
        }
        _ => Ok(()),
    }
}
