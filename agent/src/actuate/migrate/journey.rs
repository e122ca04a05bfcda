//! One VM's way to another host, from the checks to the knowledge of where it is.

use super::ending::{Ending, ending, has_run};
use super::{MoverConfig, Order, preflight};
use crate::host::libvirt::migration::{Job, Standing};
use crate::host::libvirt::needs::{CpuNeed, Needs};
use crate::host::libvirt::{Devices, Hypervisor, HypervisorError, Reconnecting};
use crate::sample::MigrationBook;
use gnomon_common::wire::{Immovable, Migration, MigrationProgress, Moved, OutcomeResult, VmId, Whereabouts};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a migration under way is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How often it is asked again to end, and afterwards where it is.
const AGAIN_INTERVAL: Duration = Duration::from_secs(1);

/// How long the other host may take to answer: a connection to a host that is gone fails by itself only after minutes.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// A VM that was seen to stand still so often after its migration is told to. libvirt itself needs a moment to let it run on.
const PARKED_LOOKS: u32 = 3;

/// The two hosts, as one migration sees them. Calls may block, those to the other host for [`ANSWER_MAX`] at most.
pub(super) trait Sides {
    /// Whether it may begin.
    fn check(&mut self) -> Result<(), Refusal>;

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

/// One migration.
pub(super) struct Journey<'a, S> {
    pub(super) order: &'a Order,
    pub(super) sides: S,
    /// Set by who wants it to be given up.
    pub(super) asked: Arc<AtomicBool>,
    pub(super) begun: Instant,
    pub(super) book: &'a MigrationBook,
}

impl<S: Sides> Journey<'_, S> {
    /// Goes it, and returns how it ended; `parked` is told if the VM stands still meanwhile.
    pub(super) fn run(mut self, parked: &mut dyn FnMut(OutcomeResult)) -> OutcomeResult {
        let vm = self.order.vm;
        let mut said = Err("the agent was restarted while it was under way".to_owned());
        if self.order.is_new {
            match self.sides.check() {
                Ok(()) => {}
                Err(Refusal::Immovable(why)) => return OutcomeResult::Immovable(why),
                Err(Refusal::Unclear(error)) => return OutcomeResult::Failed { error, retryable: true },
            }
            if let Some(why) = self.given_up() {
                return OutcomeResult::NotMoved { error: why, whereabouts: Whereabouts::Here };
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
        let result = self.settle(said, parked);
        if self.order.keepsake.is_some() && matches!(result, OutcomeResult::NotMoved { .. }) {
            self.sides.keep(None);
        }
        result
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
    fn settle(&mut self, said: Result<(), String>, parked: &mut dyn FnMut(OutcomeResult)) -> OutcomeResult {
        let vm = self.order.vm;
        let error = said.as_ref().err().cloned().unwrap_or_else(|| "libvirt says that it has moved".to_owned());
        let not_moved = |whereabouts| OutcomeResult::NotMoved { error: error.clone(), whereabouts };
        let mut stood_still: u32 = 0;
        // A copy that ran there once has changed its disks: the one here must not run on them any more, wherever that one has gone since.
        let mut has_run_there = false;
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
            has_run_there |= there.is_some_and(has_run);
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
                        parked(not_moved(Whereabouts::Parked));
                    }
                }
                Ending::Unknown => {}
            }
            self.sides.pause(AGAIN_INTERVAL);
        }
    }

    fn moved(&mut self) -> OutcomeResult {
        let job = self.sides.completed();
        OutcomeResult::Moved(Moved {
            took_us: 0,
            downtime_us: job.and_then(|job| job.downtime_us),
            sent_bytes: job.map(|job| job.sent_bytes),
        })
    }
}

/// Whether it is not here any more, running or stopped.
fn is_gone(here: Option<Standing>) -> bool {
    matches!(here, Some(Standing::Off | Standing::Absent))
}

/// The two hosts' libvirt daemons.
pub(super) struct Libvirts {
    config: Arc<MoverConfig>,
    vm: VmId,
    migration: Migration,
    here: Reconnecting,
}

impl Libvirts {
    pub(super) fn new(config: Arc<MoverConfig>, order: &Order) -> Self {
        let here = Reconnecting::new(config.uri.clone());
        Self { config, vm: order.vm, migration: order.migration.clone(), here }
    }

    /// Asks the other host's libvirt, for as long as is allowed. A call that hangs is left to end by itself on its thread.
    fn ask_there<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, String> {
        let (tell, answer) = channel();
        let uri = self.migration.uri.clone();
        let run = move || {
            let _ = tell.send(Hypervisor::open(&uri).and_then(|there| ask(&there)));
        };
        std::thread::Builder::new().name("gnomon-target".to_owned()).spawn(run).map_err(|error| error.to_string())?;
        match answer.recv_timeout(ANSWER_MAX) {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
        }
    }

    fn needs(&mut self) -> Result<(Needs, Devices), HypervisorError> {
        let here = self.here.get()?;
        let xml = here.definition(self.vm)?;
        let none = || HypervisorError::Unsupported("its definition is not understood".to_owned());
        let mut needs = Needs::parse(&xml).ok_or_else(none)?;
        if let CpuNeed::SameAs(cpu) = &mut needs.cpu {
            *cpu = here.host_cpu()?.unwrap_or_default();
        }
        Ok((needs, Devices::parse(&xml)))
    }
}

impl Sides for Libvirts {
    fn check(&mut self) -> Result<(), Refusal> {
        let (needs, devices) = self.needs().map_err(|error| Refusal::Unclear(error.to_string()))?;
        preflight::may_leave(&devices.terms).map_err(Refusal::Immovable)?;
        let shared_paths = &self.config.shared_paths;
        preflight::storage(&needs, |path| preflight::is_shared(path, shared_paths)).map_err(Refusal::Immovable)?;
        let (vm, wanted) = (self.vm, needs.clone());
        let offer = self.ask_there(move |there| there.offer(vm, &wanted));
        let offer = offer.map_err(|error| Refusal::Immovable(Immovable::Unreachable(error)))?;
        preflight::target(&needs, &offer, self.config.reserve_bytes).map_err(Refusal::Immovable)
    }

    fn keep(&mut self, keepsake: Option<&str>) {
        if let Err(error) = self.here.get().and_then(|here| here.keep(self.vm, keepsake)) {
            tracing::warn!(vm = %self.vm, %error, "how to undo what was set does not go with the VM, or stays in its metadata");
        }
    }

    fn begin(&mut self) -> Receiver<Result<(), String>> {
        let (tell, ended) = channel();
        let (uri, vm, migration) = (self.config.uri.clone(), self.vm, self.migration.clone());
        // A connection of its own: the other one goes on answering.
        let run = move || {
            let said = Hypervisor::open(&uri).and_then(|here| here.migrate(vm, &migration));
            let _ = tell.send(said.map_err(|error| error.to_string()));
        };
        if let Err(error) = std::thread::Builder::new().name("gnomon-migrating".to_owned()).spawn(run) {
            tracing::error!(%error, "no thread to migrate a VM");
        }
        ended
    }

    fn job(&mut self) -> Option<Option<Job>> {
        self.here.get().and_then(|here| here.migration_job(self.vm)).ok()
    }

    fn abort(&mut self) {
        if let Err(error) = self.here.get().and_then(|here| here.abort_job(self.vm)) {
            tracing::warn!(vm = %self.vm, %error, "the migration is not aborted yet");
        }
    }

    fn here(&mut self) -> Option<Standing> {
        self.here.get().and_then(|here| here.standing(self.vm)).ok()
    }

    fn there(&mut self) -> Option<Standing> {
        let vm = self.vm;
        let answer = self.ask_there(move |there| there.standing(vm));
        answer.inspect_err(|error| tracing::warn!(%vm, error, "the target does not say whether it has it")).ok()
    }

    fn resume(&mut self) -> Result<(), String> {
        self.here.get().and_then(|here| here.resume(self.vm)).map_err(|error| error.to_string())
    }

    fn completed(&mut self) -> Option<Job> {
        let vm = self.vm;
        self.ask_there(move |there| there.completed_job(vm)).ok().flatten()
    }
}

#[cfg(test)]
mod tests;
