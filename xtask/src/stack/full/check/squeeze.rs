//! A VM whose group is allowed less memory than its guest touches, so that its own threads have to reclaim what the next fault brings back.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{REPORT_PATIENCE, latest_windows, mean, wait_for};
use crate::lab::full::{Guest, Machine, MemoryEvents};
use crate::stack::full::FullStack;

/// What the guest touches once a second, in MiB.
pub(super) const WORKING_SET_MIB: u64 = 64;
/// What the host swaps to, and how much.
const SWAP: &str = "/var/lib/host.swap";
const SWAP_MIB: u64 = 192;
/// Of what the group has, so much is left to it.
const LEFT_SHARE: f64 = 0.4;
const SQUEEZED: Duration = Duration::from_secs(20);
/// From this on some thread waits for memory, and below it none does: shares of the time. Little it is even for a guest that lives on swap: its faults
/// are taken by workers of KVM's, which belong to no group, and while they wait the guest does something else.
const PRESSURE_MIN: f64 = 0.003;
const CALM_MAX: f64 = 0.001;
/// How far the pressure may be off the kernel's own, whose time is not that of the windows: share of the time.
const TOLERANCE: f64 = 0.01;
/// How far the faults may be off, for the same reason.
const FAULTS_TOLERANCE_SHARE: f64 = 0.5;

/// How short of memory the VM was, by its latest windows and by its control group.
#[derive(Debug)]
pub struct Squeezed {
    /// Share of the time that some thread waited for memory, before.
    pub pressure_before: f64,
    /// The same while it was squeezed.
    pub pressure: f64,
    /// By the kernel's own total.
    pub kernel_pressure: f64,
    /// Reclaims by its own threads, per second.
    pub reclaims_per_s: f64,
    /// How often the group was found above its limit by one of its threads, or by a worker of the kernel's, per second.
    pub kernel_reclaims_per_s: f64,
    /// Threads that reclaimed, on average.
    pub stalled_threads: f64,
    /// Faults that needed I/O, per second.
    pub major_faults_per_s: f64,
    /// By the group's own count.
    pub kernel_major_faults_per_s: f64,
}

impl fmt::Display for Squeezed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "with {:.0} % of its memory: waited for memory {:.3} of the time (before {:.3}), the kernel says {:.3}; reclaims a second {:.1}, \
             the kernel says {:.1}, which held up {:.3} threads; major faults a second {:.1}, the kernel says {:.1}",
            LEFT_SHARE * 100.0,
            self.pressure,
            self.pressure_before,
            self.kernel_pressure,
            self.reclaims_per_s,
            self.kernel_reclaims_per_s,
            self.stalled_threads,
            self.major_faults_per_s,
            self.kernel_major_faults_per_s
        )
    }
}

/// Gives the host something to swap to.
pub(super) fn prepare(host: &Machine) -> Result<()> {
    host.run(&format!(
        "head -c {SWAP_MIB}M /dev/zero > {SWAP}; chmod 600 {SWAP}
        mkswap {SWAP}; swapon {SWAP}"
    ))
    .map(|_| ())
}

/// Squeezes the VM for a while, and lets it go.
pub(super) fn squeeze(stack: &FullStack, guest: &Guest<'_>) -> Result<Squeezed> {
    let pressure_before = mean(&latest_windows(stack, SQUEEZED)?.0, "/memory/pressure")?;
    guest.limit_memory(Some(LEFT_SHARE))?;
    let squeezed = observe(stack, guest, pressure_before);
    guest.limit_memory(None)?;
    let squeezed = squeezed?;
    wait_for("the pressure to end", REPORT_PATIENCE, || {
        let (views, _) = latest_windows(stack, Duration::from_secs(6))?;
        Ok((mean(&views, "/memory/pressure")? <= CALM_MAX).then_some(()))
    })?;
    ensure!(squeezed.pressure_before <= CALM_MAX && squeezed.pressure >= PRESSURE_MIN, "{squeezed:?}");
    ensure!((squeezed.pressure - squeezed.kernel_pressure).abs() <= TOLERANCE, "{squeezed:?}");
    ensure!(squeezed.reclaims_per_s > 0.0 && squeezed.stalled_threads > 0.0, "{squeezed:?}");
    let faults = squeezed.kernel_major_faults_per_s;
    let apart = (squeezed.major_faults_per_s - faults).abs();
    ensure!(faults > 1.0 && apart <= FAULTS_TOLERANCE_SHARE * faults, "{squeezed:?}");
    Ok(squeezed)
}

fn observe(stack: &FullStack, guest: &Guest<'_>, pressure_before: f64) -> Result<Squeezed> {
    // The first window holds what came before.
    latest_windows(stack, Duration::from_secs(6))?;
    let look = || -> Result<(f64, MemoryEvents, Instant)> {
        Ok((guest.memory_stalled_s()?, guest.memory_events()?, Instant::now()))
    };
    let (stalled_s, events, began) = look()?;
    let (views, _) = latest_windows(stack, SQUEEZED)?;
    let (stalled_after_s, events_after, ended) = look()?;
    let elapsed_s = (ended - began).as_secs_f64();
    let per_s = |of: fn(&MemoryEvents) -> u64| (of(&events_after) - of(&events)) as f64 / elapsed_s;
    Ok(Squeezed {
        pressure_before,
        pressure: mean(&views, "/memory/pressure")?,
        kernel_pressure: (stalled_after_s - stalled_s) / elapsed_s,
        reclaims_per_s: mean(&views, "/memory/reclaim/reclaims_per_s")?,
        kernel_reclaims_per_s: per_s(|events| events.above_limit),
        stalled_threads: mean(&views, "/memory/reclaim/stalled_threads")?,
        major_faults_per_s: mean(&views, "/memory/host_major_faults_per_s")?,
        kernel_major_faults_per_s: per_s(|events| events.major_faults),
    })
}
