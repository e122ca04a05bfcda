//! What a long command shows while it runs: a spinner on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Quick enough to look alive, slow enough to cost nothing.
const TICK: Duration = Duration::from_millis(120);

/// One thing under way. Dropped without [`Activity::done`] it leaves no mark on a terminal.
#[derive(Debug)]
pub struct Activity {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Activity {
    /// Announces `what`, such as `cargo install bpf-linker`, and how long that takes, for the reader's patience.
    pub fn start(what: &str, typical_s: u32) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(format!("{what} (about {typical_s} s)"));
            bar.enable_steady_tick(TICK);
            bar
        });
        if bar.is_none() {
            eprintln!("  … {what} (about {typical_s} s)");
        }
        Self { what: what.to_owned(), started: Instant::now(), bar }
    }

    /// The latest sign of life, shown on a terminal only.
    pub fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar
            && !line.is_empty()
        {
            bar.set_message(line.to_owned());
        }
    }

    /// Ends it with success.
    pub fn done(&self) {
        self.end("✓");
    }

    /// Ends it with failure; the caller reports why.
    pub fn failed(&self) {
        self.end("✗");
    }

    fn end(&self, mark: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  {mark} {} in {}", self.what, seconds(self.started.elapsed()));
    }
}

/// `0.4 s`, `17 s`, `2 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_precise_as_a_reader_needs() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(17)), "17 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
