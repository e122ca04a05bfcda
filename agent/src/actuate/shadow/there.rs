//! The host that copies are sent to, by its libvirt: asked on threads of their own, since it may not answer.

use super::snag::Snag;
use crate::cost::Aside;
use crate::host::libvirt::upload::{Folder, Owner};
use crate::host::libvirt::{About, Hypervisor, HypervisorError, ask_there};
use gnomon_common::wire::Receiving;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often what is being sent is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How long a pause of whoever is too fast lasts at most before it looks whether it is to go on.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A part of a file, to be sent into the same place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) bytes: Range<u64>,
    /// Not faster than this, in bytes per second.
    pub(super) bytes_per_s: Option<u64>,
}

/// Why a file was not made.
#[derive(Debug)]
pub(super) enum NotMade {
    /// The other host says so.
    Refused(String),
    /// It may have been.
    Unclear(String),
}

/// Why a part was not sent.
#[derive(Debug)]
pub(super) enum NotSent {
    /// Nobody wants it any more.
    Over(Snag),
    /// It may go the next time.
    Again(String),
    /// It never will.
    Never(String),
}

/// What sending copies needs of the other host.
pub(super) trait There {
    /// What is where they are taken; `None` where no storage pool is.
    fn folder(&mut self, to: &Receiving) -> Result<Option<Folder>, String>;
    /// Makes a file of this length, which must not be there.
    fn make(&mut self, to: &Receiving, file: &Path, bytes: u64) -> Result<(), NotMade>;
    /// Removes a file that was made; that it is gone is as good.
    fn remove(&mut self, to: &Receiving, file: &Path) -> Result<(), String>;
    /// Sends a part, and returns when the other host has it. `watch` hears now and then how much was sent of it, and may end that.
    fn send(
        &mut self,
        to: &Receiving,
        part: &Part,
        watch: &mut dyn FnMut(u64) -> Result<(), Snag>,
    ) -> Result<(), NotSent>;
}

/// The real one.
#[derive(Default)]
pub(super) struct LibvirtThere {
    /// A connection over which parts were sent before.
    line: Option<Line>,
}

/// A thread that sends part after part. It may hang for as long as libvirt likes: then it is left to end by itself.
struct Line {
    uri: String,
    parts: Sender<Part>,
    ends: Receiver<Result<bool, HypervisorError>>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Line {
    fn open(uri: &str) -> std::io::Result<Self> {
        let (parts, to_do) = channel::<Part>();
        let (tell, ends) = channel();
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let line = Self { uri: uri.to_owned(), parts, ends, sent: Arc::clone(&sent), stop: Arc::clone(&stop) };
        let uri = uri.to_owned();
        let run = move || {
            let there = match Hypervisor::open(&uri) {
                Ok(there) => there,
                Err(error) => return drop(tell.send(Err(error))),
            };
            for part in to_do {
                sent.store(0, Ordering::Relaxed);
                let ended = send_part(&there, &part, &sent, &stop);
                let is_last = !matches!(ended, Ok(true));
                if tell.send(ended).is_err() || is_last {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("gnomon-send".to_owned()).spawn(run)?;
        Ok(line)
    }
}

fn send_part(there: &Hypervisor, part: &Part, sent: &AtomicU64, stop: &AtomicBool) -> Result<bool, HypervisorError> {
    let lost = |error| HypervisorError::Unsupported(format!("reading {}: {error}", part.from.display()));
    let (from, begun) = (File::open(&part.from).map_err(lost)?, Instant::now());
    // What it takes follows from how fast it may be.
    let _aside = Aside::begin();
    there.send_part(&from, &part.to, part.bytes.clone(), |bytes| {
        sent.store(bytes, Ordering::Relaxed);
        pause(begun, bytes, part.bytes_per_s, stop);
        !stop.load(Ordering::Relaxed)
    })
}

/// Waits until so much may have been sent.
fn pause(begun: Instant, bytes: u64, bytes_per_s: Option<u64>, stop: &AtomicBool) {
    let Some(bytes_per_s) = bytes_per_s else { return };
    let due = Duration::try_from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64).unwrap_or(Duration::MAX);
    while !stop.load(Ordering::Relaxed)
        && let Some(left) = due.checked_sub(begun.elapsed())
        && !left.is_zero()
    {
        std::thread::sleep(left.min(PAUSE_MAX));
    }
}

impl There for LibvirtThere {
    fn folder(&mut self, to: &Receiving) -> Result<Option<Folder>, String> {
        let directory = PathBuf::from(&to.directory);
        ask_there(&to.uri, About::Storage, move |there| there.folder(&directory))
    }

    fn make(&mut self, to: &Receiving, file: &Path, bytes: u64) -> Result<(), NotMade> {
        let (file, owner) = (file.to_owned(), Owner { user: to.owner, group: to.group });
        // libvirt's word that it has not made it is believed; no word is none.
        match ask_there(&to.uri, About::Storage, move |there| {
            Ok(there.make_file(&file, bytes, owner).map_err(|error| (error.is_retryable(), error.to_string())))
        }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err((true, error))) | Err(error) => Err(NotMade::Unclear(error)),
            Ok(Err((false, error))) => Err(NotMade::Refused(error)),
        }
    }

    fn remove(&mut self, to: &Receiving, file: &Path) -> Result<(), String> {
        let file = file.to_owned();
        ask_there(&to.uri, About::Storage, move |there| there.remove_copy(&file))
    }

    fn send(
        &mut self,
        to: &Receiving,
        part: &Part,
        watch: &mut dyn FnMut(u64) -> Result<(), Snag>,
    ) -> Result<(), NotSent> {
        let line = match self.line.take().filter(|line| line.uri == to.uri) {
            Some(line) => line,
            None => Line::open(&to.uri).map_err(|error| NotSent::Again(format!("no thread to send: {error}")))?,
        };
        let ended = || NotSent::Again("the thread that sends has ended".to_owned());
        line.parts.send(part.clone()).map_err(|_| ended())?;
        loop {
            match line.ends.recv_timeout(POLL) {
                Ok(Ok(true)) => {
                    self.line = Some(line);
                    return Ok(());
                }
                Ok(Err(HypervisorError::Unsupported(why))) => return Err(NotSent::Never(why)),
                Ok(Err(error)) => return Err(NotSent::Again(error.to_string())),
                Ok(Ok(false)) | Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) => watch(line.sent.load(Ordering::Relaxed)).map_err(NotSent::Over)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_faster_than_it_may_be_and_nobody_waits_once_it_is_over() {
        let (begun, stop) = (Instant::now(), AtomicBool::new(false));
        pause(begun, 1 << 20, None, &stop);
        pause(begun, 0, Some(1), &stop);
        assert!(begun.elapsed() < Duration::from_secs(1));
        pause(begun, 100, Some(1_000), &stop);
        assert!(begun.elapsed() >= Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        pause(begun, u64::MAX, Some(0), &stop);
    }

    #[test]
    fn a_host_that_cannot_be_reached_may_be_the_next_time() {
        let uri = "qemu:///system?socket=/nonexistent/gnomon.sock".to_owned();
        let to = Receiving { uri, directory: "/srv/r".into(), owner: 0, group: 0, bytes_max: 1 };
        let part = Part { from: "/nonexistent".into(), to: "/srv/r/a".into(), bytes: 0..1, bytes_per_s: None };
        let mut there = LibvirtThere::default();
        let sent = there.send(&to, &part, &mut |_| Ok(()));
        assert!(matches!(&sent, Err(NotSent::Again(why)) if why.contains("cannot connect")), "{sent:?}");
        assert!(there.line.is_none() && there.folder(&to).is_err());
        assert!(matches!(there.make(&to, &part.to, 1), Err(NotMade::Unclear(_))));
    }
}
