//! One VM's way to another host, from the checks to the knowledge of where it is.

use super::ending::{Ending, ending, has_run};
use super::{CopyRecord, News, Order};
use crate::host::libvirt::migration::{Job, Standing};
use crate::sample::MigrationBook;
use gnomon_common::wire::{Copied, Immovable, MigrationProgress, Moved, OutcomeResult, Whereabouts};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often a migration under way is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often it is asked again to end, and afterwards where it is.
const AGAIN_INTERVAL: Duration = Duration::from_secs(1);

/// A VM that was seen to stand still so often after its migration is told to. libvirt itself needs a moment to let it run on.
const PARKED_LOOKS: u32 = 3;

/// One that is gone here, while the target has not said for so many looks that it has it, is told to be parked as well: its libvirt may be giving up one
/// that it was receiving.
const PARKED_LOOKS_GONE: u32 = 10;

/// How often it is tried to remove what was made on a target for nothing; what is left then is told. Meanwhile the VM is not free for anything else.
const REMOVALS_MAX: u32 = 8;

/// The two hosts, as one migration sees them. Calls may block, those to the other host for a quarter of a minute at most.
pub(super) trait Sides {
    /// Whether it may begin, and the files that have to be made on the other host before.
    fn check(&mut self) -> Result<Option<CopyRecord>, Refusal>;

    /// Makes one of these files, empty.
    fn make_copy(&mut self, file: &str) -> Result<(), NotMade>;

    /// Removes a file that was made there.
    fn remove_copy(&mut self, file: &str) -> Result<(), String>;

    /// Lets something go with it, or not after all.
    fn keep(&mut self, keepsake: Option<&str>);

    /// Begins it. What libvirt says at its end is received.
    fn begin(&mut self) -> Receiver<Result<(), String>>;

    /// The job here, if libvirt answers, if there is one.
    fn job(&mut self) -> Option<Option<Job>>;

    /// Asks the job here to end.
    fn abort(&mut self);

    /// How it stands here, if libvirt answers.
    fn here(&mut self) -> Option<Standing>;

    /// How it stands there.
    fn there(&mut self) -> Option<Standing>;

    /// Lets it run on here.
    fn resume(&mut self) -> Result<(), String>;

    /// What the other host remembers of the migration.
    fn completed(&mut self) -> Option<Job>;

    /// Lets time pass.
    fn pause(&mut self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

/// Why it does not begin.
pub(super) enum Refusal {
    /// It must not, or cannot.
    Immovable(Immovable),
    /// This host's libvirt does not say.
    Unclear(String),
}

/// Why a file was not made on the other host.
pub(super) enum NotMade {
    /// It says so: what is there is not ours.
    Refused(String),
    /// It does not say.
    Unclear(String),
}

/// One migration.
pub(super) struct Journey<'a, S> {
    pub(super) order: &'a Order,
    pub(super) sides: S,
    /// Set by who wants it to be given up.
    pub(super) asked: Arc<AtomicBool>,
    pub(super) begun: Instant,
    pub(super) book: &'a MigrationBook,
    /// What was seen last to be sent of its disks, in bytes: the other host is not told.
    pub(super) sent_storage_bytes: Option<u64>,
}

impl<S: Sides> Journey<'_, S> {
    /// Goes it, and returns how it ended; `told` hears if the VM stands still meanwhile, and `record` writes down, before they are made, what
    /// files are to be made on the other host, or says that it could not.
    pub(super) fn run(
        mut self,
        told: &mut dyn FnMut(News),
        record: &mut dyn FnMut(&CopyRecord) -> bool,
    ) -> OutcomeResult {
        let vm = self.order.vm;
        let mut said = Err("the agent was restarted while it was under way".to_owned());
        let mut copies = self.order.copies.clone();
        if self.order.is_new {
            match self.sides.check() {
                Ok(needed) => copies = needed,
                Err(Refusal::Immovable(why)) => return OutcomeResult::Immovable(why),
                Err(Refusal::Unclear(error)) => return OutcomeResult::Failed { error, retryable: true },
            }
            let here = |error| OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Here };
            if let Some(why) = self.given_up() {
                return here(why);
            }
            if let Some(copies) = &mut copies
                && let Err(error) = self.make(copies, record)
            {
                return self.see_to(copies, here(error));
            }
            self.book.note(vm, MigrationProgress::default());
            if self.order.keepsake.is_some() {
                self.sides.keep(self.order.keepsake.as_deref());
            }
            let ended = self.sides.begin();
            said = self.watch(|wait| match ended.recv_timeout(wait) {
                Ok(said) => Some(said),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Err("the thread that migrated has ended".to_owned())),
            });
        }
        // One of an earlier life, or one whose call has returned while libvirt still tidies up.
        if !matches!(self.sides.job(), Some(None)) && said.is_err() {
            let given_up = self.follow();
            said = given_up.map_or(said, Err);
        }
        let result = self.settle(said, told);
        if self.order.keepsake.is_some() && matches!(result, OutcomeResult::NotMoved { .. }) {
            self.sides.keep(None);
        }
        match copies {
            Some(copies) => self.see_to(&copies, result),
            None => result,
        }
    }

    /// Makes the files on the other host. Before and after each it is written down how far this is. Leaves in `copies` those that are there, or
    /// may be.
    fn make(&mut self, copies: &mut CopyRecord, record: &mut dyn FnMut(&CopyRecord) -> bool) -> Result<(), String> {
        loop {
            if !record(copies) {
                copies.files.truncate(copies.made);
                return Err("what is made on the target could not be written down".to_owned());
            }
            let Some(file) = copies.files.get(copies.made) else { return Ok(()) };
            match self.sides.make_copy(file) {
                Ok(()) => copies.made += 1,
                Err(NotMade::Refused(error)) => {
                    let error = format!("{file} was not made on the target: {error}");
                    copies.files.truncate(copies.made);
                    return Err(error);
                }
                Err(NotMade::Unclear(error)) => {
                    let error = format!("making {file} on the target: {error}");
                    copies.files.truncate(copies.made + 1);
                    return Err(error);
                }
            }
        }
    }

    /// Says what has become of the disks. A copy is removed only where the VM runs here: what it writes to there is nothing that anybody needs.
    fn see_to(&mut self, copies: &CopyRecord, result: OutcomeResult) -> OutcomeResult {
        match result {
            OutcomeResult::Moved(moved) => {
                // QEMU counts what is empty in a whole disk as well.
                let bytes = self.sent_storage_bytes.map(|counted| counted.min(copies.bytes));
                let sent_bytes = moved.sent_bytes.map(|sent| sent.saturating_add(bytes.unwrap_or(0)));
                let copied = Copied { bytes, is_layered: copies.is_layered, left: copies.files.clone() };
                OutcomeResult::Moved(Moved { sent_bytes, copied: Some(copied), ..moved })
            }
            OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Here } => {
                let (made, unclear) = copies.files.split_at(copies.made.min(copies.files.len()));
                let mut error = error;
                for (which, files) in [("are", self.remove(made)), ("may be", unclear.to_vec())] {
                    if !files.is_empty() {
                        error +=
                            &format!("; on the target there {which} left, to be removed by hand: {}", files.join(", "));
                    }
                }
                OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Here }
            }
            OutcomeResult::Failed { error, retryable } => {
                let error =
                    format!("{error}; left here and, as far as they were copied, there: {}", copies.files.join(", "));
                OutcomeResult::Failed { error, retryable }
            }
            other => other,
        }
    }

    /// Removes files that this migration has made on the other host, once that does not know the VM. Returns what is left.
    fn remove(&mut self, files: &[String]) -> Vec<String> {
        let vm = self.order.vm;
        let mut left = files.to_vec();
        for attempt in 0..REMOVALS_MAX {
            if left.is_empty() {
                break;
            }
            if attempt > 0 {
                self.sides.pause(AGAIN_INTERVAL);
            }
            if self.sides.there() == Some(Standing::Absent) {
                left.retain(|file| match self.sides.remove_copy(file) {
                    Ok(()) => false,
                    Err(error) => {
                        tracing::warn!(%vm, file, error, "a copy that is of no use is still on the target");
                        true
                    }
                });
            }
        }
        left
    }

    /// Why it is to be given up, if it is.
    fn given_up(&self) -> Option<String> {
        let limit = Duration::from_millis(self.order.migration.timeout_ms);
        if self.asked.load(Ordering::Relaxed) {
            Some("given up, as a command said".to_owned())
        } else if self.order.waited.saturating_add(self.begun.elapsed()) >= limit {
            Some(format!("given up: it had not ended after {} s", limit.as_secs_f64()))
        } else {
            None
        }
    }

    /// Looks at it until `ended` tells, and sees to it that it ends when it is to.
    fn watch(&mut self, ended: impl Fn(Duration) -> Option<Result<(), String>>) -> Result<(), String> {
        let mut aborted: Option<(Instant, String)> = None;
        loop {
            if let Some(said) = ended(LOOK_INTERVAL) {
                // Whose doing it was is said rather than what libvirt makes of it.
                return said.map_err(|error| aborted.map_or(error, |(_, why)| why));
            }
            self.note_progress();
            self.abort_if_asked(&mut aborted);
        }
    }

    /// The same for a job that this life of the agent has not begun. Returns why it was given up, if it was.
    fn follow(&mut self) -> Option<String> {
        let mut aborted = None;
        while let None | Some(Some(_)) = self.sides.job() {
            self.note_progress();
            self.abort_if_asked(&mut aborted);
            self.sides.pause(LOOK_INTERVAL);
            // A domain that is gone has no job to tell of.
            if matches!(self.sides.here(), Some(Standing::Off | Standing::Absent)) {
                break;
            }
        }
        aborted.map(|(_, why)| why)
    }

    fn note_progress(&mut self) {
        if let Some(Some(job)) = self.sides.job() {
            self.sent_storage_bytes =
                Some(job.sent_storage_bytes).filter(|sent| *sent > 0).max(self.sent_storage_bytes);
            let elapsed = self.order.waited.saturating_add(self.begun.elapsed());
            let progress = MigrationProgress {
                elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                sent_bytes: job.sent_bytes,
                remaining_bytes: job.remaining_bytes,
                dirty_bytes_per_s: job.dirty_bytes_per_s,
            };
            self.book.note(self.order.vm, progress);
        }
    }

    fn abort_if_asked(&mut self, aborted: &mut Option<(Instant, String)>) {
        let Some(why) = self.given_up() else { return };
        if aborted.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGAIN_INTERVAL) {
            self.sides.abort();
            let (_, why) = aborted.take().unwrap_or((Instant::now(), why));
            *aborted = Some((Instant::now(), why));
        }
    }

    /// Finds out where it is, and lets it run on here if that is proven to be right.
    fn settle(&mut self, said: Result<(), String>, told: &mut dyn FnMut(News)) -> OutcomeResult {
        let vm = self.order.vm;
        let error = said.as_ref().err().cloned().unwrap_or_else(|| "libvirt says that it has moved".to_owned());
        let not_moved = |whereabouts| OutcomeResult::NotMoved { error: error.clone(), whereabouts };
        let (mut stood_still, mut seemed_gone): (u32, u32) = (0, 0);
        // A copy that ran there once has changed its disks: the one here must not run on them any more, wherever that one has gone since.
        let mut has_run_there = self.order.ran_there;
        loop {
            let here = self.sides.here();
            // A libvirt that has said so and has it no more needs no witness.
            if said.is_ok() && is_gone(here) {
                return self.moved();
            }
            // While one is under way nothing is concluded. Where libvirt does not tell of a job it does not tell of the domain either.
            let at_rest = is_gone(here) || matches!(self.sides.job(), Some(None));
            let there = match here {
                Some(Standing::Stopped { by_migration: true } | Standing::Off | Standing::Absent) if at_rest => {
                    self.sides.there()
                }
                _ => None,
            };
            let is_seen_first = !has_run_there && there.is_some_and(has_run);
            has_run_there |= is_seen_first;
            match ending(here.filter(|_| at_rest), there) {
                Ending::Here => return not_moved(Whereabouts::Here),
                Ending::Moved => return self.moved(),
                Ending::Gone => {
                    let error = format!("it runs on neither host, it ended meanwhile ({error})");
                    return OutcomeResult::Failed { error, retryable: false };
                }
                Ending::Resume if !has_run_there => match self.sides.resume() {
                    Ok(()) => tracing::warn!(%vm, "let run on: the target does not have it"),
                    Err(error) => tracing::error!(%vm, error, "it stands still, and cannot be let run on"),
                },
                Ending::Resume | Ending::StandsStill => {
                    stood_still = stood_still.saturating_add(1);
                    if stood_still == PARKED_LOOKS {
                        tracing::error!(
                            %vm, ?there, error,
                            "it stands still: that the target does not run it, and never did, cannot be shown; asking again until it can"
                        );
                        told(News::Parked(not_moved(Whereabouts::Parked)));
                    }
                }
                Ending::Unknown if is_gone(here) => {
                    seemed_gone = seemed_gone.saturating_add(1);
                    if seemed_gone == PARKED_LOOKS_GONE {
                        tracing::error!(%vm, ?there, error, "it is gone here, and the target does not say that it has it; asking again until it does");
                        let error = format!("it is gone here, and the target does not say that it has it ({error})");
                        told(News::Parked(OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Parked }));
                    }
                }
                Ending::Unknown => {}
            }
            if is_seen_first {
                told(News::RanThere);
            }
            self.sides.pause(AGAIN_INTERVAL);
        }
    }

    fn moved(&mut self) -> OutcomeResult {
        let job = self.sides.completed();
        OutcomeResult::Moved(Moved {
            took_us: 0,
            downtime_us: job.and_then(|job| job.downtime_us),
            sent_bytes: job.map(|job| job.sent_bytes.saturating_sub(job.sent_storage_bytes)),
            copied: None,
        })
    }
}

/// Whether it is not here any more, running or stopped.
fn is_gone(here: Option<Standing>) -> bool {
    matches!(here, Some(Standing::Off | Standing::Absent))
}

#[cfg(test)]
mod tests;
