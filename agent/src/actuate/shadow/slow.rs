//! What takes minutes, each on a thread of its own so that no other order waits for it: to copy disks and send them, and to check copies before a shadow stands on them.

use super::check;
use super::copies::Copies;
use super::files::Files;
use super::host::{Here, LibvirtHere};
use super::image::{self, GiveUp};
use super::snag::{Snag, in_time};
use super::there::LibvirtThere;
use super::{CopiesKept, ShadowNews, ShadowerConfig, Task};
use crate::config::is_remote;
use gnomon_common::wire::{Action, Blueprint, Command, OutcomeResult, RefusedCommand, ShadowOrder, VmId};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

/// What a thread has to tell.
pub(super) enum Word {
    /// To whoever asks for news.
    News(ShadowNews),
    /// The copies of this order's disks are what was made: it can be carried out. Its time to live counts from then.
    Checked(Box<Task>, Instant),
}

/// One that is under way.
pub(super) struct Slow {
    /// For which shadow.
    shadow: VmId,
    /// Which VM's disks are being copied, if they are.
    copied: Option<VmId>,
    give_up: Arc<GiveUp>,
    /// Commands that want the same: they are answered alike.
    pub(super) also: Vec<Command>,
    thread: JoinHandle<()>,
}

impl Slow {
    /// Begins with an order that takes long; the others are given back, and those that came too late: no copy is read for them.
    pub(super) fn begin(
        config: &ShadowerConfig,
        task: Task,
        begun: Instant,
        words: &Sender<Word>,
        kept: &CopiesKept,
    ) -> std::io::Result<Result<Self, Task>> {
        let give_up = Arc::new(GiveUp::new());
        let gives_up = Arc::clone(&give_up);
        let (shadow, copied) = match &task.command.action {
            Action::Image(imaging) => (imaging.shadow, Some(task.command.vm)),
            Action::Shadow(ShadowOrder::Copy(spec))
                if spec.blueprint.copies().next().is_some() && in_time(&task, begun).is_ok() =>
            {
                (task.command.vm, None)
            }
            _ => return Ok(Err(task)),
        };
        let (config, words, kept) = (config.clone(), words.clone(), kept.clone());
        let run = move || {
            let word = match carry_out(&config, &task, begun, &gives_up, &words) {
                Ok(begun) => Word::Checked(Box::new(task), begun),
                Err(result) => Word::News(ShadowNews::Ended(Box::new(task.command), result)),
            };
            // Nobody asks any more: the agent ends.
            drop(words.send(word));
            if copied.is_some() {
                kept.look(&config);
            }
        };
        let thread = std::thread::Builder::new().name("gnomon-copy".to_owned()).spawn(run)?;
        Ok(Ok(Self { shadow, copied, give_up, also: Vec::new(), thread }))
    }

    pub(super) fn shadow(&self) -> VmId {
        self.shadow
    }

    pub(super) fn is_for(&self, shadow: VmId) -> bool {
        self.shadow == shadow
    }

    /// Whether disks are being copied.
    pub(super) fn copies(&self) -> bool {
        self.copied.is_some()
    }

    /// Whether this VM's are.
    pub(super) fn copies_of(&self, vm: VmId) -> bool {
        self.copied == Some(vm)
    }

    /// Has it end soon. The first reason counts.
    pub(super) fn give_up(&self, why: &'static str) {
        let _ = self.give_up.set(why);
    }

    /// Whether its thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// For which shadow an order is that may take long; `None` of one that does not.
pub(super) fn shadow_of(action: &Action, vm: VmId) -> Option<VmId> {
    match action {
        Action::Image(imaging) => Some(imaging.shadow),
        Action::Shadow(ShadowOrder::Copy(_)) => Some(vm),
        _ => None,
    }
}

/// Checks the copies that a shadow is to stand on, for an order that was begun then. Returns from when on its time to live counts after that: it came in
/// time, and to read all copies may take hours.
pub(super) fn check<H: Here>(
    here: &mut H,
    files: &Files,
    (shadow, blueprint): (VmId, &Blueprint),
    begun: Instant,
    give_up: &GiveUp,
) -> Result<Instant, Snag> {
    let since = Instant::now();
    check::check(here, files, shadow, blueprint, give_up)?;
    Ok(begun + since.elapsed())
}

/// From when on the time to live of what is to be gone on with counts.
///
/// # Errors
/// What came of it, where it has ended.
fn carry_out(
    config: &ShadowerConfig,
    task: &Task,
    begun: Instant,
    give_up: &GiveUp,
    words: &Sender<Word>,
) -> Result<Instant, OutcomeResult> {
    match &task.command.action {
        Action::Image(imaging) => {
            let Some(copies) = Copies::new(&config.shadow, &config.host) else {
                return Err(OutcomeResult::Refused(RefusedCommand::CopiesNotAllowed));
            };
            if let Some(to) = imaging.send_to.as_ref().filter(|to| !to.is_bounded() || !is_remote(&to.uri)) {
                let why = format!("{:.64} at {:.64} is no place to which copies can be sent", to.directory, to.uri);
                return Err(Snag::Never(why).into());
            }
            let order = image::Order { task, imaging, begun, give_up };
            let tell = |done, total| drop(words.send(Word::News(ShadowNews::Copying(done, total))));
            let imaged =
                image::image(&mut LibvirtHere::new(config), &mut LibvirtThere::default(), &copies, &order, tell);
            Err(imaged.map_or_else(OutcomeResult::from, |imaged| OutcomeResult::Imaged(Box::new(imaged))))
        }
        Action::Shadow(ShadowOrder::Copy(spec)) => {
            let (mut here, files) = (LibvirtHere::new(config), Files::new(config.shadow.clone()));
            Ok(check(&mut here, &files, (task.command.vm, &spec.blueprint), begun, give_up)?)
        }
        _ => Err(Snag::Never("it is no order that takes long".to_owned()).into()),
    }
}
