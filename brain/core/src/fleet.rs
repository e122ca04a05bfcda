//! Hosts and VMs as reported.
//!
//! A VM is its UUID: its history survives renames and moves. It is where it was last reported running; it has vanished when a
//! complete report of its host lacks it. What it may use is what the host reports, whoever set it.

mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, HostFacts, HostId, HostWindow, Losses, Receiving, Sequence, VmId};

use crate::plan::balance::Prospect;
use crate::plan::contention::Contention;
use crate::plan::reaction::Reaction;
use crate::policy::Policy;
use crate::view::StuckView;

pub(crate) use vm::{Flight, Taught, Vm, believed_allocation, believed_cpu};

/// Vanished VMs whose history is kept, in case they come back: a migration that takes its time, a redefined domain.
const VANISHED_VMS_MAX: usize = 1000;

/// A host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) facts: HostFacts,
    pub(crate) connected: bool,
    /// When it was connected last.
    pub(crate) up_since: Timestamp,
    pub(crate) latest: Option<(AgentEpoch, Sequence)>,
    pub(crate) last_window: Option<Timestamp>,
    pub(crate) window: Option<HostWindow>,
    pub(crate) losses: Losses,
    pub(crate) vms: BTreeSet<VmId>,
    /// VMs that it is receiving.
    pub(crate) arriving: BTreeSet<VmId>,
    /// VMs that have gone elsewhere, and that it has told of as running ever since: it is late, and does not take them back.
    pub(crate) ghosts: BTreeSet<VmId>,
    /// What its VMs will take together, as of its latest report.
    pub(crate) prospect: Option<Prospect>,
    /// Why none of its VMs went when one had to, as found last.
    pub(crate) stuck: Option<StuckView>,
    /// What its resizes have taken lately.
    pub(crate) reaction: Reaction,
    /// How much VMs wait for its CPUs.
    pub(crate) contention: Contention,
}

impl Host {
    /// Where it takes copies of disks that are sent to it, if it does.
    pub(crate) fn receives(&self) -> Option<&Receiving> {
        self.facts.shadows.as_ref()?.receives.as_deref()
    }

    pub(crate) fn new(facts: HostFacts) -> Self {
        Self {
            facts,
            connected: false,
            up_since: Timestamp::default(),
            latest: None,
            last_window: None,
            window: None,
            losses: Losses::default(),
            vms: BTreeSet::new(),
            arriving: BTreeSet::new(),
            ghosts: BTreeSet::new(),
            prospect: None,
            stuck: None,
            reaction: Reaction::default(),
            contention: Contention::default(),
        }
    }

    /// How long before a demand a resize has to be decided here.
    pub(crate) fn lead(&self, policy: &Policy) -> Duration {
        Duration::from_millis(policy.cpu.lead_ms) + self.reaction.expected()
    }
}

/// Everything that was reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) hosts: BTreeMap<HostId, Host>,
    pub(crate) vms: BTreeMap<VmId, Vm>,
    vanished: BTreeSet<(Timestamp, VmId)>,
}

impl Fleet {
    /// Puts a VM on a host (from another one, if need be).
    pub(crate) fn place(&mut self, vm: VmId, host: &HostId) {
        let Some(entry) = self.vms.get_mut(&vm) else { return };
        entry.left = None;
        if let Some(at) = entry.vanished.take() {
            self.vanished.remove(&(at, vm));
        }
        if let Some(before) = entry.host.replace(host.clone())
            && let Some(before) = self.hosts.get_mut(&before)
        {
            before.vms.remove(&vm);
            before.ghosts.insert(vm);
        }
        if let Some(host) = self.hosts.get_mut(host) {
            host.ghosts.remove(&vm);
            host.vms.insert(vm);
        }
    }

    /// Notes that a VM is nowhere any more; forgets the one that vanished longest ago when there are too many, and returns that.
    pub(crate) fn vanish(&mut self, vm: VmId, at: Timestamp) -> Option<Vm> {
        let entry = self.vms.get_mut(&vm)?;
        if let Some(host) = entry.host.take() {
            if let Some(host) = self.hosts.get_mut(&host) {
                host.vms.remove(&vm);
            }
            entry.left = Some(host);
        }
        entry.vanished = Some(at);
        self.vanished.insert((at, vm));
        if self.vanished.len() <= VANISHED_VMS_MAX {
            return None;
        }
        self.vanished.pop_first().and_then(|(_, oldest)| self.vms.remove(&oldest))
    }

    /// VMs on any host, by id.
    pub(crate) fn present(&self) -> impl Iterator<Item = (VmId, &Vm, &HostId)> {
        self.vms.iter().filter_map(|(&id, vm)| vm.host.as_ref().map(|host| (id, vm, host)))
    }
}
