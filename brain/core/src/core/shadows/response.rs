//! What shadows get of their hosts: kept, and drawn consequences from. [`crate::shadow::response`] says how it is judged.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, VmId, VmWindow};

use super::Core;
use crate::io::Record;
use crate::shadow::response::Heard;
use crate::shadow::trial::Trial;
use crate::shadow::{ShadowCause, ShadowState};

/// What a shadow got of its host is written so often: a restart of the brain costs no more than that.
pub(super) const KEPT_EVERY: Duration = Duration::from_mins(10);

/// For so long after a shadow did not get what was coming its host has no room for VMs.
pub(super) const STARVED_FOR: Duration = Duration::from_mins(10);

impl Core {
    /// Takes in what a window says of what a shadow got.
    pub(super) fn see_response(&mut self, now: Timestamp, id: VmId, window: &VmWindow) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        // What it plays for a trial is not what is coming.
        if kept.shadow.trial.as_ref().is_some_and(Trial::is_open) {
            return;
        }
        let quota_cores = kept.shadow.size.map_or(0.0, |size| size.cpu_cores);
        if !kept.shadow.response.learn(now, quota_cores, window, kept.window) {
            return;
        }
        if now.since(kept.response_kept) >= KEPT_EVERY {
            kept.response_kept = now;
            let shadow = Box::new(kept.shadow.clone());
            self.persist(Record::Shadow(shadow));
        }
        if self.is_starved(now, id) {
            self.shadows.wake(id, now);
        }
    }

    /// Whether a shadow that lives ahead of its production does not get the load that is coming, for no fault of its size.
    pub(super) fn is_starved(&self, now: Timestamp, id: VmId) -> bool {
        let Some(kept) = self.shadows.kept.get(&id).filter(|kept| kept.shadow.state == ShadowState::Pacing) else {
            return false;
        };
        let is_trying = kept.shadow.trial.as_ref().is_some_and(Trial::is_open);
        let (Some(load), Some(size), false) = (&kept.ordered, kept.shadow.size, is_trying) else { return false };
        kept.shadow.response.at(now, load, size.cpu_cores).is_some_and(Heard::is_starved)
    }

    /// A shadow leaves a host that does not give it what is coming; the second time within its cool-down it is parked.
    pub(super) fn leave_starved(&mut self, now: Timestamp, id: VmId) {
        let parks = self.is_chased(now, id);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.avoid(now);
        if let Some(host) = kept.shadow.host.clone() {
            self.shadows.starved.retain(|_, until| *until > now);
            self.shadows.starved.insert(host, now + STARVED_FOR);
            self.keep_contention(now);
        }
        self.move_shadow(now, id, ShadowCause::Starved, parks);
    }

    /// Whether a shadow did not get what was coming on a host: it has no room for a VM more.
    pub(in crate::core) fn is_host_starved(&self, now: Timestamp, host: &HostId) -> bool {
        // What a clock that was ahead had said before a restart is not believed.
        self.shadows.starved.get(host).is_some_and(|until| *until > now && *until <= now + STARVED_FOR)
    }
}
