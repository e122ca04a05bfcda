//! What the program prints on the guest's console: one start line, then one line a second.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "gnomon-load";

/// One line of the program on the console.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Line {
    /// Time zero of the schedule.
    Start,
    /// Once a second.
    Report(Report),
}

/// The guest's own view of the second that ended at `t_s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Seconds since the start line, by the guest's CLOCK_MONOTONIC.
    pub t_s: f64,
    /// Mean of the schedule over the second, in cores.
    pub level: f64,
    /// CPU time that the guest's kernel did not count as idle, in cores.
    pub busy: f64,
    /// vCPUs online.
    pub cpus: u32,
    /// Memory that the guest's kernel manages (`MemTotal`), in KiB: a balloon takes from it.
    pub memory_kib: u64,
    /// What has been computed since the start line, in rounds of a fixed size: with the same schedule, more of them in the same time is a faster guest.
    pub work: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Start => write!(f, "{PREFIX} start"),
            Line::Report(Report { t_s, level, busy, cpus, memory_kib, work }) => {
                write!(
                    f,
                    "{PREFIX} t_s={t_s:.3} level={level:.3} busy={busy:.3} cpus={cpus} memory_kib={memory_kib} work={work}"
                )
            }
        }
    }
}

/// The line is not one of the program's (the kernel writes on the same console), or it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotALine;

impl FromStr for Line {
    type Err = NotALine;

    /// Text before the program's own (a kernel message without a line end) is skipped.
    fn from_str(line: &str) -> Result<Self, NotALine> {
        let own = line.find(PREFIX).ok_or(NotALine)?;
        let mut words = line[own + PREFIX.len()..].split_whitespace().peekable();
        if words.peek() == Some(&"start") {
            return Ok(Line::Start);
        }
        let mut value = |key: &str| {
            let word = words.next().ok_or(NotALine)?;
            word.strip_prefix(key).and_then(|rest| rest.strip_prefix('=')).ok_or(NotALine)
        };
        let report = Report {
            t_s: value("t_s")?.parse().map_err(|_| NotALine)?,
            level: value("level")?.parse().map_err(|_| NotALine)?,
            busy: value("busy")?.parse().map_err(|_| NotALine)?,
            cpus: value("cpus")?.parse().map_err(|_| NotALine)?,
            memory_kib: value("memory_kib")?.parse().map_err(|_| NotALine)?,
            work: value("work")?.parse().map_err(|_| NotALine)?,
        };
        Ok(Line::Report(report))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_report_is_read_back_to_a_thousandth() {
        let line = Line::Report(Report { t_s: 12.0, level: 0.5, busy: 0.497, cpus: 2, memory_kib: 98_304, work: 7 });
        assert_eq!(line.to_string().parse(), Ok(line));
        assert_eq!(Line::Start.to_string().parse(), Ok(Line::Start));
    }

    #[test]
    fn a_kernel_message_in_front_does_not_hide_a_line() {
        assert_eq!("[    3.1] random: crng init donegnomon-load start\r".parse(), Ok(Line::Start));
    }

    #[test]
    fn other_lines_and_cut_lines_are_not_lines() {
        for text in ["", "[ 0.0] Linux version 6.1", "gnomon-load", "gnomon-load t_s=1.0 level=0.5 bus"] {
            assert_eq!(text.parse::<Line>(), Err(NotALine), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_line_or_not(text in "(gnomon-load)?.{0,80}") {
            let _ = text.parse::<Line>();
        }
    }
}
