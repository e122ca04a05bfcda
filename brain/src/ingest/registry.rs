//! Which agents are connected: one session per host, the newest wins.

use super::close::{CloseCode, Ending};
use super::metrics::IngestMetrics;
use crate::drive::{Dispatch, Event};
use gnomon_common::wire::{AgentEpoch, BrainMessage, Command, HostFacts, HostId};
use gnomon_core::Input;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio_util::sync::CancellationToken;

/// The sessions of one lease term.
pub struct Registry {
    agents_max: usize,
    metrics: IngestMetrics,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: BTreeMap<HostId, Session>,
    next: u64,
}

struct Session {
    number: u64,
    epoch: AgentEpoch,
    control: mpsc::Sender<BrainMessage>,
    replaced: CancellationToken,
}

/// A session's place in the registry.
#[derive(Debug)]
pub(super) struct Place {
    host: HostId,
    number: u64,
    /// Cancelled when a newer connection of the host takes over.
    pub(super) replaced: CancellationToken,
}

impl Registry {
    /// An empty one, for at most `agents_max` agents.
    pub fn new(agents_max: usize, metrics: IngestMetrics) -> Self {
        metrics.connected(0);
        Self { agents_max, metrics, table: Mutex::default() }
    }

    /// Takes the host's place, from an older session if need be, and tells the core in the same moment: so the core
    /// hears of ups and losses in the order in which they happen here.
    pub(super) fn enter(
        &self,
        host: &HostId,
        epoch: AgentEpoch,
        facts: HostFacts,
        control: mpsc::Sender<BrainMessage>,
        core: OwnedPermit<Event>,
    ) -> Result<Place, Ending> {
        let mut table = self.table();
        match table.sessions.get(host) {
            Some(older) if older.epoch > epoch => {
                return Err(Ending::new(
                    CloseCode::Busy,
                    format!(
                        "an agent of host {host} with the later epoch {} is connected (this one is {}); do two agents share a certificate?",
                        older.epoch.0, epoch.0
                    ),
                ));
            }
            Some(older) => older.replaced.cancel(),
            None if table.sessions.len() >= self.agents_max => {
                return Err(Ending::new(
                    CloseCode::Busy,
                    format!("{} agents are connected, the most this brain serves (listen.agents_max)", self.agents_max),
                ));
            }
            None => {}
        }
        table.next += 1;
        let number = table.next;
        let replaced = CancellationToken::new();
        table.sessions.insert(host.clone(), Session { number, epoch, control, replaced: replaced.clone() });
        self.metrics.connected(table.sessions.len());
        core.send(Event::Input(Input::HostUp { host: host.clone(), facts }));
        Ok(Place { host: host.clone(), number, replaced })
    }

    /// Gives the place back and tells the core that the host is lost, unless a newer session has it.
    pub(super) fn leave(&self, place: &Place, core: Option<OwnedPermit<Event>>) {
        let mut table = self.table();
        if table.sessions.get(&place.host).is_some_and(|session| session.number == place.number) {
            table.sessions.remove(&place.host);
            self.metrics.connected(table.sessions.len());
            if let Some(core) = core {
                core.send(Event::Input(Input::HostLost { host: place.host.clone() }));
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change above is complete in itself: a panic elsewhere cannot leave the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dispatch for Registry {
    fn dispatch(&self, host: &HostId, command: Command) -> bool {
        let table = self.table();
        let Some(session) = table.sessions.get(host) else { return false };
        session.control.try_send(BrainMessage::Command(command)).inspect_err(|_| self.metrics.reply_dropped()).is_ok()
    }
}
