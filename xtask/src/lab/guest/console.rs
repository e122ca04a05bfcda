//! The serial console of a guest: a file that QEMU appends to.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use gnomon_lab_load::{Line, Report};

/// Lines that mean that the guest's program will never start.
const FAILURES: [&str; 3] = ["Kernel panic", "gnomon-load failed", "lab-init failed"];

#[derive(Debug, Default, PartialEq)]
pub(in crate::lab) struct Console {
    pub(in crate::lab) started: bool,
    pub(in crate::lab) reports: Vec<Report>,
    pub(in crate::lab) failure: Option<String>,
}

impl Console {
    /// A console that is not there yet is an empty one.
    pub(super) fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Ok(Console::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Console::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Whole lines only: the last one may still be being written.
    pub(in crate::lab) fn parse(text: &str) -> Self {
        let mut console = Console::default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match line.parse() {
                Ok(Line::Start) => console.started = true,
                Ok(Line::Report(report)) => console.reports.push(report),
                Err(_) if FAILURES.iter().any(|failure| line.contains(failure)) => {
                    console.failure = console.failure.or_else(|| Some(line.trim().to_owned()));
                }
                Err(_) => {}
            }
        }
        console
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_still_being_written_waits() {
        let text = "[ 1.0] booting\r\ngnomon-load start\r\ngnomon-load t_s=1.000 level=0.500 busy=0.510 cpus=1 memory_kib=98304 work=3\r\n";
        let whole = Console::parse(text);
        assert!(whole.started && whole.failure.is_none());
        assert_eq!(whole.reports, [Report { t_s: 1.0, level: 0.5, busy: 0.51, cpus: 1, memory_kib: 98_304, work: 3 }]);
        assert_eq!(Console::parse(&format!("{text}gnomon-load t_s=2.000 level=0.5")), whole);
    }

    #[test]
    fn a_panic_is_a_failure() {
        let console = Console::parse("[ 2.5] Kernel panic - not syncing: no init\n");
        assert_eq!(console.failure.as_deref(), Some("[ 2.5] Kernel panic - not syncing: no init"));
    }
}
