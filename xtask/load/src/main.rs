//! gnomon-lab-load: the program of a lab guest, of most its only one. It spends CPU time by the schedule after `gnomon.load=` on the
//! kernel command line, brings hot-plugged CPUs online and prints once a second, on the console, what it wanted and
//! what the guest's kernel saw.
//!
//! Where `gnomon.disk=BYTES_PER_S` stands there too, it also writes to the first virtio disk, at that rate and past the guest's cache, and likewise it
//! reads where `gnomon.disk_read=BYTES_PER_S` does. `gnomon.memory=STEPS` is a working set: it holds and touches so many MiB, by steps of SECONDS@MIB.
//!
//! The load is open-loop: each slice of 100 ms starts at its own time and is busy for `level` of it in wall time. Time
//! that the host takes away is lost, not made up later, as it is with requests of users who do not wait.

mod disk;
mod memory;

use std::fs;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gnomon_lab_load::schedule::Schedule;
use gnomon_lab_load::usage::IdleTicks;
use gnomon_lab_load::{Line, Report};

const SLICE_S: f64 = 0.1;
/// Multiplications between two looks at the clock: about 10 us under emulation, where the look itself is dear.
const SPIN_BATCH: u32 = 2000;
/// Batches done by all threads.
static WORK: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let schedule = match schedule_of_command_line() {
        Ok(schedule) => schedule,
        Err(error) => {
            println!("gnomon-load failed: {error}");
            return ExitCode::FAILURE;
        }
    };
    let rate = |key| word_of_command_line(key).map(|word| word.parse::<u64>()).transpose();
    let (writes, reads) = match (rate("gnomon.disk="), rate("gnomon.disk_read=")) {
        (Ok(writes), Ok(reads)) => (writes, reads),
        (Err(error), _) | (_, Err(error)) => {
            println!(
                "gnomon-load failed: gnomon.disk or gnomon.disk_read is not a number of bytes per second: {error}"
            );
            return ExitCode::FAILURE;
        }
    };
    let sizes = match word_of_command_line("gnomon.memory=").map(|word| word.parse::<memory::Sizes>()).transpose() {
        Ok(sizes) => sizes,
        Err(error) => {
            println!("gnomon-load failed: gnomon.memory: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", Line::Start);
    let start = Instant::now();
    if let Some(bytes_per_s) = writes {
        thread::spawn(move || disk::write(bytes_per_s, start));
    }
    if let Some(bytes_per_s) = reads {
        thread::spawn(move || disk::read(bytes_per_s, start));
    }
    if let Some(sizes) = sizes {
        thread::spawn(move || memory::hold(&sizes, start));
    }
    for core in 0..(schedule.level_max().ceil() as u32) {
        let schedule = schedule.clone();
        thread::spawn(move || spend(&schedule, f64::from(core), start));
    }
    report(&schedule, start)
}

fn schedule_of_command_line() -> Result<Schedule, String> {
    let text = word_of_command_line("gnomon.load=").ok_or("gnomon.load=SCHEDULE is missing in /proc/cmdline")?;
    text.parse().map_err(|error| format!("{error}"))
}

/// What stands behind `key` on the kernel command line.
fn word_of_command_line(key: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned)
}

/// Keeps one core busy for its part of the level: the first core takes what is below 1, the second what is above.
fn spend(schedule: &Schedule, core: f64, start: Instant) {
    let mut slice = 0u64;
    loop {
        let begin_s = slice as f64 * SLICE_S;
        let share = (schedule.level(begin_s) - core).clamp(0.0, 1.0);
        let end = start + Duration::from_secs_f64(begin_s + share * SLICE_S);
        while Instant::now() < end {
            spin();
        }
        // Slices that the host took away altogether are skipped.
        slice = (slice + 1).max((start.elapsed().as_secs_f64() / SLICE_S) as u64);
        let next = start + Duration::from_secs_f64(slice as f64 * SLICE_S);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn spin() {
    let mut value = 1u64;
    for _ in 0..SPIN_BATCH {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    WORK.fetch_add(1, Ordering::Relaxed);
}

fn report(schedule: &Schedule, start: Instant) -> ! {
    let mut before = idle_ticks();
    let mut before_s = 0.0f64;
    loop {
        // The next full second: seconds that the host took away altogether are skipped.
        let due = start + Duration::from_secs_f64(before_s.floor() + 1.0);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (now, t_s, work) = (idle_ticks(), start.elapsed().as_secs_f64(), WORK.load(Ordering::Relaxed));
        let busy = now.busy_since(&before, t_s - before_s);
        let level = mean_level(schedule, before_s, t_s);
        println!("{}", Line::Report(Report { t_s, level, busy, cpus: now.cpus(), memory_kib: memory_kib(), work }));
        (before, before_s) = (now, t_s);
        bring_cpus_online();
    }
}

fn mean_level(schedule: &Schedule, from_s: f64, to_s: f64) -> f64 {
    const POINTS: u32 = 10;
    let at = |point: u32| from_s + (to_s - from_s) * (f64::from(point) + 0.5) / f64::from(POINTS);
    (0..POINTS).map(|point| schedule.level(at(point))).sum::<f64>() / f64::from(POINTS)
}

fn idle_ticks() -> IdleTicks {
    fs::read_to_string("/proc/stat").map(|text| IdleTicks::parse(&text)).unwrap_or_default()
}

/// `MemTotal`; 0 where it is not told.
fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A hot-plugged vCPU stays offline on x86 until user space says otherwise; there is no udev in here.
fn bring_cpus_online() {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu") else { return };
    for entry in entries.flatten() {
        let online = entry.path().join("online");
        if fs::read_to_string(&online).is_ok_and(|state| state.trim() == "0")
            && let Err(error) = fs::write(&online, "1")
        {
            println!("gnomon-load cannot online {}: {error}", entry.path().display());
        }
    }
}
