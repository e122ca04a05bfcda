//! What the kernel says of where a guest runs, beside what libvirt says.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};
use gnomon_e2e::ticks::lived_once;
use xtask::lab::{Guest, Host};

/// How often both hosts are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// A vCPU that executes its guest runs for more than this in an interval, and one that is stopped does not run.
const RAN_NS: u64 = 500_000;

/// Watches on which hosts vCPUs execute.
pub(crate) struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Looks.
    pub(crate) looks: usize,
    /// In how many of them a vCPU had run since the look before, by host.
    pub(crate) ran: [usize; 2],
    /// In the longest row of looks in which they had on both hosts. One is the moment of the switch.
    pub(crate) both_in_a_row: usize,
}

impl Witness {
    /// Begins to watch.
    pub(crate) fn start(hosts: [Host; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut seen, mut row) = (Seen::default(), 0);
            let mut before = hosts.each_ref().map(vcpus_run_ns);
            while !asked.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
                let now = hosts.each_ref().map(vcpus_run_ns);
                let ran: [bool; 2] = [0, 1].map(|host| now[host].saturating_sub(before[host]) > RAN_NS);
                before = now;
                seen.looks += 1;
                (0..2).filter(|host| ran[*host]).for_each(|host| seen.ran[host] += 1);
                row = if ran == [true; 2] { row + 1 } else { 0 };
                seen.both_in_a_row = seen.both_in_a_row.max(row);
            }
            seen
        });
        Self { stop, thread }
    }

    /// Ends watching; fails if two copies ran at a time.
    pub(crate) fn finish(self, guest: &Guest) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the witness does not panic");
        println!("vCPUs: {seen:?}");
        ensure!(seen.both_in_a_row < 2, "two copies ran at a time: {seen:?}");
        lived_once(guest)?;
        Ok(seen)
    }
}

/// What the threads that execute vCPUs have run on a host, in nanoseconds.
fn vcpus_run_ns(host: &Host) -> u64 {
    host.guests_cgroup_dir("cpuacct").map_or(0, |dir| below(&dir))
}

fn below(dir: &Path) -> u64 {
    let threads = ["tasks", "cgroup.threads"].iter().find_map(|file| fs::read_to_string(dir.join(file)).ok());
    let own: u64 = threads.unwrap_or_default().lines().map(vcpu_run_ns).sum();
    let groups =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    own + groups.map(|group| below(&group)).sum::<u64>()
}

fn vcpu_run_ns(thread: &str) -> u64 {
    let read = |file: &str| fs::read_to_string(format!("/proc/{thread}/{file}")).unwrap_or_default();
    if !read("comm").starts_with("CPU ") {
        return 0;
    }
    read("schedstat").split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}
