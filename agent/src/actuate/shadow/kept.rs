//! What threads of shadows tell each other without waiting for one another.

use super::ShadowerConfig;
use super::copies::Copies;
use super::received::Received;
use gnomon_common::wire::{COPIES_MAX, KeptCopies, VmId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is set as a whole: one that panicked has left it as it was.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shadows for which this host keeps copies of disks, as a thread of shadows has seen it last.
#[derive(Clone, Debug)]
pub struct CopiesKept(Arc<Mutex<KeptCopies>>);

impl CopiesKept {
    /// Nothing was seen yet of what a host may have.
    pub(super) fn new(config: &ShadowerConfig) -> Self {
        let made = config.shadow.copies_directory.as_ref().map(|_| Vec::new());
        let received = config.shadow.received_directory.as_ref().map(|_| Vec::new());
        Self(Arc::new(Mutex::new(KeptCopies { made, received })))
    }

    /// Does not block, whatever their storage does.
    pub fn told(&self) -> KeptCopies {
        lock(&self.0).clone()
    }

    /// Looks which there are. Blocks for as long as their storage does. What cannot be seen stays as it was.
    pub(super) fn look(&self, config: &ShadowerConfig) {
        let of = |seen: std::io::Result<Vec<VmId>>| match seen {
            Ok(mut all) => {
                all.sort_unstable();
                all.truncate(COPIES_MAX);
                Some(all)
            }
            Err(error) => {
                tracing::warn!(%error, "which copies of disks are here is not known");
                None
            }
        };
        if let Some(made) = Copies::new(&config.shadow, &config.host).and_then(|copies| of(not_sent(&copies))) {
            lock(&self.0).made = Some(made);
        }
        if let Some(received) = Received::new(&config.shadow).and_then(|received| of(received.all())) {
            lock(&self.0).received = Some(received);
        }
    }
}

/// Those that were made here and are not elsewhere by now.
fn not_sent(copies: &Copies) -> std::io::Result<Vec<VmId>> {
    let mut all = Vec::new();
    for shadow in copies.all()? {
        if !copies.is_sent(shadow)? {
            all.push(shadow);
        }
    }
    Ok(all)
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
