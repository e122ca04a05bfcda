//! The host's end of a shadow's pacer: a profile goes in, what the guest wanted and made comes out.
//!
//! A [`PacerLink`] is one shadow's. It has no thread and never waits: whoever has it calls [`PacerLink::turn`] about once a second, which connects where
//! there is no connection, writes what is due and reads what has come. What comes is a guest's and is trusted in nothing: lines and windows are
//! bounded, what is none is counted, and a guest that floods its port is read so much a turn and waits for the rest. The protocol is the pacer's own
//! library ([`gnomon_pacer::protocol`]).
//!
//! A profile's time runs from [`PacerLink::pace`]. It is sent once the guest has spoken, because QEMU keeps what is written to a guest that still boots;
//! what is sent then, and again where a guest turns out to have none, is what is left of it.

mod board;

pub use board::Pacers;

use gnomon_common::wire;
use gnomon_pacer::protocol::{self, LineError, Lines, Said, Status};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The name of a shadow's virtio-serial port, as `<target type='virtio' name='…'/>` has it.
pub const PORT: &str = protocol::PORT;
/// Over how many of the pacer's seconds a window's means are.
pub const WINDOW_SECONDS: usize = 10;
/// A profile is sent again to a guest that has none, but not sooner than after so long: what it said may be older than what it was sent.
const RESEND: Duration = Duration::from_secs(3);
/// What is read at a time, and how often at most in a turn.
const READ_BYTES: usize = 4096;
const READS_MAX: usize = 16;

/// Why a turn came to nothing. The next one connects anew.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// QEMU's socket is not there, refuses, or has somebody else on it.
    #[error("connecting to the pacer's port {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The connection has ended.
    #[error("the pacer's port: {0}")]
    Broken(#[from] io::Error),
}

/// What a pacer has said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latest {
    /// Means over its last seconds, at most [`WINDOW_SECONDS`].
    pub window: wire::PacerWindow,
    /// Since the last of them was heard.
    pub age: Duration,
}

/// What has been counted since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines of the guest that are none of a pacer's.
    pub garbage: u64,
    /// Lines of ours that the pacer said it refused.
    pub refusals: u64,
    /// Times that a profile was sent.
    pub sent: u64,
}

/// One shadow's pacer.
#[derive(Debug)]
pub struct PacerLink {
    path: PathBuf,
    connection: Option<Connection>,
    order: Option<(protocol::Profile, Instant)>,
    heard: VecDeque<Status>,
    heard_at: Option<Instant>,
    counts: Counts,
}

/// What ends with a connection.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    lines: Lines,
    /// What QEMU has not taken yet; at most one line.
    pending: Vec<u8>,
    spoken: bool,
    /// When the order that stands was sent.
    sent: Option<Instant>,
}

impl PacerLink {
    /// For the UNIX socket of a shadow's channel. Connects at the first turn.
    pub fn new(path: &Path) -> Self {
        PacerLink {
            path: path.to_owned(),
            connection: None,
            order: None,
            heard: VecDeque::new(),
            heard_at: None,
            counts: Counts::default(),
        }
    }

    /// The profile is to be followed from now on, in place of the one before.
    ///
    /// # Errors
    /// What the pacer would refuse; the profile before stands.
    pub fn pace(&mut self, profile: &wire::Profile, now: Instant) -> Result<(), LineError> {
        self.order = Some((told(profile)?, now));
        if let Some(connection) = &mut self.connection {
            connection.sent = None;
        }
        Ok(())
    }

    /// Does what can be done without waiting.
    ///
    /// # Errors
    /// Where there is no connection: it is tried again at the next turn. The last window stays, and grows old.
    pub fn turn(&mut self, now: Instant) -> Result<(), LinkError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.path)?,
        };
        for line in connection.hear()? {
            match line.and_then(|line| Said::parse(&line)) {
                Ok(Said::Status(status)) => {
                    connection.spoken = true;
                    self.heard_at = Some(now);
                    self.heard.push_back(status);
                    if self.heard.len() > WINDOW_SECONDS {
                        self.heard.pop_front();
                    }
                }
                Ok(Said::Refused { .. }) => self.counts.refusals = self.counts.refusals.saturating_add(1),
                Err(_) => self.counts.garbage = self.counts.garbage.saturating_add(1),
            }
        }
        if let Some(rest) = self.due(&connection, now) {
            // An empty line first: it ends what an earlier connection may have left unfinished.
            connection.pending = format!("\n{rest}\n").into_bytes();
            connection.sent = Some(now);
            self.counts.sent += 1;
        }
        connection.flush()?;
        self.connection = Some(connection);
        Ok(())
    }

    /// What is to be sent now: what is left of the order, to a guest that is there and has not got it.
    fn due(&self, connection: &Connection, now: Instant) -> Option<protocol::Profile> {
        let (profile, since) = self.order.as_ref()?;
        let rest = profile.rest(u64::try_from((now - *since).as_millis()).unwrap_or(u64::MAX));
        let has_none = || self.heard.back().is_some_and(|status| status.left_ms == 0);
        let again = |sent: Instant| rest.valid_ms > 0 && has_none() && now - sent >= RESEND;
        let is_due = connection.spoken && connection.pending.is_empty() && connection.sent.is_none_or(again);
        is_due.then_some(rest)
    }

    /// What the pacer last said, and how long ago; `None` while none has spoken.
    pub fn latest(&self, now: Instant) -> Option<Latest> {
        let age = now.saturating_duration_since(self.heard_at?);
        let mean = |of: fn(&Status) -> &protocol::Load| mean(self.heard.iter().map(of));
        let window = wire::PacerWindow { wanted: mean(|status| &status.wanted), made: mean(|status| &status.made) };
        Some(Latest { window, age })
    }

    /// What has been counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Connection {
    /// A QEMU that has a client already, or hangs, is an error at once.
    fn open(path: &Path) -> Result<Self, LinkError> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let open = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(UnixStream::from(socket))
        };
        let failed = |error: rustix::io::Errno| LinkError::Connect { path: path.to_owned(), source: error.into() };
        let stream = open().map_err(failed)?;
        Ok(Connection { stream, lines: Lines::default(), pending: Vec::new(), spoken: false, sent: None })
    }

    fn hear(&mut self) -> io::Result<Vec<Result<String, LineError>>> {
        let mut lines = Vec::new();
        let mut bytes = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => lines.extend(self.lines.push(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lines)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What one end may ask for the other one takes.
const _: () = assert!(wire::NETWORK_BURST_MAX == protocol::BURST_MAX && wire::PROFILE_STEPS_MAX == protocol::STEPS_MAX);

/// A profile in the pacer's words, as the pacer will read it. A burst of 0 is none.
fn told(profile: &wire::Profile) -> Result<protocol::Profile, LineError> {
    let step = |step: &wire::ProfileStep| protocol::Step {
        after_ms: step.after_ms,
        load: protocol::Load {
            cpu_cores: step.load.cpu_cores,
            memory_bytes: step.load.memory_bytes,
            disk_read_bytes_per_s: step.load.disk_read_bytes_per_s,
            disk_write_bytes_per_s: step.load.disk_write_bytes_per_s,
            network_bytes_per_s: step.load.network_bytes_per_s,
        },
        network_burst: if step.network_burst == 0.0 { 1.0 } else { step.network_burst },
    };
    let told = protocol::Profile { valid_ms: profile.valid_ms, steps: profile.steps.iter().map(step).collect() };
    protocol::Profile::parse(&told.to_string())
}

/// Zero of none.
fn mean<'a>(loads: impl Iterator<Item = &'a protocol::Load>) -> wire::Load {
    let (mut sums, mut count) = ([0.0; 5], 0.0f64);
    for load in loads {
        let bytes =
            [load.memory_bytes, load.disk_read_bytes_per_s, load.disk_write_bytes_per_s, load.network_bytes_per_s];
        sums[0] += load.cpu_cores;
        for (sum, bytes) in sums[1..].iter_mut().zip(bytes) {
            *sum += bytes as f64;
        }
        count += 1.0;
    }
    let [cpu_cores, memory, read, write, network] = sums.map(|sum| sum / count.max(1.0));
    wire::Load {
        cpu_cores,
        memory_bytes: memory.round() as u64,
        disk_read_bytes_per_s: read.round() as u64,
        disk_write_bytes_per_s: write.round() as u64,
        network_bytes_per_s: network.round() as u64,
    }
}

#[cfg(test)]
mod tests;
