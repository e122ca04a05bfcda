//! Capacity requests: what a provider is asked for where hosts are too full and moving VMs does not help.
//!
//! ```text
//! awaiting_approval ─ approve ─▶ approved ─ send ─▶ sent ─ accepted ─▶ accepted ─ a new host ─▶ fulfilled
//!    │ deny: denied                 ▲                │ unreachable: again, later, up to a limit
//!    │ nobody decides: expired      └────────────────┤ refused, or once too often: failed
//!    └ the need is gone: withdrawn                   └ a new host before any answer: fulfilled
//! ```
//!
//! Where policy approves, a request begins approved. One that was accepted and brought no host expires as well.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::HostId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::approval::ApprovalKey;

/// What a request is known by, to the provider as well: the same at every attempt and after every restart.
pub type CapacityKey = ApprovalKey;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityState {
    /// An operator has to decide.
    AwaitingApproval,
    /// To be sent, for the first time or again.
    Approved,
    /// Handed to the provider, whose answer is not known.
    Sent,
    /// The provider has promised it; the host is not there.
    Accepted,
    /// A host came.
    Fulfilled,
    /// The provider refused, or was not reached often enough.
    Failed,
    /// Nobody decided in time, or no host came in time.
    Expired,
    /// An operator said no.
    Denied,
    /// The need was gone before it was sent.
    Withdrawn,
}

impl CapacityState {
    /// All of them, in the order in which a request may come to them.
    pub const ALL: [Self; 9] = [
        Self::AwaitingApproval,
        Self::Approved,
        Self::Sent,
        Self::Accepted,
        Self::Fulfilled,
        Self::Failed,
        Self::Expired,
        Self::Denied,
        Self::Withdrawn,
    ];

    /// Its name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwaitingApproval => "awaiting_approval",
            Self::Approved => "approved",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Fulfilled => "fulfilled",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// Whether something may still become of it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::AwaitingApproval | Self::Approved | Self::Sent | Self::Accepted)
    }
}

/// A host that is too full: the forecast that a request rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FullHost {
    /// Which.
    pub host: HostId,
    /// What its VMs will hardly exceed together, in cores.
    pub demand_cores: f64,
    /// What it has for them, its reserve left out, in cores.
    pub room_cores: f64,
    /// The memory that its VMs have together, in bytes.
    pub memory_bytes: u64,
    /// What it has for them, its reserve left out, in bytes.
    pub room_bytes: u64,
    /// Since when it is too full and no move helps.
    pub since: Timestamp,
}

/// A request and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapacityRequest {
    /// Which.
    pub key: CapacityKey,
    /// Where hosts are missing; `None` where the full hosts name no zone.
    pub zone: Option<String>,
    /// CPU that is missing, in cores, over all hosts that are too full; 0 where only memory is.
    pub cores: f64,
    /// Memory that is missing, in bytes, likewise.
    pub memory_bytes: u64,
    /// Why, in words for a person.
    pub reason: String,
    /// How far the forecast looks ahead, in milliseconds.
    pub ahead_ms: u64,
    /// The hosts that are too full, the fullest first; of many, only the first few.
    pub hosts: Vec<FullHost>,
    /// How many they are.
    pub hosts_full: usize,
    /// When it was first wanted.
    pub asked: Timestamp,
    /// How far it has come.
    pub state: CapacityState,
    /// Since when it is there.
    pub since: Timestamp,
    /// What brought it there, in words for a person.
    pub detail: String,
    /// Who approved it: an operator, or `policy`.
    pub approved_by: Option<String>,
    /// How often it was sent.
    pub attempts: u32,
    /// What the provider calls it.
    pub reference: Option<String>,
    /// The host that came.
    pub fulfilled_by: Option<HostId>,
}

/// What a provider said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapacityAnswer {
    /// It will bring a host; what it calls that, empty where it gives no name.
    Accepted(String),
    /// It will not, and asking again is no use; why.
    Refused(String),
    /// It did not answer, or not in a way that tells either; what happened.
    Unreachable(String),
}

/// Why an operator cannot decide about a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CapacityRefusal {
    /// There is none of that key.
    #[error("there is no capacity request {0}; see gnomon capacity list")]
    Unknown(CapacityKey),
    /// It is decided.
    #[error("capacity request {key} awaits no approval: it is {}", state.name())]
    Decided {
        /// Which.
        key: CapacityKey,
        /// How far it is.
        state: CapacityState,
    },
    /// Nobody could be asked.
    #[error("no provider is configured: the request could not be sent; see [capacity] in the brain's configuration")]
    NoProvider,
}
