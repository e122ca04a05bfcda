//! One leader among the brains of a database.
//!
//! ```text
//! candidate --(nobody leads, or the leader's lease has ended)--> leader, with a term above every earlier one
//! leader    --(renews in time)--> leader
//!           --(gives it up, does not renew, or another has taken it over)--> leads no more
//!           --(an operator has another brain take over)--> leads no more
//! ```
//! What an operator takes over is kept for the brain of one place, for one lease's length: then anybody may have it.
//!
//! Two things keep a former leader from doing harm. Its own clock tells it that the lease is over before the database's clock tells the
//! others (C. Gray and D. Cheriton, "Leases", SOSP 1989). And should it not look at its clock, because it was stopped: every transaction of
//! a leader begins with a look at who leads, and holds that row until it ends, so that nothing is written by one that leads no more.

use gnomon_common::time::Timestamp;
use std::time::Duration;

/// How far the lease term of a store is raised that another one must not win over: more than a brain starts between two back-ups, so that no
/// agent has obeyed a newer fence, and far less than what an agent's fence may be ahead at all.
pub const TERM_JUMP: u64 = 1000;

/// The audit log's verb for a new term because an agent had obeyed a newer fence: by it those are counted.
pub const RAISE_VERB: &str = "raise_term";
/// Its verb for an operator's take-over, from which they are counted anew.
pub const TAKE_OVER_VERB: &str = "take_over";

/// A brain that wants to lead, or does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What it is called, in a way that no other process ever is.
    pub name: String,
    /// How long a lease lasts that is not renewed.
    pub lease: Duration,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lead {
    /// The candidate does.
    Ours {
        /// The lease term: above every term taken before.
        term: u64,
        /// Whether it has to be renewed. A lease that a process alone can have lasts as long as the process.
        ends: bool,
    },
    /// Another brain does.
    Theirs {
        /// Its name.
        leader: String,
    },
}

/// Who leads by a store, or led last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The brain's name, or the place for which an operator has taken over, with a slash at its end; empty where none has ever led.
    pub holder: String,
    /// Whether it does now.
    pub leads: bool,
    /// Since when it has, or had; `None` where that was not written.
    pub since: Option<Timestamp>,
    /// The highest lease term ever used.
    pub term: u64,
}
