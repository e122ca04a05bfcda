//! One leader among the brains of a database.
//!
//! ```text
//! candidate --(nobody leads, or the leader's lease has ended)--> leader, with a term above every earlier one
//! leader    --(renews in time)--> leader
//!           --(gives it up, does not renew, or another has taken it over)--> leads no more
//! ```
//! Two things keep a former leader from doing harm. Its own clock tells it that the lease is over before the database's clock tells the
//! others (C. Gray and D. Cheriton, "Leases", SOSP 1989). And should it not look at its clock, because it was stopped: every transaction of
//! a leader begins with a look at who leads, and holds that row until it ends, so that nothing is written by one that leads no more.

use std::time::Duration;

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
