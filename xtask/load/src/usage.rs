//! The guest's own view of its CPUs, from `/proc/stat`.

use std::collections::BTreeMap;

/// Idle time of each online CPU, in clock ticks since boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdleTicks(BTreeMap<u32, u64>);

/// `/proc/stat` counts in units of 1/100 s on every architecture this runs on (`sysconf(_SC_CLK_TCK)`, kernel ABI).
pub const TICKS_PER_S: f64 = 100.0;

impl IdleTicks {
    /// Reads the `cpuN` lines; idle is the fourth and iowait the fifth column (proc(5)). Malformed lines are skipped.
    pub fn parse(proc_stat: &str) -> Self {
        let cpu = |line: &str| {
            let (number, columns) = line.strip_prefix("cpu")?.split_once(' ')?;
            let mut columns = columns.split_whitespace().skip(3);
            let idle: u64 = columns.next()?.parse().ok()?;
            let iowait: u64 = columns.next()?.parse().ok()?;
            Some((number.parse().ok()?, idle.saturating_add(iowait)))
        };
        IdleTicks(proc_stat.lines().filter_map(cpu).collect())
    }

    /// CPUs online when the file was read.
    pub fn cpus(&self) -> u32 {
        self.0.len() as u32
    }

    /// Busy cores between `earlier` and `self`, `dt_s` seconds apart: all that was not idle. Idle time is exact on a
    /// tickless kernel while busy time is sampled by the tick, so idle is the column to trust. A CPU that came online
    /// in between is left out: its idle counter says nothing about the time before.
    pub fn busy_since(&self, earlier: &IdleTicks, dt_s: f64) -> f64 {
        if dt_s <= 0.0 {
            return 0.0;
        }
        let busy = |(cpu, idle): (&u32, &u64)| {
            let idle_s = idle.saturating_sub(*earlier.0.get(cpu)?) as f64 / TICKS_PER_S;
            Some((1.0 - idle_s / dt_s).clamp(0.0, 1.0))
        };
        self.0.iter().filter_map(busy).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        "cpu  10 0 10 300 5 0 0 0 0 0\ncpu0 10 0 5 200 0 0 0 0 0 0\ncpu1 0 0 5 100 5 0 0 0 0 0\nintr 1 2\n";

    #[test]
    fn busy_is_what_was_not_idle_summed_over_cpus() {
        let before = IdleTicks::parse(BEFORE);
        let after = IdleTicks::parse("cpu0 0 0 0 250 0 0 0 0\ncpu1 0 0 0 120 10 0 0 0\n");
        assert_eq!(before.cpus(), 2);
        assert!((after.busy_since(&before, 1.0) - (0.5 + 0.75)).abs() < 1e-9);
    }

    #[test]
    fn a_cpu_that_came_online_is_left_out_at_first() {
        let before = IdleTicks::parse("cpu0 0 0 0 100 0 0 0 0\n");
        let after = IdleTicks::parse("cpu0 0 0 0 100 0 0 0 0\ncpu1 0 0 0 5 0 0 0 0\n");
        assert!((after.busy_since(&before, 1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        assert_eq!(IdleTicks::parse("cpu0 1 2\ncpux 1 2 3 4 5\ncpu\n"), IdleTicks::default());
    }
}
