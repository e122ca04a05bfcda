//! A second opinion on every plan, before it leaves: it knows the rules but not how the planner came to its result.

use std::collections::BTreeMap;

use gnomon_common::wire::{Action, Fence, HostId, Setting, VmId};
use thiserror::Error;

use super::memory::{BALLOON_STEP_BYTES, BalloonSizing};
use super::size::{Bounds, QUOTA_STEP_CORES, Surplus};
use super::{Plan, PlannedAction, Reason};
use crate::policy::Mode;

/// What the linter is told about a VM, apart from the planner.
#[derive(Clone, Debug)]
pub(crate) struct VmFacts {
    pub(crate) host: Option<HostId>,
    pub(crate) bounds: Option<Bounds>,
    pub(crate) limit_cores: f64,
    pub(crate) live_cores: f64,
    /// `None` where memory has no size to plan.
    pub(crate) balloon: Option<BalloonSizing>,
    /// What the balloons of its host may grow by together.
    pub(crate) spare_bytes: u64,
    pub(crate) command_in_flight: bool,
    /// An operator or the agent keeps Gnomon's hands off what the action would change.
    pub(crate) hands_off: bool,
    /// Until when it may be given something on top, and how much, in cores.
    pub(crate) surplus: Option<Surplus>,
    /// What provides for its live demand, in cores.
    pub(crate) ordinary_cores: f64,
    /// No forecast of it has the skill that policy asks for.
    pub(crate) is_doubted: bool,
    /// It is no time to shrink or move VMs.
    pub(crate) outside_windows: bool,
    /// What may be done with a plan for it, where it is to leave.
    pub(crate) mode: Option<Mode>,
    /// Mode `approve` asks for an operator's word.
    pub(crate) asks: bool,
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
    #[error("what would be changed of VM {0} is not Gnomon's to change now")]
    HandsOff(VmId),
    #[error("VM {0} would be given something on top of its demand without reason, too much, or too late")]
    Surplus(VmId),
    #[error("VM {0} would grow on the word of a forecast with too little skill")]
    Doubted(VmId),
    #[error("VM {0} would be shrunk or moved outside the maintenance windows")]
    Windows(VmId),
    #[error("what would be changed of VM {0} waits for an operator's approval")]
    Unapproved(VmId),
    #[error("VM {vm} would be changed in mode {mode}")]
    Mode { vm: VmId, mode: Mode },
    #[error("VM {0} would be changed by a means that nothing is planned by")]
    Means(VmId),
    #[error("{cores} cores for VM {vm} are outside its bounds, or not a multiple of {QUOTA_STEP_CORES}")]
    Bounds { vm: VmId, cores: f64 },
    #[error("VM {vm} would shrink to {cores} cores, below its live demand of {live_cores}")]
    BelowLive { vm: VmId, cores: f64, live_cores: f64 },
    #[error("{bytes} bytes for VM {vm} are outside its bounds, or not a multiple of {BALLOON_STEP_BYTES}")]
    MemoryBounds { vm: VmId, bytes: u64 },
    #[error("VM {vm} would shrink to {bytes} bytes, below its live use and reserve of {least}")]
    BelowLiveUse { vm: VmId, bytes: u64, least: u64 },
    #[error("VM {vm} would shrink to {bytes} bytes, in too large a step: not below {least} at once")]
    Step { vm: VmId, bytes: u64, least: u64 },
    #[error("VM {0} would grow beyond the memory that its host has to spare")]
    Spare(VmId),
    #[error("VM {0} would shrink for a reason to grow, or grow for a reason to shrink")]
    Reason(VmId),
}

/// Checks a plan against the facts about its VMs. `last` is the fence of the plan before.
pub(crate) fn check(
    plan: &Plan,
    last: Fence,
    facts: impl Fn(&PlannedAction) -> Option<VmFacts>,
) -> Result<(), Violation> {
    if plan.fence <= last {
        return Err(Violation::Fence { fence: plan.fence, last });
    }
    if let Some(pair) = plan.actions.windows(2).find(|pair| pair[0].vm >= pair[1].vm) {
        return Err(Violation::Order(pair[1].vm));
    }
    let mut granted_bytes: BTreeMap<&HostId, u64> = BTreeMap::new();
    for action in &plan.actions {
        let vm = action.vm;
        let facts =
            facts(action).filter(|facts| facts.host.as_ref() == Some(&action.host)).ok_or(Violation::Host(vm))?;
        // What is in flight is what it is about.
        if facts.command_in_flight && action.action != Action::AbortMigration {
            return Err(Violation::InFlight(vm));
        }
        // What an operator asks for is the operator's judgement, and the agent's: it refuses what its bounds forbid.
        if action.reason == Reason::Operator {
            continue;
        }
        if facts.hands_off {
            return Err(Violation::HandsOff(vm));
        }
        if let (Reason::Anomaly { until, .. }, Action::Set(Setting::CpuQuota { cores: Some(cores) })) =
            (action.reason, &action.action)
        {
            let within = |surplus: Surplus| {
                plan.at < surplus.until
                    && until <= surplus.until
                    && *cores <= facts.ordinary_cores + surplus.cores + QUOTA_STEP_CORES
            };
            if !facts.surplus.is_some_and(within) {
                return Err(Violation::Surplus(vm));
            }
        }
        if facts.is_doubted && matches!(action.reason, Reason::ForecastSurge { .. }) {
            return Err(Violation::Doubted(vm));
        }
        if facts.outside_windows && action.reason.keeps_to_windows() {
            return Err(Violation::Windows(vm));
        }
        match facts.mode {
            None | Some(Mode::Auto) => {}
            Some(Mode::Approve) if action.approved_by.is_some() || !facts.asks => {}
            Some(Mode::Approve) => return Err(Violation::Unapproved(vm)),
            Some(mode @ (Mode::Recommend | Mode::Observe)) => return Err(Violation::Mode { vm, mode }),
        }
        match action.action {
            Action::Set(Setting::CpuQuota { cores: Some(cores) }) => quota(vm, cores, action.reason, &facts)?,
            Action::Set(Setting::Memory { bytes }) => {
                memory(vm, bytes, action.reason, &facts)?;
                let granted_bytes = granted_bytes.entry(&action.host).or_default();
                let grows_by = bytes.saturating_sub(facts.balloon.map_or(0, |sizing| sizing.balloon));
                *granted_bytes = granted_bytes.saturating_add(grows_by);
                if *granted_bytes > facts.spare_bytes && !action.reason.is_slack() {
                    return Err(Violation::Spare(vm));
                }
            }
            // Of moves there is more to know: see [`super::balance`].
            Action::Migrate(_) => {}
            Action::Set(_)
            | Action::Release
            | Action::AbortMigration
            | Action::Describe
            | Action::Image(_)
            | Action::DirtyRate { .. }
            | Action::Shadow(_) => {
                return Err(Violation::Means(vm));
            }
        }
    }
    Ok(())
}

fn quota(vm: VmId, cores: f64, reason: Reason, facts: &VmFacts) -> Result<(), Violation> {
    let within = facts.bounds.is_some_and(|bounds| (bounds.floor..=bounds.ceiling).contains(&cores));
    let steps = cores / QUOTA_STEP_CORES;
    if !within || (steps - steps.round()).abs() > 1e-6 {
        return Err(Violation::Bounds { vm, cores });
    }
    let shrinks = cores < facts.limit_cores;
    let fits = match reason {
        Reason::Slack { .. } => shrinks,
        Reason::LiveDemand { .. } | Reason::ForecastSurge { .. } | Reason::Promise { .. } | Reason::Anomaly { .. } => {
            !shrinks
        }
        _ => false,
    };
    if !fits {
        return Err(Violation::Reason(vm));
    }
    let ceiling = facts.bounds.map_or(0.0, |bounds| bounds.ceiling);
    if shrinks && cores < facts.live_cores.min(ceiling) {
        return Err(Violation::BelowLive { vm, cores, live_cores: facts.live_cores });
    }
    Ok(())
}

fn memory(vm: VmId, bytes: u64, reason: Reason, facts: &VmFacts) -> Result<(), Violation> {
    let Some(sizing) = facts.balloon.filter(|sizing| (sizing.floor..=sizing.ceiling).contains(&bytes)) else {
        return Err(Violation::MemoryBounds { vm, bytes });
    };
    if !bytes.is_multiple_of(BALLOON_STEP_BYTES) {
        return Err(Violation::MemoryBounds { vm, bytes });
    }
    let shrinks = bytes < sizing.balloon;
    let fits = match reason {
        Reason::MemorySlack { .. } => shrinks,
        Reason::LiveMemory { .. } | Reason::GuestStarves { .. } => !shrinks,
        _ => false,
    };
    if !fits {
        return Err(Violation::Reason(vm));
    }
    let least = sizing.demand.saturating_add(sizing.reserve).min(sizing.ceiling);
    if shrinks && bytes < least {
        return Err(Violation::BelowLiveUse { vm, bytes, least });
    }
    let least = sizing.step_floor();
    if shrinks && bytes < least {
        return Err(Violation::Step { vm, bytes, least });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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

    const MIB: u64 = 1 << 20;

    fn set(number: u128, target: Setting, reason: Reason) -> PlannedAction {
        PlannedAction {
            host: host(),
            vm: vm(number),
            action: Action::Set(target),
            before: None,
            reason,
            along: None,
            approved_by: None,
        }
    }

    fn action(number: u128, cores: f64, reason: Reason) -> PlannedAction {
        set(number, Setting::CpuQuota { cores: Some(cores) }, reason)
    }

    fn balloon(bytes: u64, reason: Reason) -> Result<(), Violation> {
        verdict(vec![set(1, Setting::Memory { bytes }, reason)])
    }

    fn verdict(actions: Vec<PlannedAction>) -> Result<(), Violation> {
        let plan = Plan { at: Timestamp::default(), fence: Fence { term: 1, generation: 2 }, actions };
        check(&plan, LAST, |asked| {
            Some(VmFacts {
                host: Some(host()),
                bounds: Some(Bounds { floor: 0.1, ceiling: 1.0 }),
                limit_cores: 0.5,
                live_cores: 0.3,
                balloon: Some(BalloonSizing {
                    floor: 256 * MIB,
                    ceiling: 2048 * MIB,
                    balloon: 1000 * MIB,
                    demand: 880 * MIB,
                    reserve: 80 * MIB,
                    step_max: 0.05,
                    starved: false,
                }),
                spare_bytes: 1000 * MIB,
                command_in_flight: asked.vm == vm(9),
                hands_off: asked.vm == vm(8),
                surplus: (asked.vm != vm(3)).then_some(Surplus { cores: 0.2, until: Timestamp::from_unix_ms(1000) }),
                ordinary_cores: 0.5,
                is_doubted: asked.vm == vm(5),
                outside_windows: asked.vm == vm(6),
                mode: [(vm(7), Mode::Approve), (vm(10), Mode::Recommend)]
                    .into_iter()
                    .find(|(of, _)| asked.vm == *of)
                    .map(|(_, mode)| mode),
                asks: true,
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
        assert_eq!(verdict(vec![action(8, 0.8, grow)]), Err(Violation::HandsOff(vm(8))));
        let surge = Reason::ForecastSurge { at: Timestamp::default(), demand_cores: 0.7 };
        assert_eq!(verdict(vec![action(4, 0.8, surge), action(5, 0.8, grow)]), Ok(()));
        assert_eq!(verdict(vec![action(5, 0.8, surge)]), Err(Violation::Doubted(vm(5))));
        assert_eq!(verdict(vec![action(6, 0.8, grow)]), Ok(()));
        assert_eq!(verdict(vec![action(6, 0.33, shrink)]), Err(Violation::Windows(vm(6))));
        assert_eq!(verdict(vec![action(7, 0.8, grow)]), Err(Violation::Unapproved(vm(7))));
        let approved = PlannedAction { approved_by: Some("alice".to_owned()), ..action(7, 0.8, grow) };
        assert_eq!(verdict(vec![approved]), Ok(()));
        let recommended = verdict(vec![action(10, 0.8, grow)]);
        assert_eq!(recommended, Err(Violation::Mode { vm: vm(10), mode: Mode::Recommend }));
        let means = verdict(vec![set(1, Setting::CpuWeight { weight: 7 }, grow)]);
        assert_eq!(means, Err(Violation::Means(vm(1))));
    }

    #[test]
    fn what_is_given_on_top_is_due_bounded_and_in_time() {
        let until = |ms| Reason::Anomaly { demand_cores: 0.45, surplus_cores: 0.2, until: Timestamp::from_unix_ms(ms) };
        assert_eq!(verdict(vec![action(1, 0.7, until(1000))]), Ok(()));
        assert_eq!(verdict(vec![action(1, 0.72, until(1000))]), Err(Violation::Surplus(vm(1))), "too much");
        assert_eq!(verdict(vec![action(1, 0.7, until(1001))]), Err(Violation::Surplus(vm(1))), "for too long");
        assert_eq!(verdict(vec![action(3, 0.7, until(1000))]), Err(Violation::Surplus(vm(3))), "without an incident");
        assert_eq!(verdict(vec![action(1, 0.4, until(1000))]), Err(Violation::Reason(vm(1))), "it takes away");
    }

    #[test]
    fn each_broken_rule_about_memory_is_found() {
        let grow = Reason::LiveMemory { demand_bytes: 1 };
        let shrink = Reason::MemorySlack { demand_bytes: 1 };
        assert_eq!(balloon(1500 * MIB, grow), Ok(()));
        assert_eq!(balloon(960 * MIB, shrink), Ok(()));
        for bytes in [255 * MIB, 2049 * MIB, 1500 * MIB + 1] {
            assert_eq!(balloon(bytes, grow), Err(Violation::MemoryBounds { vm: vm(1), bytes }));
        }
        assert!(matches!(balloon(955 * MIB, shrink), Err(Violation::BelowLiveUse { .. })));
        assert_eq!(balloon(960 * MIB, grow), Err(Violation::Reason(vm(1))));
        assert_eq!(balloon(1500 * MIB, shrink), Err(Violation::Reason(vm(1))));
        let grown = |number, mib: u64| set(number, Setting::Memory { bytes: mib * MIB }, grow);
        assert_eq!(verdict(vec![grown(1, 1500), grown(2, 1500)]), Ok(()));
        assert_eq!(verdict(vec![grown(1, 1500), grown(2, 1501)]), Err(Violation::Spare(vm(2))), "together");
        assert_eq!(balloon(1500 * MIB, Reason::LiveDemand { demand_cores: 1.0 }), Err(Violation::Reason(vm(1))));
    }

    #[test]
    fn a_step_that_takes_too_much_is_refused_however_little_is_used() {
        let plan = Plan {
            at: Timestamp::default(),
            fence: Fence { term: 1, generation: 2 },
            actions: vec![set(1, Setting::Memory { bytes: 949 * MIB }, Reason::MemorySlack { demand_bytes: 1 })],
        };
        let refused = check(&plan, LAST, |_| {
            Some(VmFacts {
                host: Some(host()),
                bounds: None,
                limit_cores: 0.0,
                live_cores: 0.0,
                balloon: Some(BalloonSizing {
                    floor: 256 * MIB,
                    ceiling: 2048 * MIB,
                    balloon: 1000 * MIB,
                    demand: 100 * MIB,
                    reserve: 64 * MIB,
                    step_max: 0.05,
                    starved: false,
                }),
                spare_bytes: 0,
                command_in_flight: false,
                hands_off: false,
                surplus: None,
                ordinary_cores: 0.0,
                is_doubted: false,
                outside_windows: false,
                mode: Some(Mode::Auto),
                asks: true,
            })
        });
        assert!(matches!(refused, Err(Violation::Step { .. })), "{refused:?}");
    }

    #[test]
    fn an_operator_may_ask_for_anything_while_nothing_is_in_flight() {
        for target in
            [Setting::CpuQuota { cores: Some(0.001) }, Setting::CpuQuota { cores: None }, Setting::Vcpus { count: 9 }]
        {
            assert_eq!(verdict(vec![set(8, target, Reason::Operator)]), Ok(()));
            assert_eq!(verdict(vec![set(9, target, Reason::Operator)]), Err(Violation::InFlight(vm(9))));
        }
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
