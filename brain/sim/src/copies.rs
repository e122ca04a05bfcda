//! Copies of VMs on a host: those that are prepared to take over, and what is left of VMs that have gone.

use gnomon_common::wire::{Command, OutcomeResult, RefusedCommand, VmId, VmState, VmWindow};

use crate::agent::Agent;
use crate::vm::SimVm;

/// A rule that an agent of this world may neglect, so that it shows what the rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lapse {
    /// Nothing is obeyed that is older than what was obeyed before.
    Fence,
    /// No VM is sent to a host that has a copy of it already.
    AlreadyThere,
    /// A VM of which it cannot be told whether the other host runs it stands still.
    StandsStill,
}

impl Lapse {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fence, Self::AlreadyThere, Self::StandsStill];
}

impl Agent {
    /// Judges a command to move a VM; a good one makes it leave. Returns the copy that is to be prepared on the other host.
    pub(crate) fn let_go(&mut self, command: &Command, waited_ms: u64) -> Result<SimVm, OutcomeResult> {
        self.judge(command, waited_ms).map_err(OutcomeResult::Refused)?;
        if self.facts.dry_run {
            return Err(OutcomeResult::DryRun);
        }
        self.fences.insert(command.vm, command.fence);
        let vm = self.vms.iter_mut().find(|vm| vm.id == command.vm);
        let vm = vm.ok_or(OutcomeResult::Refused(RefusedCommand::UnknownVm))?;
        vm.leaving = Some(command.id);
        Ok(vm.copied())
    }

    /// Whether there is a copy of a VM, in whatever state.
    pub(crate) fn has_copy(&self, vm: VmId) -> bool {
        self.vms.iter().any(|there| there.id == vm) || self.arriving.contains_key(&vm) || self.left.contains_key(&vm)
    }

    /// Whether a VM runs here.
    pub(crate) fn runs(&self, vm: VmId) -> bool {
        self.alive && self.vms.iter().any(|there| there.id == vm && !there.stands)
    }

    /// Takes a VM over from another host: it runs here from now on. Whoever starts it by its identity starts every copy that has it.
    pub(crate) fn take_over(&mut self, vm: SimVm) {
        self.arriving.remove(&vm.id);
        self.vms.extend(self.left.remove(&vm.id));
        self.vms.push(vm);
    }

    /// What windows tell of copies that do not run.
    pub(crate) fn copy_windows(&self) -> impl Iterator<Item = VmWindow> {
        let arriving = self.arriving.values().map(|(_, vm)| vm.mere_window(VmState::Arriving));
        arriving.chain(self.left.values().map(|vm| vm.mere_window(VmState::ShutOff)))
    }
}
