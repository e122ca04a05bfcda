//! What an agent and a pacer say to each other: lines of text, each with its version first.
//!
//! ```text
//! agent  gnomon-pacer/1 profile valid_ms=60000 after_ms=0 cpu_cores=0.5 memory_bytes=67108864 after_ms=30000 cpu_cores=0.9
//! pacer  gnomon-pacer/1 status refused=0 left_ms=59000 wanted.cpu_cores=0.500000 ... made.cpu_cores=0.499213 ...
//! pacer  gnomon-pacer/1 error refused=1 why=not a line of gnomon-pacer/1
//! ```
//! Each `after_ms` begins a step; what a step does not name is 0, and its `network_burst` 1. Both ends bound what they read, and trust nothing in it.

use std::fmt;

/// The first word of every line.
pub const VERSION: &str = "gnomon-pacer/1";
/// The virtio-serial port, by name.
pub const PORT: &str = "org.gnomon.pacer.0";
/// Longest line, in bytes, without its end.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Most steps of a profile.
pub const STEPS_MAX: usize = 256;
/// Most cores of a step.
pub const CORES_MAX: f64 = 1024.0;
/// Largest burst: one second in a minute.
pub const BURST_MAX: f64 = 60.0;

/// What a guest is to make, or made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// In cores, all threads of the pacer together.
    pub cpu_cores: f64,
    /// Memory of which every page is touched each second, in bytes.
    pub memory_bytes: u64,
    /// Read past the guest's cache, in bytes per second.
    pub disk_read_bytes_per_s: u64,
    /// Written past the guest's cache, in bytes per second.
    pub disk_write_bytes_per_s: u64,
    /// Sent in Ethernet frames, headers included, in bytes per second.
    pub network_bytes_per_s: u64,
}

/// A load from some time on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// After receipt, in milliseconds.
    pub after_ms: u64,
    /// What is wanted.
    pub load: Load,
    /// Highest second of network traffic over its mean, 1..=[`BURST_MAX`].
    pub network_burst: f64,
}

/// Steps by time; the last one holds until the profile ends. Before the first, and after the end, the pacer idles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// How long it holds after receipt, in milliseconds.
    pub valid_ms: u64,
    /// At most [`STEPS_MAX`], in order of time.
    pub steps: Vec<Step>,
}

/// What a pacer says once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Lines refused since it started.
    pub refused: u64,
    /// How long its profile still holds, in milliseconds; 0 where it has none.
    pub left_ms: u64,
    /// What was to be made, as the mean of the last second.
    pub wanted: Load,
    /// What was made in it.
    pub made: Load,
}

/// What a pacer says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Once a second.
    Status(Status),
    /// In answer to a line that it refused.
    Refused {
        /// Lines refused since it started.
        refused: u64,
        /// Why, for people.
        why: String,
    },
}

/// Why a line is none. Nothing of the line is repeated in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It does not begin with [`VERSION`] and a word known there.
    #[error("not a line of {VERSION}")]
    Unknown,
    /// It is longer than [`LINE_BYTES_MAX`].
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    Long,
    /// A word is no field, or its value is none.
    #[error("word {0} is no field with a value in its range")]
    Field(usize),
    /// There is no `valid_ms`, or steps are too many or out of order.
    #[error("a profile begins with valid_ms and has at most {STEPS_MAX} steps in order of time")]
    Steps,
}

impl Load {
    /// Each part with its name on the line.
    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "cpu_cores" => self.cpu_cores = number(value, 0.0, CORES_MAX)?,
            "memory_bytes" => self.memory_bytes = value.parse().ok()?,
            "disk_read_bytes_per_s" => self.disk_read_bytes_per_s = value.parse().ok()?,
            "disk_write_bytes_per_s" => self.disk_write_bytes_per_s = value.parse().ok()?,
            "network_bytes_per_s" => self.network_bytes_per_s = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, prefix: &str) -> fmt::Result {
        let Load { cpu_cores, memory_bytes, disk_read_bytes_per_s, disk_write_bytes_per_s, network_bytes_per_s } = self;
        write!(f, " {prefix}cpu_cores={cpu_cores:.6} {prefix}memory_bytes={memory_bytes}")?;
        write!(f, " {prefix}disk_read_bytes_per_s={disk_read_bytes_per_s}")?;
        write!(f, " {prefix}disk_write_bytes_per_s={disk_write_bytes_per_s}")?;
        write!(f, " {prefix}network_bytes_per_s={network_bytes_per_s}")
    }
}

impl Profile {
    /// The step that holds `elapsed_ms` after receipt; `None` is idle.
    pub fn at(&self, elapsed_ms: u64) -> Option<&Step> {
        let held = self.steps.iter().take_while(|step| step.after_ms <= elapsed_ms);
        held.last().filter(|_| elapsed_ms < self.valid_ms)
    }

    /// What is left of it `elapsed_ms` after receipt, to be received then.
    pub fn rest(&self, elapsed_ms: u64) -> Profile {
        let over = self.steps.iter().take_while(|step| step.after_ms <= elapsed_ms).count();
        let steps = self.steps.iter().skip(over.saturating_sub(1));
        let steps = steps.map(|step| Step { after_ms: step.after_ms.saturating_sub(elapsed_ms), ..*step });
        Profile { valid_ms: self.valid_ms.saturating_sub(elapsed_ms), steps: steps.collect() }
    }

    /// Reads an agent's line.
    ///
    /// # Errors
    /// Whatever is not a whole profile within its bounds.
    pub fn parse(line: &str) -> Result<Self, LineError> {
        let words = words_after(line, "profile").ok_or(LineError::Unknown)?;
        let (mut valid_ms, mut steps) = (None, Vec::<Step>::new());
        for (index, (name, value)) in words {
            let field = || LineError::Field(index);
            match (name, steps.last_mut()) {
                ("valid_ms", None) if valid_ms.is_none() => {
                    valid_ms = Some(value.parse().map_err(|_| field())?);
                }
                ("after_ms", last) => {
                    let after_ms = value.parse().map_err(|_| field())?;
                    if last.is_some_and(|last| last.after_ms > after_ms) || steps.len() == STEPS_MAX {
                        return Err(LineError::Steps);
                    }
                    steps.push(Step { after_ms, load: Load::default(), network_burst: 1.0 });
                }
                ("network_burst", Some(step)) => {
                    step.network_burst = number(value, 1.0, BURST_MAX).ok_or_else(field)?;
                }
                (name, Some(step)) => step.load.set(name, value).ok_or_else(field)?,
                (_, None) => return Err(field()),
            }
        }
        Ok(Profile { valid_ms: valid_ms.ok_or(LineError::Steps)?, steps })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} profile valid_ms={}", self.valid_ms)?;
        for Step { after_ms, load, network_burst } in &self.steps {
            write!(f, " after_ms={after_ms}")?;
            load.write(f, "")?;
            write!(f, " network_burst={network_burst:.3}")?;
        }
        Ok(())
    }
}

impl Said {
    /// Reads a pacer's line.
    ///
    /// # Errors
    /// Whatever is neither a status nor an error.
    pub fn parse(line: &str) -> Result<Self, LineError> {
        if let Some(rest) = line.strip_prefix(VERSION).and_then(|rest| rest.strip_prefix(" error refused=")) {
            let (refused, why) = rest.split_once(" why=").ok_or(LineError::Field(2))?;
            return Ok(Said::Refused {
                refused: refused.parse().map_err(|_| LineError::Field(1))?,
                why: why.to_owned(),
            });
        }
        let mut status = Status::default();
        for (index, (name, value)) in words_after(line, "status").ok_or(LineError::Unknown)? {
            let set = match (name, name.split_once('.')) {
                ("refused", _) => value.parse().ok().map(|refused| status.refused = refused),
                ("left_ms", _) => value.parse().ok().map(|left_ms| status.left_ms = left_ms),
                (_, Some(("wanted", name))) => status.wanted.set(name, value),
                (_, Some(("made", name))) => status.made.set(name, value),
                _ => None,
            };
            set.ok_or(LineError::Field(index))?;
        }
        Ok(Said::Status(status))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Said::Status(Status { refused, left_ms, wanted, made }) => {
                write!(f, "{VERSION} status refused={refused} left_ms={left_ms}")?;
                wanted.write(f, "wanted.")?;
                made.write(f, "made.")
            }
            Said::Refused { refused, why } => write!(f, "{VERSION} error refused={refused} why={why}"),
        }
    }
}

/// The fields of a line of that kind, each with its place. A word that is no field has an empty name.
fn words_after<'a>(line: &'a str, kind: &str) -> Option<impl Iterator<Item = (usize, (&'a str, &'a str))>> {
    let mut words = line.split_ascii_whitespace().enumerate();
    let begins = words.next()?.1 == VERSION && words.next()?.1 == kind;
    begins.then(|| words.map(|(index, word)| (index, word.split_once('=').unwrap_or(("", word)))))
}

fn number(text: &str, low: f64, high: f64) -> Option<f64> {
    text.parse().ok().filter(|number| (low..=high).contains(number))
}

/// Bytes into lines, of which none is longer than [`LINE_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// The lines that end in `bytes`, without the empty ones. What is no text has its bytes replaced, which makes it no line of ours.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<String, LineError>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            if !self.too_long {
                self.buffer.extend_from_slice(text);
                self.too_long = self.buffer.len() > LINE_BYTES_MAX;
            }
            if self.too_long {
                self.buffer.clear();
            }
            if ends {
                let line = std::mem::take(&mut self.buffer);
                if std::mem::take(&mut self.too_long) {
                    lines.push(Err(LineError::Long));
                } else if !line.trim_ascii().is_empty() {
                    lines.push(Ok(String::from_utf8_lossy(&line).into_owned()));
                }
            }
        }
        lines
    }

    /// Forgets a line that has begun: who was writing it is gone.
    pub fn clear(&mut self) {
        *self = Lines::default();
    }
}

#[cfg(test)]
mod tests;
