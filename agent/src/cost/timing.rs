//! The kernel's timing of eBPF programs, turned on now and then.
//!
//! The kernel times eBPF programs only while asked to, and the timing itself costs two clock reads per run, on every context switch of the
//! host. So it is turned on for one sample in a while only. That takes CAP_SYS_ADMIN; without it the cost is known only while
//! `kernel.bpf_stats_enabled` is 1, and the log says so once.

use crate::probe::StatsEnabled;
use std::path::PathBuf;

/// Where the administrator turns the timing on.
const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Gets the kernel to time programs, or finds that it does.
pub(super) struct Timing {
    sysctl: PathBuf,
    refusal_told: bool,
}

/// Programs are timed while this is held.
#[derive(Debug, PartialEq)]
pub(super) enum Timed<S = StatsEnabled> {
    /// Because this is, which ends the timing when it is dropped.
    Held(S),
    /// Because the administrator wants it so; that may end at any moment.
    BySysctl,
}

impl Default for Timing {
    fn default() -> Self {
        Self::at(SYSCTL)
    }
}

impl Timing {
    fn at(sysctl: impl Into<PathBuf>) -> Self {
        Self { sysctl: sysctl.into(), refusal_told: false }
    }

    /// Begins; `None` where that is refused.
    pub(super) fn begin(&mut self) -> Option<Timed> {
        self.begin_with(StatsEnabled::new)
    }

    /// Whether all runs since `timed` was made were timed.
    pub(super) fn lasted<S>(&self, timed: &Timed<S>) -> bool {
        matches!(timed, Timed::Held(_)) || self.by_sysctl()
    }

    /// Whether the kernel times all programs anyway; anyone may read that.
    fn by_sysctl(&self) -> bool {
        std::fs::read_to_string(&self.sysctl).is_ok_and(|text| text.trim() == "1")
    }

    fn begin_with<S, E: std::fmt::Display>(&mut self, enable: impl FnOnce() -> Result<S, E>) -> Option<Timed<S>> {
        if self.by_sysctl() {
            return Some(Timed::BySysctl);
        }
        enable().map(Timed::Held).inspect_err(|error| self.tell(error)).ok()
    }

    fn tell(&mut self, error: &impl std::fmt::Display) {
        if !std::mem::replace(&mut self.refusal_told, true) {
            tracing::warn!(
                %error,
                "what the eBPF programs cost is neither shown nor part of the budget: set kernel.bpf_stats_enabled=1 or give the agent CAP_SYS_ADMIN"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(value: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bpf_stats_enabled");
        std::fs::write(&path, value).unwrap();
        (folder, path)
    }

    #[test]
    fn timing_turned_on_by_the_administrator_needs_no_capability_and_ends_when_he_says() {
        let (_folder, path) = sysctl("1\n");
        let enable = || -> Result<(), &str> { panic!("asked the kernel though it times already") };
        let mut timing = Timing::at(&path);
        let timed = timing.begin_with(enable).unwrap();
        assert_eq!(timed, Timed::BySysctl);
        assert!(timing.lasted(&timed));
        std::fs::write(path, "0\n").unwrap();
        assert!(!timing.lasted(&timed) && timing.lasted(&Timed::Held(())));
    }

    #[test]
    fn a_refusal_is_told_once_and_does_not_outlast_its_cause() {
        let (_folder, path) = sysctl("0\n");
        let mut timing = Timing::at(&path);
        assert_eq!(timing.begin_with(|| Err::<(), _>("not permitted")), None);
        assert!(timing.refusal_told);
        assert_eq!(timing.begin_with(|| Ok::<_, &str>(())), Some(Timed::Held(())));
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(timing.begin_with(|| Err::<(), _>("not permitted")), Some(Timed::BySysctl));
    }
}
