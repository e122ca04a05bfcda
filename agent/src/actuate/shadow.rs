//! Makes, starts and retires shadows, one after the other on a thread of its own: libvirt may take as long as it likes, and nothing else
//! waits for it. What takes minutes is done [beside that](slow): to copy the disks of a VM for a shadow elsewhere ([`image`]), and to check such copies before a shadow stands on them.
//!
//! ```text
//! Copy    files, then the definition: a shadow that is defined is whole     --fails--> neither
//! Start   the network is shown to lead nowhere, then the domain runs, then its port is shown to be isolated     --fails--> it does not run
//! Pace    its pacer gets the profile
//! Resize  quota, weight, limits of devices, then the balloon     --fails--> all as before
//! Retire  the domain ends, its definition goes, its files go
//! ```
//! Each says what is to be, so that an agent that was killed in the middle does it again and comes to the same end. Only what
//! [is a shadow](crate::host::libvirt::ShadowDomain) is ever touched. Orders are done in their order: what one has left is seen by the next.

mod check;
mod copies;
pub(crate) mod definition;
mod files;
mod host;
mod image;
mod kept;
mod orders;
mod received;
mod send;
mod slow;
mod snag;
mod there;
mod throttle;

use crate::config::ShadowConfig;
use crate::host::machine::Machine;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Command, CommandId, HostId, Imaging, OutcomeResult, Profile, ShadowOrder, VmId};
use kept::Busy;
use slow::{Slow, Word};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use definition::is_size;
pub use kept::CopiesKept;

/// One command about a shadow, or about what one is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The command.
    pub command: Command,
    /// When it was received, by the wall clock.
    pub at: Timestamp,
    /// How much of its time to live is left.
    pub time_left: Duration,
    /// How long ago it was received.
    pub waited: Duration,
}

/// What has become of what was begun.
#[derive(Clone, Debug, PartialEq)]
pub enum ShadowNews {
    /// A command has ended like this. Times in it are yet to be filled in by who knows when it came.
    Ended(Box<Command>, OutcomeResult),
    /// What nobody knows of any more was removed: so many shadows or folders of files.
    Tidied(u64),
    /// So many bytes of a VM's disks are copied, of so many.
    Copying(u64, u64),
}

/// Carries out orders about shadows. No call blocks.
pub trait Shadower: Send {
    /// Begins.
    fn begin(&mut self, task: Task) -> std::io::Result<()>;

    /// Whether this command is under way.
    fn has(&self, id: CommandId) -> bool;

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool;

    /// Has the copying of this VM's disks given up, if it is under way: it ends soon.
    fn give_up_copies(&mut self, of: VmId);

    /// Removes files without a domain, and shadows without files, but for those of commands that are under way.
    fn tidy(&mut self, under_way: BTreeSet<VmId>) -> std::io::Result<()>;

    /// What has become of those under way since it was asked last.
    fn news(&mut self) -> Vec<ShadowNews>;
}

/// The way to the pacers in shadows.
pub trait Pacing: Send {
    /// Has a shadow's pacer, behind the socket of its channel, follow a profile from now on.
    ///
    /// # Errors
    /// Why it does not, for a person.
    fn pace(&mut self, shadow: VmId, socket: &Path, profile: &Profile) -> Result<(), String>;
}

/// What does not change from one shadow to the next.
#[derive(Clone, Debug)]
pub struct ShadowerConfig {
    /// This host.
    pub host: HostId,
    /// This host's libvirt.
    pub uri: String,
    /// Limits and places.
    pub shadow: ShadowConfig,
    /// CPU that VMs may share out, in cores.
    pub capacity_cores: f64,
    /// The host's memory, in bytes.
    pub memory_bytes: u64,
    /// Left free on it, in bytes.
    pub reserve_bytes: u64,
    /// Where its free memory is read.
    pub machine: Machine,
}

enum Work {
    Task(Box<Task>, Instant),
    Tidy(BTreeSet<VmId>),
    /// Only look which copies there are.
    Look,
}

/// Carries orders out by libvirt.
pub struct LibvirtShadower {
    config: ShadowerConfig,
    pacing: Option<Box<dyn Pacing>>,
    orders: Option<(Sender<Work>, JoinHandle<()>)>,
    words: (Sender<Word>, Receiver<Word>),
    under_way: BTreeSet<CommandId>,
    /// Which of them are done beside the others.
    slow: BTreeMap<CommandId, Slow>,
    /// Their shadows.
    busy: Busy,
    /// Retirements of shadows for which something slow has still to end, and copies of disks for shadows whose files are being removed.
    held: Vec<(Task, Instant)>,
    /// Retirements that the thread of orders has to do.
    retiring: BTreeMap<CommandId, VmId>,
    tidying: bool,
    kept: CopiesKept,
}

impl LibvirtShadower {
    /// Connects to nothing yet. Without a way to pacers no shadow is paced.
    pub fn new(config: ShadowerConfig, pacing: Option<Box<dyn Pacing>>) -> Self {
        Self {
            kept: CopiesKept::new(&config),
            config,
            pacing,
            orders: None,
            words: channel(),
            under_way: BTreeSet::new(),
            slow: BTreeMap::new(),
            busy: Busy::default(),
            held: Vec::new(),
            retiring: BTreeMap::new(),
            tidying: false,
        }
    }

    /// Which copies of disks are here, from now on: seen by the thread of orders, whom storage that hangs may hold up.
    pub fn copies_kept(&mut self) -> std::io::Result<CopiesKept> {
        if self.config.shadow.copies_directory.is_some() || self.config.shadow.received_directory.is_some() {
            self.send(Work::Look)?;
        }
        Ok(self.kept.clone())
    }

    /// Hands work to the thread of orders, which is started with the first.
    fn send(&mut self, work: Work) -> std::io::Result<()> {
        if self.orders.is_none() {
            let (to_do, work) = channel();
            let tell = self.words.0.clone();
            let host = host::LibvirtHere::new(&self.config);
            let mut orders = orders::Orders::new(host, self.config.clone(), self.busy.clone(), self.pacing.take());
            let (kept, config) = (self.kept.clone(), self.config.clone());
            let run = move || {
                for work in work {
                    let (news, removes) = match work {
                        Work::Task(task, begun) => {
                            let result = orders.carry_out(&task, begun);
                            let is_retire = task.command.action == Action::Shadow(ShadowOrder::Retire);
                            (Some(ShadowNews::Ended(Box::new(task.command), result)), is_retire)
                        }
                        Work::Tidy(under_way) => (Some(ShadowNews::Tidied(orders.tidy(&under_way))), true),
                        Work::Look => (None, true),
                    };
                    if news.is_some_and(|news| tell.send(Word::News(news)).is_err()) {
                        return;
                    }
                    if removes {
                        kept.look(&config);
                    }
                }
            };
            let thread = std::thread::Builder::new().name("gnomon-shadow".to_owned()).spawn(run)?;
            self.orders = Some((to_do, thread));
        }
        let sent = self.orders.as_ref().is_some_and(|(to_do, _)| to_do.send(work).is_ok());
        if sent { Ok(()) } else { Err(std::io::Error::other("the thread of shadows has ended; restart the agent")) }
    }

    /// Why an order that takes long is not begun now, if it is not.
    fn is_busy(&self, action: &Action, vm: VmId) -> Option<&'static str> {
        let shadow = slow::shadow_of(action, vm)?;
        let copies = matches!(action, Action::Image(_));
        if self.slow.values().any(|slow| slow.is_for(shadow))
            || self.held.iter().any(|(task, _)| task.command.vm == shadow)
        {
            return Some("an earlier order for the same shadow has not ended yet");
        }
        (copies && self.slow.values().any(Slow::copies)).then_some("disks of another VM are being copied from here")
    }

    /// What has ended, or will not be begun, is told like all news.
    fn fail(&self, command: Command, why: &'static str) -> std::io::Result<()> {
        let failed = OutcomeResult::Failed { error: why.to_owned(), retryable: true };
        let ended = Word::News(ShadowNews::Ended(Box::new(command), failed));
        self.words.0.send(ended).map_err(std::io::Error::other)
    }

    fn begin_at(&mut self, task: Task, begun: Instant) -> std::io::Result<()> {
        let (id, vm) = (task.command.id, task.command.vm);
        if task.command.action == Action::Shadow(ShadowOrder::Retire) {
            self.fail_held("its shadow is retired", |_, imaging| imaging.shadow == vm)?;
            let mut slow = self.slow.values().filter(|slow| slow.is_for(vm)).peekable();
            if slow.peek().is_some() {
                slow.for_each(|slow| slow.give_up("its shadow is retired"));
                self.held.push((task, begun));
                return Ok(());
            }
            self.send(Work::Task(Box::new(task), begun))?;
            self.retiring.insert(id, vm);
            return Ok(());
        }
        if let Action::Image(imaging) = &task.command.action
            && let Some(slow) = self.slow.values_mut().find(|slow| slow.is_for(imaging.shadow) && slow.copies_of(vm))
        {
            slow.also.push(task.command);
            return Ok(());
        }
        if let Some(why) = self.is_busy(&task.command.action, vm) {
            return self.fail(task.command, why);
        }
        // Whoever removes files has looked already whose are not to be.
        if let Action::Image(imaging) = &task.command.action
            && (self.tidying || self.retiring.values().any(|shadow| *shadow == imaging.shadow))
        {
            self.held.push((task, begun));
            return Ok(());
        }
        // Known before its thread begins.
        self.busy.set(self.slow.values().map(Slow::shadow).chain(slow::shadow_of(&task.command.action, vm)));
        let done = match Slow::begin(&self.config, task, begun, &self.words.0, &self.kept) {
            Ok(Ok(slow)) => {
                self.slow.insert(id, slow);
                Ok(())
            }
            Ok(Err(task)) => self.send(Work::Task(Box::new(task), begun)),
            Err(error) => Err(error),
        };
        self.note_busy();
        done
    }

    fn note_busy(&self) {
        self.busy.set(self.slow.values().map(Slow::shadow));
    }

    /// Has copies that are held back not begun at all.
    fn fail_held(&mut self, why: &'static str, ends: impl Fn(VmId, &Imaging) -> bool) -> std::io::Result<()> {
        let is_over = |(task, _): &(Task, Instant)| match &task.command.action {
            Action::Image(imaging) => ends(task.command.vm, imaging),
            _ => false,
        };
        let (over, held) = std::mem::take(&mut self.held).into_iter().partition(is_over);
        self.held = held;
        let over: Vec<(Task, Instant)> = over;
        over.into_iter().try_for_each(|(task, _)| self.fail(task.command, why))
    }

    /// Begins with what nothing holds back any more.
    fn release_held(&mut self) {
        for (task, begun) in std::mem::take(&mut self.held) {
            let id = task.command.id;
            if let Err(error) = self.begin_at(task, begun) {
                tracing::error!(%error, "no thread to see to a shadow");
                self.under_way.remove(&id);
            }
        }
    }
}

impl Shadower for LibvirtShadower {
    fn begin(&mut self, task: Task) -> std::io::Result<()> {
        let id = task.command.id;
        self.begin_at(task, Instant::now())?;
        self.under_way.insert(id);
        Ok(())
    }

    fn has(&self, id: CommandId) -> bool {
        self.under_way.contains(&id)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty() && !self.tidying
    }

    fn give_up_copies(&mut self, of: VmId) {
        let why = "it is being migrated";
        self.slow.values().filter(|slow| slow.copies_of(of)).for_each(|slow| slow.give_up(why));
        if let Err(error) = self.fail_held(why, |vm, _| vm == of) {
            tracing::error!(%error, "nobody hears that a VM's disks are not copied");
        }
    }

    fn tidy(&mut self, under_way: BTreeSet<VmId>) -> std::io::Result<()> {
        if !self.tidying {
            self.send(Work::Tidy(under_way))?;
            self.tidying = true;
        }
        Ok(())
    }

    fn news(&mut self) -> Vec<ShadowNews> {
        let mut all = Vec::new();
        // What has ended before this has told all that it will.
        let ended: Vec<CommandId> = self.slow.iter().filter(|(_, slow)| slow.has_ended()).map(|(id, _)| *id).collect();
        let is_lost = self.orders.as_ref().is_some_and(|(_, thread)| thread.is_finished());
        while let Ok(word) = self.words.1.try_recv() {
            match word {
                Word::News(ShadowNews::Ended(command, result)) => {
                    self.under_way.remove(&command.id);
                    self.retiring.remove(&command.id);
                    for also in self.slow.remove(&command.id).into_iter().flat_map(|slow| slow.also) {
                        self.under_way.remove(&also.id);
                        all.push(ShadowNews::Ended(Box::new(also), result.clone()));
                    }
                    all.push(ShadowNews::Ended(command, result));
                }
                Word::News(ShadowNews::Tidied(removed)) => {
                    self.tidying = false;
                    all.push(ShadowNews::Tidied(removed));
                }
                Word::News(copying) => all.push(copying),
                Word::Checked(task, begun) => {
                    let id = task.command.id;
                    self.slow.remove(&id);
                    if let Err(error) = self.send(Work::Task(task, begun)) {
                        tracing::error!(%error, "no thread to make a shadow");
                        self.under_way.remove(&id);
                    }
                }
            }
        }
        // One that has panicked says nothing. What was under way stays so in the ledger, and is begun anew.
        for id in ended {
            if let Some(slow) = self.slow.remove(&id) {
                self.under_way.remove(&id);
                self.under_way.retain(|other| slow.also.iter().all(|also| also.id != *other));
            }
        }
        if is_lost {
            self.under_way.retain(|id| self.slow.contains_key(id));
            self.retiring.clear();
            self.tidying = false;
        }
        self.note_busy();
        self.release_held();
        all
    }
}

/// What a small VM of these disks is made from, for tests.
#[cfg(test)]
pub(crate) fn bare_blueprint(disks: Vec<gnomon_common::wire::DiskBlueprint>) -> gnomon_common::wire::Blueprint {
    gnomon_common::wire::Blueprint {
        name: "web".into(),
        kvm: false,
        arch: "x86_64".into(),
        machine: "q35".into(),
        cpu_model: None,
        boot: gnomon_common::wire::Boot::Bios,
        vcpus: 1,
        memory_bytes: 1,
        cpu_weight: gnomon_common::wire::CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks,
        interfaces: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
