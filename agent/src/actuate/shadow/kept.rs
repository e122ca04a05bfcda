//! What threads of shadows tell each other without waiting for one another.

use super::ShadowerConfig;
use super::copies::Copies;
use gnomon_common::wire::{COPIES_MAX, VmId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is set as a whole: one that panicked has left it as it was.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shadows for which this host keeps copies of disks, as a thread of shadows has seen it last.
#[derive(Clone, Debug, Default)]
pub struct CopiesKept(Arc<Mutex<Vec<VmId>>>);

impl CopiesKept {
    /// At most [`COPIES_MAX`]; none where that was not seen yet. Does not block, whatever their storage does.
    pub fn all(&self) -> Vec<VmId> {
        lock(&self.0).clone()
    }

    /// Looks which there are. Blocks for as long as their storage does. What cannot be seen stays as it was.
    pub(super) fn look(&self, config: &ShadowerConfig) {
        let Some(copies) = Copies::new(&config.shadow, &config.host) else { return };
        match copies.all() {
            Ok(mut all) => {
                all.sort_unstable();
                all.truncate(COPIES_MAX);
                *lock(&self.0) = all;
            }
            Err(error) => tracing::warn!(%error, "which copies of disks are here is not known"),
        }
    }
}

/// The shadows for which something slow is under way: what belongs to them is not removed meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<Mutex<BTreeSet<VmId>>>);

impl Busy {
    pub(super) fn set(&self, shadows: impl IntoIterator<Item = VmId>) {
        *lock(&self.0) = shadows.into_iter().collect();
    }

    pub(super) fn has(&self, shadow: VmId) -> bool {
        lock(&self.0).contains(&shadow)
    }
}
