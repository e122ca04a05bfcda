//! Proposals: planned actions that wait for an operator, in mode `approve`.
//!
//! ```text
//! awaiting_approval ─ approve ─▶ approved: it held against the present as well, and the command left
//!    │                      └──▶ refused: it no longer held; why is said
//!    │ deny: denied              nobody decides: expired
//!    └ the plan has changed: superseded by another proposal; nothing is wanted any more: withdrawn
//! ```

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, HostId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::approval::ApprovalKey;
use crate::plan::PlannedAction;

/// What a proposal is known by, also after a restart.
pub type ProposalKey = ApprovalKey;

/// How far a proposal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// An operator has to decide.
    AwaitingApproval,
    /// An operator said yes, and the command left.
    Approved,
    /// An operator said yes, but it no longer held by then.
    Refused,
    /// An operator said no.
    Denied,
    /// Nobody decided in time.
    Expired,
    /// Another proposal for the same means of the same VM took its place.
    Superseded,
    /// It is not wanted any more.
    Withdrawn,
}

impl ProposalState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AwaitingApproval,
        Self::Approved,
        Self::Refused,
        Self::Denied,
        Self::Expired,
        Self::Superseded,
        Self::Withdrawn,
    ];

    /// Its name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwaitingApproval => "awaiting_approval",
            Self::Approved => "approved",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// Whether something may still become of it.
    pub fn is_open(self) -> bool {
        self == Self::AwaitingApproval
    }
}

/// A planned action and what is known of its approval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Which.
    pub key: ProposalKey,
    /// The VM's name.
    pub name: String,
    /// What would be done, to which VM, and why.
    pub action: PlannedAction,
    /// What would be done, for a person: `CPU quota 0.22 cores -> 0.88 cores`.
    pub summary: String,
    /// Why, for a person.
    pub reason: String,
    /// What is expected of it, for a person.
    pub effect: String,
    /// When it was made.
    pub proposed: Timestamp,
    /// When it expires if nobody decides.
    pub expires: Timestamp,
    /// How far it has come.
    pub state: ProposalState,
    /// Since when it is there.
    pub since: Timestamp,
    /// What brought it there, for a person.
    pub detail: String,
    /// The operator who approved or denied it.
    pub decided_by: Option<String>,
}

/// Why an operator cannot decide about a proposal now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposalRefusal {
    /// There is none of that key.
    #[error("there is no proposal {0}; see gnomon proposals list")]
    Unknown(ProposalKey),
    /// It is decided.
    #[error("proposal {key} awaits no approval: it is {}", state.name())]
    Decided {
        /// Which.
        key: ProposalKey,
        /// How far it is.
        state: ProposalState,
    },
    /// Its host tells nothing now to judge it by.
    #[error("host {0} has told nothing to judge it by for a while; approve it again once it has")]
    Silent(HostId),
    /// One command at a time.
    #[error("command {0} is on its way to this VM; approve it again once that is answered")]
    InFlight(CommandId),
    /// Moves are at a limit of `[policy.migrate]`, or others move VMs as well.
    #[error(
        "no VM can be moved from host {0} now: moves are at their limits, or somebody else moves VMs; approve it again later"
    )]
    MovesWait(HostId),
}
