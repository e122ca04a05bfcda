//! Moves VMs to other hosts, each on a thread of its own: a migration takes as long as the memory takes over the link, and nothing else waits
//! for it.
//!
//! ```text
//! checks (both hosts are asked, nothing is done) --no--> Immovable
//!    |
//! where disks go along: what is to be made on the other host is written down, then made, empty
//!    |
//! libvirt's call, on a thread of its own; beside it progress, time-out, abort
//!    |
//! where is it? --here or there, or neither--> the end
//!    |  stands still here, and the other host cannot be asked: Parked, asked again until it can
//! ```
//! The two libvirt daemons migrate peer to peer, so that an agent that is killed finds the migration under way, or ended, when it starts again:
//! it [follows](Order::is_new) it from the second step. What became of it is never taken from libvirt's answer where that is an error, but from
//! where the VM stands on both hosts ([`ending`]). A VM that stands still here is let run only if the other host has been asked and does not
//! have it.
//!
//! A disk that only this host has is copied to a file of the same path, which a move makes there, and removes again if the VM stays. Nothing else is
//! removed, on either host.

mod ending;
mod journey;
mod libvirts;
mod preflight;

use crate::host::libvirt::Hypervisor;
use crate::sample::MigrationBook;
use gnomon_common::wire::{Migration, OutcomeResult, VmId};
use journey::Journey;
use libvirts::Libvirts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// One VM to be moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Which.
    pub vm: VmId,
    /// Where to, and how.
    pub migration: Migration,
    /// What goes with it, for the agent of the other host.
    pub keepsake: Option<String>,
    /// How long ago the command came: its time-out counts from then.
    pub waited: Duration,
    /// What an earlier life of the agent has made on the other host, or was about to.
    pub copies: Option<CopyRecord>,
    /// An earlier life of the agent saw it run, or have run, on the other host.
    pub ran_there: bool,
    /// A command said to an earlier life of the agent that it is to be given up.
    pub given_up: bool,
    /// Whether it is to be begun. Else an earlier life of the agent may have begun it: it is followed to its end, never begun again.
    pub is_new: bool,
}

/// Files that a migration makes on the other host: none of them was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Their paths, the same as here.
    pub files: Vec<String>,
    /// So many of them, from the first on, are known to have been made. Nobody else's file is ever removed, so only these are.
    #[serde(default)]
    pub made: usize,
    /// They are layers on images that the other host has.
    pub is_layered: bool,
    /// What was to be copied into them when it began, in bytes.
    pub bytes: u64,
}

/// What has become of an order. Times in it are yet to be filled in by who knows when the command came.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// It waits for [`Mover::recorded`]: so many of these are made, the others are about to be.
    Copies(CopyRecord),
    /// It was seen to run, or to have run, on the other host, and stands still here: to be written down, since that is not seen for ever.
    RanThere,
    /// For the time being: it goes on.
    Parked(OutcomeResult),
    /// Nothing more comes.
    Ended(OutcomeResult),
}

/// Moves VMs. No call blocks.
pub trait Mover: Send {
    /// Begins, or follows.
    fn begin(&mut self, order: Order) -> std::io::Result<()>;

    /// Whether one of this VM is under way.
    fn has(&self, vm: VmId) -> bool;

    /// Whether none is under way.
    fn is_idle(&self) -> bool;

    /// Gives up the one of this VM, if there is one.
    fn abort(&mut self, vm: VmId);

    /// What it is about to make on the other host has been written down.
    fn recorded(&mut self, vm: VmId);

    /// What came with this VM from another host has been taken over.
    fn forget_keepsake(&mut self, vm: VmId);

    /// What has become of those under way since it was asked last.
    fn news(&mut self) -> Vec<(VmId, News)>;
}

/// What does not change from one migration to the next.
#[derive(Clone, Debug)]
pub struct MoverConfig {
    /// This host's libvirt.
    pub uri: String,
    /// Left free on the target, in bytes.
    pub reserve_bytes: u64,
    /// See [`crate::config::MigrationConfig::shared_paths`].
    pub shared_paths: Vec<PathBuf>,
    /// See [`crate::config::MigrationConfig::copy_bytes_max`].
    pub copy_bytes_max: u64,
    /// Where progress is told.
    pub book: MigrationBook,
}

/// So long it may take to write something down.
const RECORD_MAX: Duration = Duration::from_secs(30);

/// Moves VMs by libvirt.
#[derive(Debug)]
pub struct LibvirtMover {
    config: Arc<MoverConfig>,
    under_way: BTreeMap<VmId, UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    abort: Arc<AtomicBool>,
    news: Receiver<News>,
    recorded: Sender<()>,
}

impl LibvirtMover {
    /// Connects to nothing yet.
    pub fn new(config: MoverConfig) -> Self {
        Self { config: Arc::new(config), under_way: BTreeMap::new() }
    }
}

impl Mover for LibvirtMover {
    fn begin(&mut self, order: Order) -> std::io::Result<()> {
        let (tell, news) = channel();
        let (recorded, written) = channel();
        let abort = Arc::new(AtomicBool::new(order.given_up));
        let (vm, config, asked) = (order.vm, Arc::clone(&self.config), Arc::clone(&abort));
        let begun = Instant::now();
        let run = move || {
            let sides = Libvirts::new(Arc::clone(&config), &order);
            let journey = Journey { order: &order, sides, asked, begun, book: &config.book, sent_storage_bytes: None };
            // Whoever does not listen any more is an agent that ends.
            let mut told = |news| drop(tell.send(news));
            let mut record = |copies: &CopyRecord| {
                tell.send(News::Copies(copies.clone())).is_ok() && written.recv_timeout(RECORD_MAX).is_ok()
            };
            let result = journey.run(&mut told, &mut record);
            config.book.forget(order.vm);
            let _ = tell.send(News::Ended(result));
        };
        std::thread::Builder::new().name("gnomon-migrate".to_owned()).spawn(run)?;
        self.under_way.insert(vm, UnderWay { abort, news, recorded });
        Ok(())
    }

    fn has(&self, vm: VmId) -> bool {
        self.under_way.contains_key(&vm)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    fn abort(&mut self, vm: VmId) {
        if let Some(under_way) = self.under_way.get(&vm) {
            under_way.abort.store(true, Ordering::Relaxed);
        }
    }

    fn recorded(&mut self, vm: VmId) {
        if let Some(under_way) = self.under_way.get(&vm) {
            // One that has ended meanwhile does not wait.
            let _ = under_way.recorded.send(());
        }
    }

    fn forget_keepsake(&mut self, vm: VmId) {
        let uri = self.config.uri.clone();
        let forget = move || {
            if let Err(error) = Hypervisor::open(&uri).and_then(|here| here.keep(vm, None)) {
                tracing::warn!(%vm, %error, "what came with it from another host stays in its metadata");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("gnomon-keepsake".to_owned()).spawn(forget) {
            tracing::warn!(%error, "no thread to change metadata");
        }
    }

    fn news(&mut self) -> Vec<(VmId, News)> {
        let mut all = Vec::new();
        self.under_way.retain(|vm, under_way| {
            loop {
                match under_way.news.try_recv() {
                    Ok(ended @ News::Ended(_)) => {
                        all.push((*vm, ended));
                        return false;
                    }
                    Ok(news) => all.push((*vm, news)),
                    Err(TryRecvError::Empty) => return true,
                    // The thread has panicked. The command stays under way in the ledger, and is followed anew.
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
        });
        all
    }
}
