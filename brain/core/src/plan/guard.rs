//! The rules that keep plans safe, those of moves first, by name, so that a test can take one away and see what then goes wrong.

/// A rule that the planner keeps. Those that a single plan can break the linter keeps as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// What a VM's owner and its definition say.
    Terms,
    /// What an operator paused or released, and what an agent stands down for.
    Hold,
    /// No VM goes to a host that is being emptied.
    Draining,
    /// One VM at a time on its way to a host, and one from it.
    Inflow,
    /// So many on their way at once in the whole fleet.
    AtOnce,
    /// So many moves in an hour.
    Budget,
    /// So many resizes in an hour, of one VM and in the whole fleet.
    Resizes,
    /// A VM that was moved stays for a while.
    CoolDown,
    /// A host is full in several reports in a row before anything is done about it.
    Rounds,
    /// A move has to be worth it.
    Gain,
    /// The target's CPU has room for the forecast of the VM beside those of its own.
    Cpu,
    /// The target's memory has room.
    Memory,
    /// VMs that belong apart do not meet.
    Apart,
    /// VMs that belong together are not parted.
    Together,
    /// A VM stays in its zone where policy says so, and VMs that belong in different zones do not meet in one.
    Zone,
    /// The target has the labels that a VM's owner asks for, as has a shadow's host.
    Labels,
    /// The target is connected and told of its load a moment ago.
    Fresh,
    /// Where somebody else moves VMs, Gnomon does not.
    Stranger,
    /// On the word of a forecast that policy finds too poor, nothing is done.
    Skill,
    /// Nothing is shrunk or moved outside maintenance windows.
    Windows,
    /// A VM gets one command at a time.
    InFlight,
    /// No size is below the floor of policy and agent.
    Floor,
    /// No quota is above the agent's ceiling, or what the vCPUs can use.
    Ceiling,
    /// What was wanted within the dwell time is not taken away.
    Dwell,
    /// Shrinks keep their distance.
    Distance,
    /// Memory is not taken below live use and the agent's reserve.
    Reserve,
    /// Memory is taken in small steps.
    Step,
    /// No balloon grows beyond the memory that its host has.
    Spare,
    /// In mode `approve`, nothing leaves that no operator approved.
    Approval,
    /// No more is done with a plan than the most cautious mode allows that an operator or an owner gave to the fleet, a host or a VM.
    Modes,
    /// No shadow is made or started beside its production, or where that is going; and no production goes to where its shadow stays.
    ShadowApart,
}

impl Guard {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::Terms,
        Self::Hold,
        Self::Draining,
        Self::Inflow,
        Self::AtOnce,
        Self::Budget,
        Self::Resizes,
        Self::CoolDown,
        Self::Rounds,
        Self::Gain,
        Self::Cpu,
        Self::Memory,
        Self::Apart,
        Self::Together,
        Self::Zone,
        Self::Labels,
        Self::Fresh,
        Self::Stranger,
        Self::Skill,
        Self::Windows,
        Self::InFlight,
        Self::Floor,
        Self::Ceiling,
        Self::Dwell,
        Self::Distance,
        Self::Reserve,
        Self::Step,
        Self::Spare,
        Self::Approval,
        Self::Modes,
        Self::ShadowApart,
    ];

    /// Whether the linter sees a plan that breaks it. The others are about more than one plan, or about what is worth while.
    pub fn is_linted(self) -> bool {
        !matches!(
            self,
            Self::Budget
                | Self::Resizes
                | Self::CoolDown
                | Self::Rounds
                | Self::Gain
                | Self::Stranger
                | Self::Dwell
                | Self::Distance
        )
    }
}

/// Which guards are on: all, outside tests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Guards {
    pub(crate) planner_lacks: Option<Guard>,
    pub(crate) linter_lacks: Option<Guard>,
}

impl Guards {
    /// Whether the planner keeps a rule.
    pub(crate) fn plans(self, guard: Guard) -> bool {
        self.planner_lacks != Some(guard)
    }

    /// Whether the linter does.
    pub(crate) fn lints(self, guard: Guard) -> bool {
        self.linter_lacks != Some(guard)
    }
}
