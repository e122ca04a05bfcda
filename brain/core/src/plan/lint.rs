//! A second opinion on every plan, before it leaves: it knows the rules but not how the planner came to its result.

use gnomon_common::wire::{Action, Fence, HostId, Setting, VmId};
use thiserror::Error;

use super::size::{Bounds, QUOTA_STEP_CORES};
use super::{Plan, Reason};

/// What the linter is told about a VM, apart from the planner.
#[derive(Clone, Debug)]
pub(crate) struct VmFacts {
    pub(crate) host: Option<HostId>,
    pub(crate) bounds: Option<Bounds>,
    pub(crate) limit_cores: f64,
    pub(crate) live_cores: f64,
    pub(crate) command_in_flight: bool,
}

/// A rule that a plan breaks. Such a plan is dropped whole: whatever made it cannot be trusted.
#[derive(Clone, Debug, PartialEq, Error)]
pub(crate) enum Violation {
    #[error("its fence ({fence}) is not newer than the last plan's ({last})")]
    Fence { fence: Fence, last: Fence },
    #[error("its actions are not sorted by VM, or name one twice (at {0})")]
    Order(VmId),
    #[error("VM {0} is not on the host that the action names")]
    Host(VmId),
    #[error("VM {0} has a command in flight")]
    InFlight(VmId),
    #[error("{cores} cores for VM {vm} are outside its bounds, or not a multiple of {QUOTA_STEP_CORES}")]
    Bounds { vm: VmId, cores: f64 },
    #[error("VM {vm} would shrink to {cores} cores, below its live demand of {live_cores}")]
    BelowLive { vm: VmId, cores: f64, live_cores: f64 },
    #[error("VM {0} would shrink for a reason to grow, or grow for a reason to shrink")]
    Reason(VmId),
}

/// Checks a plan against the facts about its VMs. `last` is the fence of the plan before.
pub(crate) fn check(plan: &Plan, last: Fence, facts: impl Fn(VmId) -> Option<VmFacts>) -> Result<(), Violation> {
    if plan.fence <= last {
        return Err(Violation::Fence { fence: plan.fence, last });
    }
    if let Some(pair) = plan.actions.windows(2).find(|pair| pair[0].vm >= pair[1].vm) {
        return Err(Violation::Order(pair[1].vm));
    }
    for action in &plan.actions {
        let vm = action.vm;
        let facts = facts(vm).filter(|facts| facts.host.as_ref() == Some(&action.host)).ok_or(Violation::Host(vm))?;
        if facts.command_in_flight {
            return Err(Violation::InFlight(vm));
        }
        if let Action::Set(Setting::CpuQuota { cores: Some(cores) }) = action.action {
            let within = facts.bounds.is_some_and(|bounds| (bounds.floor..=bounds.ceiling).contains(&cores));
            let steps = cores / QUOTA_STEP_CORES;
            if !within || (steps - steps.round()).abs() > 1e-6 {
                return Err(Violation::Bounds { vm, cores });
            }
            let shrinks = cores < facts.limit_cores;
            if shrinks != matches!(action.reason, Reason::Slack { .. }) {
                return Err(Violation::Reason(vm));
            }
            let ceiling = facts.bounds.map_or(0.0, |bounds| bounds.ceiling);
            if shrinks && cores < facts.live_cores.min(ceiling) {
                return Err(Violation::BelowLive { vm, cores, live_cores: facts.live_cores });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::PlannedAction;
    use super::*;
    use gnomon_common::time::Timestamp;
    use uuid::Uuid;

    const LAST: Fence = Fence { term: 1, generation: 1 };

    fn vm(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    fn host() -> HostId {
        HostId::new("a").unwrap()
    }

    fn action(number: u128, cores: f64, reason: Reason) -> PlannedAction {
        let action = Action::Set(Setting::CpuQuota { cores: Some(cores) });
        PlannedAction {
            host: host(),
            vm: vm(number),
            action,
            before: Some(Setting::CpuQuota { cores: Some(0.5) }),
            reason,
        }
    }

    fn verdict(actions: Vec<PlannedAction>) -> Result<(), Violation> {
        let plan = Plan { at: Timestamp::default(), fence: Fence { term: 1, generation: 2 }, actions };
        check(&plan, LAST, |asked| {
            Some(VmFacts {
                host: Some(host()),
                bounds: Some(Bounds { floor: 0.1, ceiling: 1.0 }),
                limit_cores: 0.5,
                live_cores: 0.3,
                command_in_flight: asked == vm(9),
            })
        })
    }

    #[test]
    fn each_broken_rule_is_found() {
        let grow = Reason::LiveDemand { demand_cores: 0.7 };
        let shrink = Reason::Slack { demand_cores: 0.3 };
        assert_eq!(verdict(vec![action(1, 0.8, grow), action(2, 0.33, shrink)]), Ok(()));
        assert_eq!(verdict(vec![action(2, 0.8, grow), action(1, 0.8, grow)]), Err(Violation::Order(vm(1))));
        assert_eq!(verdict(vec![action(1, 0.8, grow), action(1, 0.8, grow)]), Err(Violation::Order(vm(1))));
        assert_eq!(verdict(vec![action(9, 0.8, grow)]), Err(Violation::InFlight(vm(9))));
        for cores in [1.01, 0.805] {
            assert_eq!(verdict(vec![action(1, cores, grow)]), Err(Violation::Bounds { vm: vm(1), cores }));
        }
        assert!(matches!(verdict(vec![action(1, f64::NAN, grow)]), Err(Violation::Bounds { .. })));
        assert!(matches!(verdict(vec![action(1, 0.2, shrink)]), Err(Violation::BelowLive { .. })));
        assert_eq!(verdict(vec![action(1, 0.8, shrink)]), Err(Violation::Reason(vm(1))));
        assert_eq!(verdict(vec![action(1, 0.4, grow)]), Err(Violation::Reason(vm(1))));
    }

    #[test]
    fn a_fence_that_does_not_rise_and_a_vm_that_moved_are_refused() {
        let plan = Plan { at: Timestamp::default(), fence: LAST, actions: Vec::new() };
        assert!(matches!(check(&plan, LAST, |_| None), Err(Violation::Fence { .. })));
        let grow = action(1, 0.8, Reason::LiveDemand { demand_cores: 0.7 });
        let plan = Plan { at: Timestamp::default(), fence: Fence { term: 2, generation: 0 }, actions: vec![grow] };
        assert_eq!(check(&plan, LAST, |_| None), Err(Violation::Host(vm(1))));
    }
}
