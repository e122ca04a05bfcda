//! Moves VMs to other hosts, each on a thread of its own: a migration takes as long as the memory takes over the link, and nothing else waits
//! for it.
//!
//! ```text
//! checks (both hosts are asked, nothing is done) --no--> Immovable
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

mod ending;
mod journey;
mod preflight;

use crate::host::libvirt::Hypervisor;
use crate::sample::MigrationBook;
use gnomon_common::wire::{Migration, OutcomeResult, VmId};
use journey::{Journey, Libvirts};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
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
    /// Whether it is to be begun. Else an earlier life of the agent may have begun it: it is followed to its end, never begun again.
    pub is_new: bool,
}

/// What has become of an order. Times in it are yet to be filled in by who knows when the command came.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
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
    /// Where progress is told.
    pub book: MigrationBook,
}

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
        let abort = Arc::new(AtomicBool::new(false));
        let (vm, config, asked) = (order.vm, Arc::clone(&self.config), Arc::clone(&abort));
        let begun = Instant::now();
        let run = move || {
            let sides = Libvirts::new(Arc::clone(&config), &order);
            let result = Journey { order: &order, sides, asked, begun, book: &config.book }.run(&mut |news| {
                // Whoever does not listen any more is an agent that ends.
                let _ = tell.send(News::Parked(news));
            });
            config.book.forget(order.vm);
            let _ = tell.send(News::Ended(result));
        };
        std::thread::Builder::new().name("gnomon-migrate".to_owned()).spawn(run)?;
        self.under_way.insert(vm, UnderWay { abort, news });
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
                    Ok(parked) => all.push((*vm, parked)),
                    Err(TryRecvError::Empty) => return true,
                    // The thread has panicked. The command stays under way in the ledger, and is followed anew.
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
        });
        all
    }
}
