//! The host information database: what the brain must not forget.
//!
//! [`Store`] is the contract, [`SqlStore`] the implementation, in SQLite or PostgreSQL, [`Journal`] the one writer in front of it:
//! it gathers what is waiting into one transaction and one sync, and answers only then. Everything acknowledged to an
//! agent, and every command sent to one, went through the journal before.

mod admissions;
mod journal;
mod lease;
mod location;
mod sql;

pub use admissions::{Admissions, AdmissionsOffice, Renewal, Revoked, Standing, StoredCertificate, StoredToken};
pub use journal::{Journal, JournalMetrics, Receipt, Stopped};
pub use lease::{Candidate, Lead, Leadership, RAISE_VERB, TAKE_OVER_VERB, TERM_JUMP};
pub use location::Location;
pub use sql::{SqlStore, leader_lock};

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, CommandId, HostId, Outcome, Sequence, VmId};
use gnomon_core::archive::{BlockKey, SealedBlock};
use gnomon_core::{Audit, CommandRecord, Record, Restored};
use std::pin::Pin;
use std::time::Duration;

/// The largest integer the database can hold; ids from the network above it are refused before they get here.
pub const INTEGER_MAX: u64 = i64::MAX as u64;

/// The answer of a store, some time later.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Where the brain keeps what it must not forget.
pub trait Store: Admissions {
    /// Writes all entries in one transaction and returns once it is synced; an error means that none was written. The
    /// answer tells, entry by entry, whether it is new: `false` for a report or outcome that was there already.
    fn commit<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Vec<bool>>;

    /// Writes the entries of the latest [`Self::commit`], which failed, unless it has written them all the same: its answer may have been
    /// lost. So they are written once, however often this is called.
    fn commit_again<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Repeated> {
        Box::pin(async move { Ok(Repeated { fresh: self.commit(entries).await?, was_written: false }) })
    }

    /// Has `candidate` lead, unless another brain does, and persists its lease term: above `at_least` and above every term
    /// taken before. Whoever leads already takes a higher term.
    fn lead<'a>(&'a self, candidate: &'a Candidate, at_least: u64) -> Pending<'a, Lead>;

    /// Has the lease of a leader last for its whole length from now on. A lease that does not end need not be renewed.
    fn renew_lease<'a>(&'a self, candidate: &'a Candidate) -> Pending<'a, ()> {
        let _ = candidate;
        Box::pin(async { Ok(()) })
    }

    /// Has another brain lead as soon as it wants to: the last thing that a leader does.
    fn resign(&self) -> Pending<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// When brains of this store took new terms because an agent had obeyed a newer fence, since then and since an operator last said which
    /// brain leads; the oldest first.
    fn raises(&self, since: Timestamp) -> Pending<'_, Vec<Timestamp>> {
        let _ = since;
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The highest sequence stored of a host's epoch; 0 if none.
    fn acknowledged<'a>(&'a self, host: &'a HostId, epoch: AgentEpoch) -> Pending<'a, Sequence>;

    /// Hands everything a new core has to know to `sink`, in the order that [`Restored`] asks for, reports received
    /// since `reports_since` among it. Returns outcomes that were stored but perhaps never reached the core: those
    /// of unsettled commands, and what agents did of their own accord.
    fn restore<'a>(
        &'a self,
        reports_since: Timestamp,
        sink: &'a mut (dyn FnMut(Restored) + Send),
    ) -> Pending<'a, Vec<(HostId, Outcome)>>;

    /// The latest lines of the audit log, newest first.
    fn audit(&self, limit: u32) -> Pending<'_, Vec<Audit>>;

    /// The latest commands, newest first.
    fn commands(&self, limit: u32) -> Pending<'_, Vec<CommandRecord>>;

    /// Blocks of a VM's long history that its archive sent away, in the order of `keys`; one that is not there is left out.
    fn blocks(&self, vm: VmId, keys: Vec<BlockKey>) -> Pending<'_, Vec<SealedBlock>>;

    /// Forgets reports received before `reports_before`, affairs (audit, plans, commands, outcomes, old allocations)
    /// from before `affairs_before` and blocks of histories, whatever VM they are of, that ended before `history_before`,
    /// a bounded amount per call. Returns how many rows went.
    fn prune(
        &self,
        reports_before: Timestamp,
        affairs_before: Timestamp,
        history_before: Timestamp,
    ) -> Pending<'_, u64>;
}

/// What became of entries that were committed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// For each whether it was new, when it was written.
    pub fresh: Vec<bool>,
    /// An earlier try had written them.
    pub was_written: bool,
}

/// One thing to write.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A report as it came.
    Report(StoredReport),
    /// An answer to a command.
    Outcome {
        /// Who answered.
        host: HostId,
        /// The answer.
        outcome: Box<Outcome>,
    },
    /// Something the core wants kept.
    Record(Box<Record>),
}

/// A report's frame and what the store orders it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReport {
    /// Who measured.
    pub host: HostId,
    /// In which life.
    pub epoch: AgentEpoch,
    /// Which report of it.
    pub sequence: Sequence,
    /// When its window began.
    pub start: Timestamp,
    /// When it came, on the brain's clock.
    pub received: Timestamp,
    /// The frame's payload.
    pub payload: Vec<u8>,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened: a wrong place, wrong rights, nobody there.
    #[error(
        "cannot open the store {location}: {source}; check the place, its rights and that no other program made it"
    )]
    Open {
        /// Where.
        location: Box<Location>,
        /// What the database said.
        source: sqlx::Error,
    },
    /// Its schema is not one this release knows how to bring up to date.
    #[error("cannot bring the store {location} up to date: {source}; was it written by a newer release?")]
    Migrate {
        /// Where.
        location: Box<Location>,
        /// What the database said.
        source: sqlx::migrate::MigrateError,
    },
    /// Reading or writing failed: a full disk, a lock, a broken device. It may work later.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
    /// It does not answer: a database behind a link that takes packets and brings none.
    #[error("the store did not answer within {0:?}")]
    Silent(Duration),
    /// A value cannot be written as text.
    #[error("a record does not encode: {0}")]
    Encode(#[from] serde_json::Error),
    /// Another brain has taken the lease over: this one writes nothing any more. Trying again will not help.
    #[error("{leader} leads now; this brain's lease is over, and it writes nothing any more")]
    Deposed {
        /// Who leads.
        leader: String,
    },
    /// The highest possible term was reached.
    #[error("lease terms are used up at {0}")]
    TermsUsedUp(u64),
    /// Refused by a store that is not a database.
    #[error("the store failed: {0}")]
    Other(&'static str),
}

/// Whether an id from the network fits the database.
pub fn fits(command: CommandId) -> bool {
    command.term <= INTEGER_MAX && command.number <= INTEGER_MAX
}
