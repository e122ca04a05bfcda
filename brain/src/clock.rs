//! The wall clock: the only place where the brain reads it.

use gnomon_common::time::Timestamp;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now. A clock set before 1970 reads as 1970.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
