//! Why an order was not carried out, and what is answered then.

use super::Task;
use crate::host::libvirt::HypervisorError;
use gnomon_common::wire::{OutcomeResult, RefusedCommand, Unshadowable};
use std::time::Instant;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Snag {
    /// It must not be.
    #[error(transparent)]
    Unshadowable(#[from] Unshadowable),
    /// libvirt.
    #[error(transparent)]
    Libvirt(#[from] HypervisorError),
    /// The kernel or a disk.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// It cannot be, now or later.
    #[error("{0}")]
    Never(String),
    /// Not now.
    #[error("{0}")]
    Busy(String),
    /// Its time is over.
    #[error("it came too late")]
    Late(u64),
}

impl From<Snag> for OutcomeResult {
    fn from(snag: Snag) -> Self {
        let error = snag.to_string();
        match snag {
            Snag::Unshadowable(why) => Self::Unshadowable(why),
            Snag::Late(late_ms) => Self::Refused(RefusedCommand::Expired { late_ms }),
            Snag::Libvirt(cause) => Self::Failed { error, retryable: cause.is_retryable() },
            Snag::System(_) | Snag::Busy(_) => Self::Failed { error, retryable: true },
            Snag::Never(_) => Self::Failed { error, retryable: false },
        }
    }
}

/// Whether its time to live is not over.
pub(super) fn in_time(task: &Task, begun: Instant) -> Result<(), Snag> {
    let late = begun.elapsed().checked_sub(task.time_left).filter(|late| !late.is_zero());
    late.map_or(Ok(()), |late| Err(Snag::Late(u64::try_from(late.as_millis()).unwrap_or(u64::MAX))))
}
