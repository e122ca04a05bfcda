//! What goes into the core and what comes out of it.

use crate::MovePace;
use crate::archive::{Change, SealedBlock};
use crate::capacity::{CapacityAnswer, CapacityKey, CapacityRequest};
use crate::job::{FitJob, FitResult};
use crate::pattern::Corrections;
use crate::plan::Plan;
use crate::plan::contention::Calibrations;
use crate::plan::expectation::Expectation;
use crate::policy::{Mode, Policy};
use crate::proposal::{Proposal, ProposalKey};
use crate::shadow::Shadow;
use crate::shadow::trial::Proposed;
use crate::sizing::Promise;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Allocation, Command, HostFacts, HostId, Means, Outcome, OutcomeResult, Report, Setting, VmId, VmState, Whereabouts,
};
use serde::{Deserialize, Serialize};

/// Everything that can happen to the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// An agent connected and was welcomed.
    HostUp {
        /// Which host.
        host: HostId,
        /// What it is.
        facts: HostFacts,
    },
    /// An agent's connection ended, or three heart-beats were missed.
    HostLost {
        /// Which host.
        host: HostId,
    },
    /// A window of one host, already synced to the store and not seen before.
    Report(Box<Report>),
    /// What became of a command, or what an agent did of its own accord; already synced to the store and not seen before.
    Outcome {
        /// Who answered.
        host: HostId,
        /// The answer.
        outcome: Outcome,
    },
    /// An operator wants something.
    Operator {
        /// Who asked (the token's name), for the audit.
        actor: String,
        /// What.
        request: OperatorRequest,
    },
    /// The policy file was reloaded.
    Policy(Box<Policy>),
    /// A worker finished a job that came out as [`Output::Fit`].
    FitDone(Box<FitResult>),
    /// What came of an [`Output::Capacity`].
    CapacityAnswered {
        /// Which request.
        key: CapacityKey,
        /// What the provider said.
        answer: CapacityAnswer,
    },
}

/// What an operator can ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum OperatorRequest {
    /// Plan nothing within the scope until resumed (observing and forecasting go on).
    Pause {
        /// Where.
        scope: Scope,
    },
    /// End, within the scope: pauses, Gnomon's standing down after a release, what operators hold, and what agents stand down for.
    Resume {
        /// Where.
        scope: Scope,
    },
    /// Restore the baseline of every VM within the scope and stand down there until resumed.
    Release {
        /// Where.
        scope: Scope,
    },
    /// Do no more than this with plans within the scope, whatever wider scopes and policy say; `auto` leaves that to them.
    SetMode {
        /// Where.
        scope: Scope,
        /// What.
        mode: Mode,
    },
    /// Bring one means of a VM to this state now, in any mode, and leave that means alone until the VM is resumed or released. See
    /// [`Core::may_set`](crate::Core::may_set) for when it is possible.
    Set {
        /// Which VM.
        vm: VmId,
        /// To what.
        setting: Setting,
    },
    /// Move a VM to another host now, in any mode. See [`Core::may_migrate`](crate::Core::may_migrate) for when it is possible.
    Migrate {
        /// Which VM.
        vm: VmId,
        /// Where to.
        to: HostId,
    },
    /// Give up the move of a VM that is under way: it stays where it is, unless it has arrived. See
    /// [`Core::may_abort_migration`](crate::Core::may_abort_migration) for when it is possible.
    AbortMigration {
        /// Which VM.
        vm: VmId,
    },
    /// Empty a host, one VM after the other, as far as others have room, and send none there until [`OperatorRequest::Undrain`].
    Drain {
        /// Which host.
        host: HostId,
    },
    /// The host may have VMs again.
    Undrain {
        /// Which host.
        host: HostId,
    },
    /// Send a request for capacity to the provider. See [`Core::may_decide_capacity`](crate::Core::may_decide_capacity).
    ApproveCapacity {
        /// Which request.
        key: CapacityKey,
    },
    /// Never send it.
    DenyCapacity {
        /// Which request.
        key: CapacityKey,
    },
    /// Carry out a proposal, if it still holds. See [`Core::may_decide_proposal`](crate::Core::may_decide_proposal).
    ApproveProposal {
        /// Which.
        key: ProposalKey,
    },
    /// Do not carry it out, and do not propose the like for a while.
    DenyProposal {
        /// Which.
        key: ProposalKey,
    },
    /// Have a shadow made of a VM, whatever its owner and policy say.
    MakeShadow {
        /// Of which VM.
        vm: VmId,
    },
    /// Have the shadow of a VM replay so much of its load; `None` is what policy says.
    SetFidelity {
        /// Of which VM.
        vm: VmId,
        /// 0..=1.
        fidelity: Option<f64>,
    },
    /// Have the shadow of a VM play a forecast load as it would feel at another size. See [`Core::may_try_shadow`](crate::Core::may_try_shadow).
    TryShadow {
        /// Of which VM.
        vm: VmId,
        /// The size, and how much of the forecast.
        proposed: Proposed,
    },
    /// Take the shadow of a VM away, and make no other until one is asked for.
    RetireShadow {
        /// Of which VM.
        vm: VmId,
    },
}

/// Where an operator's request applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything.
    Fleet,
    /// Every VM on a host, also those that come later.
    Host(HostId),
    /// One VM, wherever it goes.
    Vm(VmId),
}

/// Everything that the core wants done. The driver takes outputs in order; it must have synced every [`Output::Persist`] to the
/// store before it carries out an [`Output::Command`] that comes after it (write-ahead).
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this command to this host's agent; drop it silently if the host is not connected (it expires by itself).
    Command {
        /// To whom.
        host: HostId,
        /// What.
        command: Command,
    },
    /// Write this to the store.
    Persist(Record),
    /// Tell people and metrics.
    Notice(Notice),
    /// Run [`FitJob::run`] on a worker and bring the result back as [`Input::FitDone`].
    Fit(Box<FitJob>),
    /// Ask the provider for this, and bring its answer back as [`Input::CapacityAnswered`], within a few minutes whatever
    /// happens. It may have been asked before under the same key. Like a command it leaves only after all that came before it is
    /// synced.
    Capacity(Box<CapacityRequest>),
}

/// What the store keeps of the core's doings.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A host appeared, changed its facts, or its agent came or went.
    Host {
        /// Which.
        host: HostId,
        /// What it is.
        facts: HostFacts,
        /// Whether its agent is connected.
        connected: bool,
        /// Since when that is so.
        at: Timestamp,
    },
    /// A VM appeared, moved, changed its name or state, or vanished.
    Vm {
        /// Which.
        vm: VmId,
        /// Its name.
        name: String,
        /// Where it is; `None` once it has vanished.
        host: Option<HostId>,
        /// Its state.
        state: VmState,
        /// Since when that is so.
        at: Timestamp,
    },
    /// A VM's allocation as last reported, or what it had before Gnomon's first change, differs from before.
    Allocation {
        /// Which VM.
        vm: VmId,
        /// What it may use.
        allocation: Allocation,
        /// What it had before Gnomon's first change, one for each means that was changed and not released since.
        baselines: Vec<Setting>,
        /// From when.
        at: Timestamp,
    },
    /// A plan was made. Plans without actions are not recorded.
    Plan(Plan),
    /// A command was issued (before it is sent), answered, or given up.
    Command(CommandRecord),
    /// Something an auditor wants to know.
    Audit(Audit),
    /// An operator's pause, release or resume changed what Gnomon may touch.
    Scope {
        /// Where.
        scope: Scope,
        /// `None` when everything is allowed again.
        hold: Option<Hold>,
    },
    /// An operator's word on what is done with plans within a scope changed.
    Mode {
        /// Where.
        scope: Scope,
        /// What; `None` when that is left to wider scopes and policy.
        mode: Option<Mode>,
    },
    /// An operator holds a means of a VM, or does no longer.
    Setting {
        /// Which VM.
        vm: VmId,
        /// Which means.
        means: Means,
        /// Where it was brought to; `None` when Gnomon may change it again.
        setting: Option<Setting>,
    },
    /// A host is being emptied, or no longer.
    Drain {
        /// Which host.
        host: HostId,
        /// Since when; `None` when it may have VMs again.
        since: Option<Timestamp>,
    },
    /// The consequences of what an agent did of its own accord were drawn: a restart need not bring it in again.
    LocalAct {
        /// Whose agent.
        host: HostId,
        /// What it did.
        outcome: Outcome,
    },
    /// What was learnt from how well it went; it takes the place of the last one of the same subject.
    Lesson {
        /// What.
        lesson: Lesson,
        /// When.
        at: Timestamp,
    },
    /// A block of a VM's long history is to be kept, in place of one of the same key, or forgotten.
    History {
        /// Which VM.
        vm: VmId,
        /// What its archive wants.
        change: Change,
    },
    /// A request for capacity was made, or has come further; it takes the place of the one with the same key.
    Capacity(Box<CapacityRequest>),
    /// A proposal was made, or has come to its end; it takes the place of the one with the same key.
    Proposal(Box<Proposal>),
    /// A shadow is wanted, or has come further; it takes the place of the one with the same identity.
    Shadow(Box<Shadow>),
    /// Something is expected of a command, or has come further; it takes the place of what was expected of the same command.
    Expectation {
        /// What.
        expectation: Box<Expectation>,
        /// Since when that is so.
        at: Timestamp,
    },
}

/// What Gnomon learnt from how well it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "lesson")]
pub enum Lesson {
    /// How a VM's forecast quantiles are to be corrected.
    Corrections {
        /// Which VM.
        vm: VmId,
        /// How.
        corrections: Corrections,
    },
    /// What being too small is worth to the fleet, and how its promise was kept.
    Promise(Promise),
    /// What moves have cost, and when which VMs were last sent on their way.
    Moves {
        /// What they cost.
        pace: MovePace,
        /// When, and which, oldest first.
        begun: Vec<(Timestamp, VmId)>,
        /// When somebody else moved a VM last.
        stranger_at: Option<Timestamp>,
    },
    /// What shadows taught of hosts.
    Contention {
        /// What their words are worth.
        calibrations: Calibrations,
        /// Hosts that did not give one what was coming, and until when that is held against them.
        starved: Vec<(HostId, Timestamp)>,
    },
}

impl Lesson {
    /// What it is about: `vm UUID`, `fleet`, `moves` or `contention`. A later lesson about the same takes its place.
    pub fn subject(&self) -> String {
        match self {
            Self::Corrections { vm, .. } => format!("vm {vm}"),
            Self::Promise(_) => "fleet".to_owned(),
            Self::Moves { .. } => "moves".to_owned(),
            Self::Contention { .. } => "contention".to_owned(),
        }
    }
}

/// Why Gnomon keeps its hands off a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// An operator paused it.
    Paused,
    /// An operator released it.
    Released,
}

/// A command and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandRecord {
    /// To whom.
    pub host: HostId,
    /// What.
    pub command: Command,
    /// When it was issued, on the brain's clock.
    pub issued: Timestamp,
    /// The answer, once there is one.
    pub outcome: Option<Outcome>,
    /// Given up: its time to live and a grace went by without an answer.
    pub unanswered: bool,
    /// An operator asked for it: what it brings about is held, and what becomes of it is no lesson to the planner.
    #[serde(default)]
    pub by_operator: bool,
    /// The operator who approved what Gnomon proposed, in mode `approve`.
    #[serde(default)]
    pub approved_by: Option<String>,
}

impl CommandRecord {
    /// Whether its VM stands still between two hosts, by the last word of its agent: that is not the last one.
    pub fn is_parked(&self) -> bool {
        let result = self.outcome.as_ref().map(|outcome| &outcome.result);
        matches!(result, Some(OutcomeResult::NotMoved { whereabouts: Whereabouts::Parked, .. }))
    }

    /// Whether nothing more is waited for.
    pub fn is_settled(&self) -> bool {
        self.unanswered || (self.outcome.is_some() && !self.is_parked())
    }
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// When.
    pub at: Timestamp,
    /// Who: a token's name, a host, or `gnomon`.
    pub actor: String,
    /// What, as a verb: `pause`, `release`, `set`, `command`, `outcome`, `refused`, `reflex`, `reapply`…
    pub verb: String,
    /// On what: `fleet`, `host NAME`, `vm UUID`.
    pub object: String,
    /// Details for a person.
    pub detail: String,
}

/// Something worth a log line; counted by kind in the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What kind, a constant in `snake_case` (a metrics label: few values).
    pub kind: &'static str,
    /// For people.
    pub text: String,
}

/// What a restarted brain tells a new core, in this order, before any input: hosts, VMs' histories (a VM's blocks together, in the order
/// of their keys), lessons, expectations, VMs' past reports (oldest first), scopes and their modes, hosts that are emptied, operators' settings, requests for
/// capacity and proposals (the closed ones in the order of their closing), shadows, unanswered commands.
#[derive(Clone, Debug)]
pub enum Restored {
    /// A host that was known, and when it was last heard of. It counts as not connected.
    Host {
        /// Which.
        host: HostId,
        /// What it was.
        facts: HostFacts,
    },
    /// A block of a VM's long history, as it was kept; whether it is sound shows when its archive takes it back.
    History {
        /// Which VM.
        vm: VmId,
        /// The block.
        block: SealedBlock,
    },
    /// What was learnt.
    Lesson(Lesson),
    /// What is expected of a command and is not over, oldest first.
    Expectation(Box<Expectation>),
    /// A stored report: fills history, makes no plan.
    Report(Box<Report>),
    /// An operator's hold that was in force.
    Hold {
        /// Where.
        scope: Scope,
        /// What.
        hold: Hold,
    },
    /// What operators let be done with plans within a scope.
    Mode {
        /// Where.
        scope: Scope,
        /// What.
        mode: Mode,
    },
    /// A host that was being emptied, and since when.
    Drain {
        /// Which host.
        host: HostId,
        /// Since when.
        since: Timestamp,
    },
    /// A means of a VM that an operator held.
    Setting {
        /// Which VM.
        vm: VmId,
        /// Where it was brought to.
        setting: Setting,
    },
    /// A request for capacity: one that is open, or was closed not long ago.
    Capacity(Box<CapacityRequest>),
    /// A proposal: one that is open, or was closed not long ago.
    Proposal(Box<Proposal>),
    /// A shadow: one that is not retired, or of a production that is to have none, in the order of their changes.
    Shadow(Box<Shadow>),
    /// A move or a resize that was answered or given up not long ago, oldest first: where a VM could not go is not tried again at once, where it went to
    /// it is by Gnomon, and resizes of the last hour count against their budget.
    Tried(Box<CommandRecord>),
    /// A command without an outcome: it stays in flight (the driver resends it when its host connects) until answered or expired.
    Command(CommandRecord),
}
