//! The loop that follows a profile: ten times a second it hears the port, sets targets and gives out CPU time; once a second it tells. While nothing is
//! wanted it looks less often.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::board::{Board, Targets};
use crate::cpu::{self, Cpu};
use crate::disk::{self, Scratch};
use crate::memory;
use crate::network::{self, Uplink};
use crate::port::Port;
use crate::protocol::{Load, Profile, Said, Status, Step};

/// How often targets are set and what was used is looked at.
pub const SLICE: Duration = Duration::from_millis(100);
/// The same while nothing is wanted.
const REST: Duration = Duration::from_millis(250);
/// A host that has had its end of the port closed for so long is gone, and its profile with it.
pub const AWAY: Duration = Duration::from_secs(60);
/// How often is told.
const SECOND: Duration = Duration::from_secs(1);

/// A profile since its receipt, and what was refused instead of one. Pure but for the times that it is given.
#[derive(Debug, Default)]
struct Orders {
    profile: Option<(Profile, Instant)>,
    refused: u64,
    closed_since: Option<Instant>,
}

impl Orders {
    /// Takes a line. What is refused changes nothing but the count, and is answered.
    fn take(&mut self, line: Result<String, crate::protocol::LineError>, now: Instant) -> Option<Said> {
        match line.and_then(|line| Profile::parse(&line)) {
            Ok(profile) => {
                self.profile = Some((profile, now));
                None
            }
            Err(error) => {
                self.refused += 1;
                Some(Said::Refused { refused: self.refused, why: error.to_string() })
            }
        }
    }

    /// Whether the host has its end open, as of now.
    fn see(&mut self, closed: bool, now: Instant) {
        self.closed_since = closed.then(|| self.closed_since.unwrap_or(now));
        if self.closed_since.is_some_and(|since| now - since >= AWAY) {
            self.profile = None;
        }
    }

    /// The step that holds now, and how far into its profile that is.
    fn step(&self, now: Instant) -> Option<(&Step, Duration)> {
        let (profile, received) = self.profile.as_ref()?;
        let elapsed = now - *received;
        profile.at(millis(elapsed)).map(|step| (step, elapsed))
    }

    fn left_ms(&self, now: Instant) -> u64 {
        let left = |(profile, received): &(Profile, Instant)| profile.valid_ms.saturating_sub(millis(now - *received));
        self.profile.as_ref().map_or(0, left)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a step wants at this instant: network traffic comes in bursts of a second, each with what the whole round is to carry.
fn at_instant(step: &Step, elapsed: Duration) -> Load {
    let bursting = elapsed.as_secs_f64() % step.network_burst < 1.0;
    let factor = if bursting { step.network_burst } else { 0.0 };
    let network_bytes_per_s = (step.load.network_bytes_per_s as f64 * factor) as u64;
    Load { network_bytes_per_s, ..step.load }
}

/// Sums of a load over time, from which a second's mean is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    wanted: [f64; 5],
    passed_s: f64,
}

impl Sums {
    fn add(&mut self, load: &Load, passed: Duration) {
        let passed_s = passed.as_secs_f64();
        for (sum, value) in self.wanted.iter_mut().zip(parts(load)) {
            *sum += value * passed_s;
        }
        self.passed_s += passed_s;
    }

    fn mean(&self) -> Load {
        of_parts(self.wanted.map(|sum| sum / self.passed_s.max(f64::MIN_POSITIVE)))
    }
}

fn parts(load: &Load) -> [f64; 5] {
    let Load { cpu_cores, memory_bytes, disk_read_bytes_per_s, disk_write_bytes_per_s, network_bytes_per_s } = *load;
    let bytes = [memory_bytes, disk_read_bytes_per_s, disk_write_bytes_per_s, network_bytes_per_s];
    let [memory, read, write, network] = bytes.map(|bytes| bytes as f64);
    [cpu_cores, memory, read, write, network]
}

fn of_parts([cpu_cores, memory, read, write, network]: [f64; 5]) -> Load {
    let [memory_bytes, disk_read_bytes_per_s, disk_write_bytes_per_s, network_bytes_per_s] =
        [memory, read, write, network].map(|bytes| bytes.round() as u64);
    Load { cpu_cores, memory_bytes, disk_read_bytes_per_s, disk_write_bytes_per_s, network_bytes_per_s }
}

/// The counters as of one instant.
#[derive(Debug)]
struct Made {
    at: Instant,
    counters: [f64; 5],
}

impl Made {
    fn now(board: &Board) -> Self {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let counters = [
            cpu::used().as_secs_f64(),
            count(&board.touched),
            count(&board.read),
            count(&board.written),
            count(&board.sent),
        ];
        Made { at: Instant::now(), counters }
    }

    /// Means since `before`.
    fn since(&self, before: &Made) -> Load {
        let passed_s = (self.at - before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let mut means = self.counters;
        for (mean, earlier) in means.iter_mut().zip(before.counters) {
            *mean = (*mean - earlier) / passed_s;
        }
        of_parts(means)
    }
}

/// Follows what the port says, for ever. Without a scratch place, or while there is no interface, there is no such traffic.
///
/// # Errors
/// Where the port is gone, or the guest lets it have no threads.
pub fn follow(mut port: Port, scratch: Option<Scratch>, uplink: Uplink) -> io::Result<()> {
    let board = Arc::new(Board::default());
    spawn("memory", &board, memory::hold)?;
    if let Some(scratch) = scratch {
        spawn("disk", &board, move |board| disk::serve(board, scratch))?;
    }
    spawn("network", &board, move |board| network::serve(board, uplink))?;
    let mut before = Instant::now();
    let mut cpu = Cpu::new(before);
    cpu.staff()?;
    let mut orders = Orders::default();
    let (mut load, mut sums, mut made) = (Load::default(), Sums::default(), Made::now(&board));
    loop {
        thread::sleep(if load == Load::default() { REST } else { SLICE });
        let now = Instant::now();
        let passed = now - before;
        before = now;
        let heard = port.hear()?;
        orders.see(heard.closed, now);
        for line in heard.lines {
            if let Some(refusal) = orders.take(line, now) {
                port.say(&refusal)?;
            }
        }
        let was = std::mem::replace(
            &mut load,
            orders.step(now).map_or(Load::default(), |(step, elapsed)| at_instant(step, elapsed)),
        );
        sums.add(&was, passed);
        board.set(Targets {
            memory_bytes: load.memory_bytes,
            read_bytes_per_s: load.disk_read_bytes_per_s,
            write_bytes_per_s: load.disk_write_bytes_per_s,
            send_bytes_per_s: load.network_bytes_per_s,
        });
        cpu.slice(was.cpu_cores, passed, load.cpu_cores, SLICE);
        if now - made.at >= SECOND - SLICE / 2 {
            let (wanted, latest) = (std::mem::take(&mut sums).mean(), Made::now(&board));
            let status =
                Status { refused: orders.refused, left_ms: orders.left_ms(now), wanted, made: latest.since(&made) };
            made = latest;
            port.say(&Said::Status(status))?;
            cpu.staff()?;
        }
    }
}

fn spawn(name: &str, board: &Arc<Board>, body: impl FnOnce(&Board) + Send + 'static) -> io::Result<()> {
    let board = Arc::clone(board);
    thread::Builder::new().name(name.to_owned()).spawn(move || body(&board)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(now: Instant) -> Orders {
        let mut orders = Orders::default();
        let line = "gnomon-pacer/1 profile valid_ms=100000 after_ms=1000 cpu_cores=0.5";
        assert_eq!(orders.take(Ok(line.to_owned()), now), None);
        orders
    }

    #[test]
    fn a_profile_begins_at_its_receipt_and_ends_by_itself() {
        let now = Instant::now();
        let orders = orders(now);
        assert!(orders.step(now).is_none());
        assert!(orders.step(now + Duration::from_secs(1)).is_some());
        assert_eq!(orders.left_ms(now + Duration::from_secs(99)), 1000);
        assert!(orders.step(now + Duration::from_secs(100)).is_none());
        assert_eq!(orders.left_ms(now + Duration::from_secs(101)), 0);
    }

    #[test]
    fn garbage_is_counted_and_changes_nothing() {
        let now = Instant::now();
        let mut orders = orders(now);
        let refusal = orders.take(Ok("gnomon-pacer/2 profile valid_ms=1".to_owned()), now);
        assert!(matches!(refusal, Some(Said::Refused { refused: 1, .. })));
        assert!(orders.step(now + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn a_host_that_is_away_for_long_leaves_no_load_behind() {
        let now = Instant::now();
        let mut orders = orders(now);
        orders.see(true, now);
        orders.see(true, now + AWAY - SLICE);
        orders.see(false, now + AWAY);
        orders.see(true, now + AWAY + SLICE);
        assert!(orders.step(now + Duration::from_secs(2)).is_some());
        orders.see(true, now + AWAY * 2 + SLICE);
        assert!(orders.step(now + Duration::from_secs(2)).is_none());
    }

    #[test]
    fn a_burst_carries_in_a_second_what_the_round_is_to_carry() {
        for burst in [1.0, 2.5, 10.0] {
            let load = Load { network_bytes_per_s: 1_000_000, ..Load::default() };
            let step = Step { after_ms: 0, load, network_burst: burst };
            let (mut sums, mut highest) = (Sums::default(), 0);
            for tick in 0..1000 {
                let load = at_instant(&step, SLICE * tick);
                highest = highest.max(load.network_bytes_per_s);
                sums.add(&load, SLICE);
            }
            assert_eq!(highest, (1e6 * burst) as u64);
            assert!((sums.mean().network_bytes_per_s as f64 / 1e6 - 1.0).abs() < 0.01, "{burst}: {sums:?}");
        }
    }
}
