//! Two cumulative readings of one source -> what happened in between, in physical units. Pure.
//!
//! A difference is believed only if it is possible: time went forward and not too far, no counter went backwards, nobody ran
//! more than the CPUs there are or waited more than its threads can. What is refused says why.

use crate::host::cgroup::CgroupReading;
use crate::reading::{Culprit, SchedCounters, SchedEvents, WaitCauses};

/// An interval longer than this many samples says too little about any one of them (the machine slept, the agent was stopped).
const INTERVAL_SAMPLES_MAX: u64 = 5;

/// How far a rate may exceed its bound: a reading takes a little while, and not all of it has the same age.
const TOLERANCE: f64 = 1.10;

/// Like [`TOLERANCE`], absolute: what a reading's age may be uncertain by, in seconds. Matters for short intervals only.
const SKEW_S: f64 = 0.02;

/// Threads that may have come and gone within an interval, beyond those alive at its ends: QEMU's pool of I/O workers.
const TRANSIENT_THREADS: f64 = 64.0;

/// Why two readings make no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Rejection {
    /// The second reading is not later than the first.
    #[error("clock did not advance")]
    Clock,
    /// It is much later than it should be.
    #[error("interval too long")]
    TooLong,
    /// A counter went backwards.
    #[error("counter went backwards")]
    Reset,
    /// More than is possible.
    #[error("more than is possible")]
    Impossible,
}

impl Rejection {
    /// All of them, for metrics that should exist before they are needed.
    pub const ALL: [Self; 4] = [Self::Clock, Self::TooLong, Self::Reset, Self::Impossible];

    /// A metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::TooLong => "too_long",
            Self::Reset => "reset",
            Self::Impossible => "impossible",
        }
    }
}

/// What is possible on this host.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPUs that can run at once.
    pub cpus: u32,
    /// Nominal length of an interval, in nanoseconds.
    pub sample_ns: u64,
}

impl Bounds {
    /// Seconds between two readings.
    pub(super) fn elapsed_s(&self, before_ns: u64, after_ns: u64) -> Result<f64, Rejection> {
        let elapsed_ns = after_ns.checked_sub(before_ns).filter(|&ns| ns > 0).ok_or(Rejection::Clock)?;
        if elapsed_ns > self.sample_ns.saturating_mul(INTERVAL_SAMPLES_MAX) {
            return Err(Rejection::TooLong);
        }
        Ok(elapsed_ns as f64 / 1e9)
    }
}

/// What a VM's threads did in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedSample {
    /// Length, in seconds; positive.
    pub elapsed_s: f64,
    /// Time run, in cores.
    pub run_cores: f64,
    /// Time runnable and not running, in cores.
    pub wait_cores: f64,
    /// Wake-ups, preemptions and ended waits; `None` where the source does not count them.
    pub events: Option<SchedEvents>,
}

/// The scheduler's part of a sample, from counters at two instants of `CLOCK_MONOTONIC`.
pub fn sched(
    before: (u64, &SchedCounters),
    after: (u64, &SchedCounters),
    bounds: &Bounds,
) -> Result<SchedSample, Rejection> {
    let elapsed_s = bounds.elapsed_s(before.0, after.0)?;
    let (before, after) = (before.1, after.1);
    let run_s = since(after.run_ns, before.run_ns)? as f64 / 1e9;
    let wait_s = since(after.wait_ns, before.wait_ns)? as f64 / 1e9;
    let threads = f64::from(before.threads.max(after.threads)) + TRANSIENT_THREADS;
    let run_max = f64::from(bounds.cpus).min(threads);
    if exceeds(run_s, run_max, elapsed_s) || exceeds(run_s + wait_s, threads, elapsed_s) {
        return Err(Rejection::Impossible);
    }
    Ok(SchedSample {
        elapsed_s,
        run_cores: run_s / elapsed_s,
        wait_cores: wait_s / elapsed_s,
        events: before.events.zip(after.events).map(|(before, after)| events(&before, &after)).transpose()?,
    })
}

fn events(before: &SchedEvents, after: &SchedEvents) -> Result<SchedEvents, Rejection> {
    let mut between = SchedEvents {
        wakeups: since(after.wakeups, before.wakeups)?,
        preemptions: since(after.preemptions, before.preemptions)?,
        ..SchedEvents::default()
    };
    for (slot, (after, before)) in between.wait_log2.iter_mut().zip(after.wait_log2.iter().zip(&before.wait_log2)) {
        *slot = since(*after, *before)?;
    }
    Ok(between)
}

/// What a VM's threads waited in an interval, by who ran meanwhile; in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WaitSample {
    /// Length, in seconds; positive.
    pub elapsed_s: f64,
    /// Its own quota was used up; `None` where the kernel does not tell.
    pub own_quota_s: Option<f64>,
    /// Other threads of its own ran.
    pub own_s: f64,
    /// Someone else ran; only those who did.
    pub culprits: Vec<(Culprit, f64)>,
    /// Host tasks ran that are not told apart.
    pub other_tasks_s: f64,
}

/// The waits of a sample of `elapsed_s` seconds. A culprit that was not there before has begun at zero, and so has one whose
/// counter is smaller than it was: its column was given away and came back.
pub fn waits(before: &WaitCauses, after: &WaitCauses, elapsed_s: f64) -> WaitSample {
    let gained_s = |after: u64, before: u64| after.checked_sub(before).unwrap_or(after) as f64 / 1e9;
    let mut earlier = before.culprits.iter().peekable();
    let mut culprits = Vec::new();
    for &(who, ns) in &after.culprits {
        // Both are sorted by who.
        while earlier.next_if(|(known, _)| *known < who).is_some() {}
        let before_ns = earlier.next_if(|(known, _)| *known == who).map_or(0, |(_, ns)| *ns);
        if ns != before_ns {
            culprits.push((who, gained_s(ns, before_ns)));
        }
    }
    WaitSample {
        elapsed_s,
        own_quota_s: before.own_quota_ns.zip(after.own_quota_ns).map(|(before, after)| gained_s(after, before)),
        own_s: gained_s(after.own_ns, before.own_ns),
        culprits,
        other_tasks_s: gained_s(after.other_tasks_ns, before.other_tasks_ns),
    }
}

/// What a VM's control group did in an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CgroupSample {
    /// Length, in seconds; positive.
    pub elapsed_s: f64,
    /// CPU time charged, in cores; `None` where it is not counted.
    pub usage_cores: Option<f64>,
    /// Share of the time that a quota held the VM back, 0..=1.
    pub throttled: f64,
}

/// The control group's part of a sample. Without bandwidth control nothing is throttled.
pub fn cgroup(before: &CgroupReading, after: &CgroupReading, bounds: &Bounds) -> Result<CgroupSample, Rejection> {
    let elapsed_s = bounds.elapsed_s(before.taken_ns, after.taken_ns)?;
    let usage_cores = match (before.usage_ns, after.usage_ns) {
        (Some(before), Some(after)) => Some(rate(before, after, elapsed_s, f64::from(bounds.cpus))?),
        _ => None,
    };
    let mut throttled: f64 = 0.0;
    for (dir, after_counters) in &after.throttles {
        // A group that has just been made, or got its first quota, has nothing to be compared with.
        let Some((_, before_counters)) = before.throttles.iter().find(|(known, _)| known == dir) else { continue };
        let elapsed_ns = after.taken_ns - before.taken_ns;
        let share = after_counters.share_since(*before_counters, elapsed_ns).ok_or(Rejection::Reset)?;
        throttled = throttled.max(share);
    }
    Ok(CgroupSample { elapsed_s, usage_cores, throttled })
}

/// CPU used by the host in an interval, in cores, and its length in seconds; readings are (when, CPU time) in nanoseconds.
pub fn host(before: (u64, u64), after: (u64, u64), bounds: &Bounds) -> Result<(f64, f64), Rejection> {
    let elapsed_s = bounds.elapsed_s(before.0, after.0)?;
    Ok((rate(before.1, after.1, elapsed_s, f64::from(bounds.cpus))?, elapsed_s))
}

/// Cores from CPU time, at most `cores_max` (with tolerance).
fn rate(before_ns: u64, after_ns: u64, elapsed_s: f64, cores_max: f64) -> Result<f64, Rejection> {
    let used_s = since(after_ns, before_ns)? as f64 / 1e9;
    if exceeds(used_s, cores_max, elapsed_s) { Err(Rejection::Impossible) } else { Ok(used_s / elapsed_s) }
}

fn since(after: u64, before: u64) -> Result<u64, Rejection> {
    after.checked_sub(before).ok_or(Rejection::Reset)
}

fn exceeds(seconds: f64, cores: f64, elapsed_s: f64) -> bool {
    seconds > cores * (elapsed_s * TOLERANCE + SKEW_S)
}

#[cfg(test)]
mod tests;
