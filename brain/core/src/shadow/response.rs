//! What a shadow got of its host at each level of load: what the predicted load would cost there, before its production comes.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CpuWindow, DiskFlow, Load, PacerWindow, VmWindow};
use serde::{Deserialize, Serialize};

/// Levels of load: quarters of the shadow's quota.
const LEVELS: usize = 4;
/// What was told is forgotten with this time constant.
const FORGETS: Duration = Duration::from_secs(75);
/// So much time, in so many windows, makes a word; one that is older than this counts for nothing.
const TOLD_MIN: Duration = Duration::from_secs(60);
const WINDOWS_MIN: u32 = 3;
const BELIEVED_FOR: Duration = Duration::from_mins(10);
/// A window in which its own quota held it back for more than this tells of the quota.
const THROTTLED_MAX: f64 = 0.01;
/// Less than this much CPU wanted tells nothing, in cores.
const WANTED_MIN_CORES: f64 = 0.005;
/// A host that gives a shadow less than this share of what it wants, for no fault of its quota, has no room for its production.
const SERVED_MIN: f64 = 0.9;

/// What it got at one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    /// Time at this level that told of the host, in milliseconds.
    pub told_ms: u64,
    /// In so many windows.
    pub windows: u32,
    /// When it was told last.
    pub at: Timestamp,
    /// Share of the wanted CPU that was made, 0..=1, by its pacer's word and by the time that its threads ran, whichever is less; a mean that forgets within some minutes.
    pub served: f64,
    /// Seconds that it waited for each that it ran; the same mean.
    pub waited: f64,
    /// Page faults of its process that needed I/O, per second: its host took memory from it; the same mean.
    pub faults_per_s: f64,
    /// What a request to its disks took, queued and at the device, reads or writes, whichever took longer, in milliseconds; the same mean. 0
    /// where there was none.
    pub disk_ms: f64,
}

/// What it got, level by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Quarters of the shadow's quota, the lowest first.
    pub levels: [Heard; LEVELS],
}

impl Response {
    fn level(cpu_cores: f64, quota_cores: f64) -> usize {
        ((cpu_cores / quota_cores.max(1e-9) * LEVELS as f64) as usize).min(LEVELS - 1)
    }

    /// Takes a window of this length in, unless the shadow's own quota held it back. Says whether it told anything.
    pub(crate) fn learn(&mut self, now: Timestamp, quota_cores: f64, window: &VmWindow, length: Duration) -> bool {
        let pacer = window.shadow.and_then(|shadow| shadow.pacer);
        let (Some(pacer), Some(cpu)) = (pacer, &window.cpu) else { return false };
        let wanted = pacer.wanted;
        let ran = cpu.demand_low.mean;
        let is_told = cpu.throttled.mean <= THROTTLED_MAX && wanted.cpu_cores >= WANTED_MIN_CORES && ran > 0.0;
        let (served, waited) = (served(&pacer, cpu).unwrap_or(f64::NAN), (cpu.demand_high.mean - ran) / ran);
        let faults = window.memory.map_or(0.0, |memory| memory.host_major_faults_per_s);
        let took = |flow: &DiskFlow| flow.queued_ms.unwrap_or(0.0) + flow.device_ms.unwrap_or(0.0);
        let disk = window.disk.as_ref().filter(|disk| disk.is_sane());
        let disk_ms = disk.map_or(0.0, |disk| took(&disk.read).max(took(&disk.write)));
        if !(is_told && [served, waited, faults, disk_ms].into_iter().all(f64::is_finite)) {
            return false;
        }
        let heard = &mut self.levels[Self::level(wanted.cpu_cores, quota_cores)];
        if now.since(heard.at) >= BELIEVED_FOR {
            *heard = Heard::default();
        }
        // At first all windows count alike.
        let forgets = 1.0 - (-length.as_secs_f64() / FORGETS.as_secs_f64()).exp();
        let weight = forgets.max(1.0 / f64::from(heard.windows + 1));
        let toward = |before: f64, now: f64| before + weight * (now - before);
        *heard = Heard {
            windows: heard.windows.saturating_add(1),
            at: now,
            told_ms: heard.told_ms.saturating_add(length.as_millis() as u64),
            served: toward(heard.served, served.clamp(0.0, 1.0)),
            waited: toward(heard.waited, waited.max(0.0)),
            faults_per_s: toward(heard.faults_per_s, faults.max(0.0)),
            disk_ms: toward(heard.disk_ms, disk_ms),
        };
        true
    }

    /// What it got at a load, where that is known and was told lately.
    pub(crate) fn at(&self, now: Timestamp, load: &Load, quota_cores: f64) -> Option<&Heard> {
        let heard = &self.levels[Self::level(load.cpu_cores, quota_cores)];
        let is_word = heard.told_ms >= TOLD_MIN.as_millis() as u64 && heard.windows >= WINDOWS_MIN;
        (is_word && now.since(heard.at) < BELIEVED_FOR).then_some(heard)
    }
}

/// Which share of the CPU that a pacer wants was made, 0..=1: by its word, and by the time that the VM's threads ran. A guest that sees no stolen time
/// takes what it waits amid its work for its own; what its threads ran has the rest of the guest in it. `None` where nothing is wanted.
pub(crate) fn served(pacer: &PacerWindow, cpu: &CpuWindow) -> Option<f64> {
    let share = pacer.made.cpu_cores.min(cpu.demand_low.mean) / pacer.wanted.cpu_cores;
    share.is_finite().then(|| share.clamp(0.0, 1.0))
}

impl Heard {
    /// Whether the host could not give what was wanted.
    pub(crate) fn is_starved(&self) -> bool {
        self.served < SERVED_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::tests::window;

    const WINDOW: Duration = Duration::from_secs(10);

    fn at(windows: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_000_000_000_000 + windows * 10_000)
    }

    #[test]
    fn a_word_takes_a_minute_and_is_of_its_level_alone() {
        let mut response = Response::default();
        let load = |cpu_cores| Load { cpu_cores, ..Load::default() };
        for count in 0..6 {
            assert_eq!(response.at(at(count), &load(0.08), 0.1), None);
            assert!(response.learn(at(count), 0.1, &window(0.08, 0.04, 0.0), WINDOW));
        }
        assert!(response.at(at(6), &load(0.08), 0.1).unwrap().is_starved());
        assert_eq!(response.at(at(6), &load(0.02), 0.1), None);
        for count in 6..46 {
            response.learn(at(count), 0.1, &window(0.08, 0.079, 0.0), WINDOW);
        }
        assert!(!response.at(at(46), &load(0.08), 0.1).unwrap().is_starved());
    }

    #[test]
    fn the_first_window_alone_decides_nothing_and_what_is_long_past_neither() {
        let mut response = Response::default();
        let load = Load { cpu_cores: 0.08, ..Load::default() };
        response.learn(at(0), 0.1, &window(0.08, 0.05, 0.0), WINDOW);
        (1..6).for_each(|count| assert!(response.learn(at(count), 0.1, &window(0.08, 0.08, 0.0), WINDOW)));
        assert!(!response.at(at(6), &load, 0.1).unwrap().is_starved(), "{response:?}");
        // Ten minutes after the last of them, whether or not anything was told since.
        assert!(response.at(at(64), &load, 0.1).is_some());
        assert_eq!(response.at(at(65), &load, 0.1), None);
        response.learn(at(200), 0.1, &window(0.08, 0.05, 0.0), WINDOW);
        assert_eq!(response.at(at(200), &load, 0.1), None, "begun anew");
    }

    #[test]
    fn a_window_of_its_own_quota_or_of_nothing_tells_nothing() {
        let mut response = Response::default();
        assert!(!response.learn(at(0), 0.1, &window(0.08, 0.04, 0.02), WINDOW));
        assert!(!response.learn(at(0), 0.1, &window(0.001, 0.0, 0.0), WINDOW));
        assert!(!response.learn(at(0), 0.1, &window(f64::NAN, 0.0, 0.0), WINDOW));
        assert_eq!(response, Response::default());
    }
}
