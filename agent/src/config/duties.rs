//! `[away]` and `[reconcile]`: what the agent does of its own accord.

use serde::Deserialize;
use std::time::Duration;

/// Shortest absence that counts: a brain that restarts, or a connection that is made anew, takes about a second.
const AFTER_MIN_S: u64 = 1;

/// `[away]`: while there is no brain.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Away {
    /// The brain counts as away when it has been unreachable for so long, in seconds.
    pub after_s: u64,
    /// Whether VMs that Gnomon has resized grow when they starve.
    pub reflex: bool,
    /// Largest growth of one step: the quota times this.
    pub growth_max: f64,
    /// A quota is at least what was used or wanted in the last seconds times this.
    pub headroom: f64,
    /// Whether quiet VMs go back towards what they had before Gnomon's first change.
    pub drift: bool,
    /// A VM is quiet when its quota has left it headroom for so long, in seconds.
    pub quiet_s: u64,
    /// Largest step back, as a share of the quota, 0..=1.
    pub drift_step: f64,
    /// Time between two steps back, in seconds.
    pub drift_interval_s: u64,
}

impl Default for Away {
    fn default() -> Self {
        Self {
            after_s: 30,
            reflex: true,
            growth_max: 1.5,
            headroom: 1.2,
            drift: true,
            quiet_s: 600,
            drift_step: 0.1,
            drift_interval_s: 60,
        }
    }
}

impl Away {
    /// [`Away::after_s`].
    pub fn after(&self) -> Duration {
        Duration::from_secs(self.after_s)
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.after_s < AFTER_MIN_S {
            return Err(("away.after_s", format!("{} is below {AFTER_MIN_S}", self.after_s)));
        }
        if !(self.growth_max.is_finite() && self.growth_max > 1.0) {
            return Err(("away.growth_max", format!("{} is not a factor above 1", self.growth_max)));
        }
        if !(self.headroom.is_finite() && self.headroom >= 1.0) {
            return Err(("away.headroom", format!("{} is not a factor of at least 1", self.headroom)));
        }
        if !(self.drift_step > 0.0 && self.drift_step <= 1.0) {
            return Err(("away.drift_step", format!("{} is not a share within 0..=1", self.drift_step)));
        }
        if self.drift_interval_s == 0 {
            return Err(("away.drift_interval_s", "0 would be all steps at once: at least 1".to_owned()));
        }
        Ok(())
    }
}

/// What to do about a limit that someone else undid or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnForeignChange {
    /// Apply it again; whoever insists is given way to.
    Reapply,
    /// Keep the hands off this VM until it is released.
    StandDown,
}

/// `[reconcile]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconcile {
    /// What to do.
    pub on_foreign_change: OnForeignChange,
    /// So many times a VM's limits are applied again within [`Reconcile::reapply_window_s`]; then Gnomon stands down for it.
    pub reapply_max: u32,
    /// In seconds.
    pub reapply_window_s: u64,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { on_foreign_change: OnForeignChange::Reapply, reapply_max: 3, reapply_window_s: 600 }
    }
}

impl Reconcile {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        /// More than this is not giving way.
        const REAPPLY_MAX: u32 = 100;
        if self.reapply_max > REAPPLY_MAX {
            return Err(("reconcile.reapply_max", format!("{} is above {REAPPLY_MAX}", self.reapply_max)));
        }
        Ok(())
    }
}
