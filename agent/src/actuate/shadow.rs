//! Makes, starts and retires shadows, one after the other on a thread of its own: libvirt may take as long as it likes, and nothing else
//! waits for it.
//!
//! ```text
//! Copy    files, then the definition: a shadow that is defined is whole     --fails--> neither
//! Start   the network is shown to lead nowhere, then the domain runs, then its port is shown to be isolated     --fails--> it does not run
//! Pace    its pacer gets the profile
//! Retire  the domain ends, its definition goes, its files go
//! ```
//! Each says what is to be, so that an agent that was killed in the middle does it again and comes to the same end. Only what
//! [is a shadow](crate::host::libvirt::ShadowDomain) is ever touched. Orders are done in their order: what one has left is seen by the next.

pub(crate) mod definition;
mod files;
mod host;
mod orders;

use crate::config::ShadowConfig;
use crate::host::machine::Machine;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, CommandId, OutcomeResult, Profile, VmId};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

pub use definition::is_size;

/// One command about a shadow, or about what one is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The command.
    pub command: Command,
    /// When it was received, by the wall clock.
    pub at: Timestamp,
    /// How much of its time to live is left.
    pub time_left: Duration,
}

/// What has become of what was begun.
#[derive(Clone, Debug, PartialEq)]
pub enum ShadowNews {
    /// A command has ended like this. Times in it are yet to be filled in by who knows when it came.
    Ended(Box<Command>, OutcomeResult),
    /// What nobody knows of any more was removed: so many shadows or folders of files.
    Tidied(u64),
}

/// Carries out orders about shadows. No call blocks.
pub trait Shadower: Send {
    /// Begins.
    fn begin(&mut self, task: Task) -> std::io::Result<()>;

    /// Whether this command is under way.
    fn has(&self, id: CommandId) -> bool;

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool;

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
}

/// Carries orders out by libvirt.
pub struct LibvirtShadower {
    config: ShadowerConfig,
    pacing: Option<Box<dyn Pacing>>,
    link: Option<(Sender<Work>, Receiver<ShadowNews>)>,
    under_way: BTreeSet<CommandId>,
    tidying: bool,
}

impl LibvirtShadower {
    /// Connects to nothing yet. Without a way to pacers no shadow is paced.
    pub fn new(config: ShadowerConfig, pacing: Option<Box<dyn Pacing>>) -> Self {
        Self { config, pacing, link: None, under_way: BTreeSet::new(), tidying: false }
    }

    /// Hands work to the thread, which is started with the first.
    fn send(&mut self, work: Work) -> std::io::Result<()> {
        if self.link.is_none() {
            let (to_do, work) = channel();
            let (tell, news) = channel();
            let host = host::LibvirtHere::new(&self.config);
            let mut orders = orders::Orders::new(host, self.config.clone(), self.pacing.take());
            let run = move || {
                for work in work {
                    let news = match work {
                        Work::Task(task, begun) => {
                            let result = orders.carry_out(&task, begun);
                            ShadowNews::Ended(Box::new(task.command), result)
                        }
                        Work::Tidy(under_way) => ShadowNews::Tidied(orders.tidy(&under_way)),
                    };
                    if tell.send(news).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().name("gnomon-shadow".to_owned()).spawn(run)?;
            self.link = Some((to_do, news));
        }
        let sent = self.link.as_ref().is_some_and(|(to_do, _)| to_do.send(work).is_ok());
        if sent { Ok(()) } else { Err(std::io::Error::other("the thread of shadows has ended; restart the agent")) }
    }
}

impl Shadower for LibvirtShadower {
    fn begin(&mut self, task: Task) -> std::io::Result<()> {
        let id = task.command.id;
        self.send(Work::Task(Box::new(task), Instant::now()))?;
        self.under_way.insert(id);
        Ok(())
    }

    fn has(&self, id: CommandId) -> bool {
        self.under_way.contains(&id)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty() && !self.tidying
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
        let Some((_, news)) = &self.link else { return all };
        loop {
            match news.try_recv() {
                Ok(ShadowNews::Ended(command, result)) => {
                    self.under_way.remove(&command.id);
                    all.push(ShadowNews::Ended(command, result));
                }
                Ok(tidied) => {
                    self.tidying = false;
                    all.push(tidied);
                }
                Err(TryRecvError::Empty) => return all,
                Err(TryRecvError::Disconnected) => {
                    // It has panicked. What was under way stays so in the ledger, and is begun anew in the agent's next life.
                    self.under_way.clear();
                    self.tidying = false;
                    return all;
                }
            }
        }
    }
}
