//! The one state machine: inputs in, outputs out.

use crate::io::{Input, Output, Restored};
use crate::policy::Policy;
use crate::view::{Explanation, Forecast, HostView, VmView};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, VmId};

/// The whole of the brain's knowledge and judgement.
pub struct Core {}

impl Core {
    /// A core without knowledge. `term` is the brain's lease term, part of every command's id and fence; `seed` spreads fits in time.
    pub fn new(policy: Policy, seed: u64, term: u64) -> Self {
        let _ = (policy, seed, term);
        Self {}
    }

    /// Tells a new core what the store remembers; see [`Restored`] for the order.
    pub fn restore(&mut self, restored: Restored) {
        let _ = restored;
    }

    /// Takes one input. O(1) per VM in a report; never longer than a few microseconds per VM.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        let _ = (now, input);
    }

    /// Lets due time-outs happen (command expiry, planning ticks); call it when [`Core::poll_timeout`] is due.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// When [`Core::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// The next thing to do; call until `None` after every `handle*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        Policy::default()
    }

    /// Every known host, by name.
    pub fn hosts(&self) -> Vec<HostView> {
        Vec::new()
    }

    /// One host.
    pub fn host(&self, host: &HostId) -> Option<HostView> {
        let _ = host;
        None
    }

    /// Every known VM, by id.
    pub fn vms(&self) -> Vec<VmView> {
        Vec::new()
    }

    /// The VM with this id, or the one with this name if exactly one VM has it.
    pub fn find_vm(&self, id_or_name: &str) -> Option<VmId> {
        let _ = id_or_name;
        None
    }

    /// The forecast of a VM's CPU demand; `None` while there is too little history.
    pub fn forecast(&self, vm: VmId) -> Option<Forecast> {
        let _ = vm;
        None
    }

    /// Why a VM has the size it has.
    pub fn explain(&self, vm: VmId) -> Option<Explanation> {
        let _ = vm;
        None
    }
}
