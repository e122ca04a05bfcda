//! What is measured of one point: latencies as the agents see them, CPU time and memory as the kernel tells them.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

/// Which measurement a window belongs to; windows of no measurement count nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag(u32);

/// Collects what the agents see.
#[derive(Default)]
pub(crate) struct Collector(Mutex<(Tag, u32, Seen)>);

/// What the agents saw during one measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Reports sent.
    pub(crate) reports: u64,
    /// Their bytes.
    pub(crate) report_bytes: u64,
    /// How much later than scheduled they were sent, in seconds: the generator's own fault.
    pub(crate) sent_late_s: Vec<f64>,
    /// From sending a report to its acknowledgement, in seconds.
    pub(crate) acknowledged_s: Vec<f64>,
    /// VMs that began to surge.
    pub(crate) surges: u64,
    /// From sending the report with a surge's first window to the command that it provoked, in seconds.
    pub(crate) commanded_s: Vec<f64>,
    /// Commands for other reasons: a forecast, slack.
    pub(crate) other_commands: u64,
}

impl Collector {
    /// Begins a measurement.
    pub(crate) fn begin(&self) {
        self.with(|(tag, last, seen)| {
            *last += 1;
            (*tag, *seen) = (Tag(*last), Seen::default());
        });
    }

    /// From now on windows belong to no measurement; what was sent before may still be answered.
    pub(crate) fn end(&self) {
        self.with(|(tag, ..)| *tag = Tag::default());
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.with(|(.., seen)| seen.clone())
    }

    /// A report leaves; the tag is to be shown with its answers.
    pub(crate) fn sent(&self, bytes: usize, surges: usize, late: Duration) -> Tag {
        self.with(|(tag, _, seen)| {
            if *tag != Tag::default() {
                seen.reports += 1;
                seen.report_bytes += bytes as u64;
                seen.surges += surges as u64;
                seen.sent_late_s.push(late.as_secs_f64());
            }
            *tag
        })
    }

    pub(crate) fn acknowledged(&self, tag: Tag, sent: Instant) {
        self.answer(tag, |seen| seen.acknowledged_s.push(sent.elapsed().as_secs_f64()));
    }

    pub(crate) fn commanded(&self, tag: Tag, sent: Instant) {
        self.answer(tag, |seen| seen.commanded_s.push(sent.elapsed().as_secs_f64()));
    }

    pub(crate) fn commanded_otherwise(&self) {
        self.with(|(tag, _, seen)| seen.other_commands += u64::from(*tag != Tag::default()));
    }

    fn answer(&self, of: Tag, note: impl FnOnce(&mut Seen)) {
        self.with(|(_, last, seen)| {
            if of != Tag::default() && of == Tag(*last) {
                note(seen);
            }
        });
    }

    fn with<R>(&self, work: impl FnOnce(&mut (Tag, u32, Seen)) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Median, 99th percentile and maximum, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    /// Of values in seconds; `None` of none.
    pub(crate) fn of(mut values_s: Vec<f64>) -> Option<Self> {
        values_s.sort_by(f64::total_cmp);
        // The nearest rank: no value is made up between two.
        let rank = |share: f64| ((share * values_s.len() as f64).ceil() as usize).max(1) - 1;
        let at = |share| values_s.get(rank(share)).map(|value| value * 1e3);
        Some(Self { p50_ms: at(0.5)?, p99_ms: at(0.99)?, max_ms: at(1.0)? })
    }
}

/// CPU time used so far, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTimes {
    at: Instant,
    brain_s: f64,
    generator_s: f64,
    machine_s: f64,
}

/// CPU in use between two looks, in cores.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cores {
    pub(crate) brain: f64,
    pub(crate) generator: f64,
    /// Everything else on the machine: what disturbed the measurement.
    pub(crate) others: f64,
}

impl CpuTimes {
    pub(crate) fn read(brain: u32) -> Result<Self> {
        let tick_s = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let all = stat.lines().next().context("/proc/stat is empty")?;
        let fields: Vec<u64> = all.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time is within user.
        let busy: u64 =
            fields.iter().take(8).enumerate().filter(|(i, _)| ![3, 4, 7].contains(i)).map(|(_, &t)| t).sum();
        Ok(Self {
            at: Instant::now(),
            brain_s: process_ticks(brain)? as f64 * tick_s,
            generator_s: process_ticks(std::process::id())? as f64 * tick_s,
            machine_s: busy as f64 * tick_s,
        })
    }

    pub(crate) fn since(&self, earlier: &Self) -> Cores {
        let wall_s = self.at.duration_since(earlier.at).as_secs_f64();
        let (brain, generator) = (self.brain_s - earlier.brain_s, self.generator_s - earlier.generator_s);
        let others = (self.machine_s - earlier.machine_s - brain - generator).max(0.0);
        Cores { brain: brain / wall_s, generator: generator / wall_s, others: others / wall_s }
    }
}

/// User and system time of a process.
fn process_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the name, which may contain anything but the last parenthesis.
    let rest = stat.rsplit_once(')').with_context(|| format!("{path} has no name"))?.1;
    let field = |number: usize| rest.split_whitespace().nth(number - 3).and_then(|field| field.parse::<u64>().ok());
    Some(field(14).unwrap_or(0) + field(15).unwrap_or(0)).with_context(|| path)
}

/// A line of a `/proc` file of the form `NAME: N kB`, in bytes.
pub(crate) fn kib_line(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {name}"))? * 1024)
}

/// Datagrams that this network namespace dropped so far because a socket's receive buffer was full.
pub(crate) fn datagrams_dropped() -> Result<u64> {
    let path = "/proc/net/snmp";
    let text = fs::read_to_string(path).context(path)?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:")).map(str::split_whitespace);
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("{path} has no Udp"))?;
    let dropped = names.zip(values).find(|(name, _)| *name == "RcvbufErrors");
    Ok(dropped.with_context(|| format!("{path} has no RcvbufErrors"))?.1.parse()?)
}
