//! What each order does, step by step. Every step may be the last before the agent is killed.

use super::copies::Copies;
use super::definition::{self, PACER_SOCKET, Place};
use super::files::Files;
use super::host::{Here, is_isolated};
use super::image::abandon;
use super::kept::Busy;
use super::received::Received;
use super::snag::{Snag, in_time};
use super::{Pacing, ShadowerConfig, Task};
use crate::host::libvirt::{FoundShadow, HypervisorError, ShadowDomain};
use gnomon_common::wire::{
    Action, Base, OutcomeResult, Profile, RefusedCommand, ShadowDone, ShadowOrder, ShadowSize, ShadowSpec,
    Unshadowable, VmId,
};
use std::collections::BTreeSet;
use std::time::Instant;

/// Carries orders out on a host.
pub(super) struct Orders<H> {
    here: H,
    config: ShadowerConfig,
    files: Files,
    /// Copies of this host's VMs' disks; `None` where none are made.
    copies: Option<Copies>,
    /// Copies that other hosts have sent; `None` where none are taken.
    received: Option<Received>,
    /// What is done beside these orders.
    busy: Busy,
    pacing: Option<Box<dyn Pacing>>,
}

impl<H: Here> Orders<H> {
    pub(super) fn new(here: H, config: ShadowerConfig, busy: Busy, pacing: Option<Box<dyn Pacing>>) -> Self {
        let (files, copies) = (Files::new(config.shadow.clone()), Copies::new(&config.shadow, &config.host));
        let received = Received::new(&config.shadow);
        Self { here, files, copies, received, config, busy, pacing }
    }

    /// Carries one out that was begun then, and says what came of it.
    pub(super) fn carry_out(&mut self, task: &Task, begun: Instant) -> OutcomeResult {
        let vm = task.command.vm;
        let done = match &task.command.action {
            Action::Describe => return self.describe(vm),
            Action::Shadow(ShadowOrder::Copy(spec)) => self.copy(task, spec, begun),
            Action::Shadow(ShadowOrder::Start) => self.start(task, begun),
            Action::Shadow(ShadowOrder::Pace(profile)) => self.pace(task, profile, begun),
            Action::Shadow(ShadowOrder::Retire) => self.retire(vm),
            Action::Shadow(ShadowOrder::Resize(size)) => self.resize(task, size, begun),
            _ => Err(Snag::Never("it is no order about a shadow".to_owned())),
        };
        done.map_or_else(OutcomeResult::from, OutcomeResult::Shadow)
    }

    fn describe(&mut self, vm: VmId) -> OutcomeResult {
        match self.here.describe(vm) {
            Ok(Ok(mut blueprint)) => {
                if self.copies.is_none() {
                    let copyable = blueprint.disks.iter_mut().filter(|disk| disk.base == Base::Copyable);
                    copyable.for_each(|disk| disk.base = Base::None);
                }
                OutcomeResult::Described(Box::new(blueprint))
            }
            Ok(Err(why)) => OutcomeResult::Unshadowable(why),
            Err(HypervisorError::NoSuchDomain(_)) => OutcomeResult::Refused(RefusedCommand::UnknownVm),
            Err(error) => Snag::from(error).into(),
        }
    }

    fn copy(&mut self, task: &Task, spec: &ShadowSpec, begun: Instant) -> Result<ShadowDone, Snag> {
        let vm = task.command.vm;
        match self.here.find(vm)? {
            // It may have been resized since, by an order that is not to hold.
            FoundShadow::Shadow { shadow, is_active } if shadow.of == spec.of => {
                return self.fit(task, &shadow, is_active, &spec.size, begun).map(|()| copied());
            }
            FoundShadow::Absent if vm != spec.of => {}
            _ => return Err(Unshadowable::Taken.into()),
        }
        if let Err(late) = in_time(task, begun) {
            // What an earlier life of the agent has begun.
            self.files.remove(vm)?;
            return Err(late);
        }
        let name = definition::name(&spec.blueprint);
        if self.here.has_name(&name)? {
            return Err(Unshadowable::Taken.into());
        }
        let (folder, shares) = (self.files.folder(vm), self.here.shares(spec.size.cpu_weight));
        let created = i64::try_from(task.at.unix_ms()).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let created = created.unwrap_or_default().to_string();
        let place = Place { folder: &folder, shares, created, policy: &task.command.reason };
        let xml = definition::xml(vm, spec, &place)?;
        self.files.check(vm, &spec.blueprint)?;
        self.has_room(vm, &spec.size, spec.size.memory_bytes)?;
        let made = self.files.make(vm, &spec.blueprint).map_err(Snag::from);
        match made.and_then(|()| Ok(self.here.define(&xml)?)).and_then(|()| self.read_back(vm, spec.of)) {
            Ok(()) => Ok(copied()),
            Err(error) => {
                self.undo(vm);
                Err(error)
            }
        }
    }

    /// Whether what libvirt made of the definition is seen to be a shadow: else it could not be retired.
    fn read_back(&mut self, vm: VmId, of: VmId) -> Result<(), Snag> {
        match self.here.find(vm)? {
            FoundShadow::Shadow { shadow, .. } if shadow.of == of => Ok(()),
            found => Err(Snag::Never(format!("libvirt made something else of the definition: {found:?}"))),
        }
    }

    /// Takes back what a failed copy has left.
    fn undo(&mut self, vm: VmId) {
        let removed = self.here.remove(vm).map_err(Snag::from).and_then(|_| Ok(self.files.remove(vm)?));
        if let Err(error) = removed {
            tracing::warn!(%vm, %error, "what a failed copy left is not removed yet");
        }
    }

    /// Whether the shadows of this host may have this one's share as well, and the host has the memory that it would take more.
    fn has_room(&mut self, vm: VmId, size: &ShadowSize, more_bytes: u64) -> Result<(), Snag> {
        let mut others = self.here.shadows()?;
        others.retain(|shadow| shadow.vm != vm);
        let ShadowerConfig { capacity_cores, memory_bytes, reserve_bytes, shadow: limits, .. } = &self.config;
        let no_room = |why: String| Err(Unshadowable::NoRoom(why).into());
        if others.len() >= usize::try_from(limits.shadows_max).unwrap_or(usize::MAX) {
            return no_room(format!("{} shadows are here, the most that it takes", others.len()));
        }
        // One whose quota somebody took away has no bound, so there is no room beside it.
        let cores: f64 = others.iter().map(|shadow| shadow.limits.quota_cores().unwrap_or(f64::INFINITY)).sum();
        let (cores, cores_max) = (cores + size.cpu_cores, capacity_cores * limits.share_max);
        if cores > cores_max {
            return no_room(format!("shadows would have {cores:.2} cores, and may have {cores_max:.2}"));
        }
        let bytes = others.iter().fold(size.memory_bytes, |sum, other| sum.saturating_add(other.limits.memory_bytes));
        let bytes_max = *memory_bytes as f64 * limits.share_max;
        if bytes as f64 > bytes_max {
            return no_room(format!("shadows would have {bytes} bytes of memory, and may have {bytes_max:.0}"));
        }
        let needed = more_bytes.saturating_add(*reserve_bytes);
        if more_bytes > 0 { self.has_memory(needed) } else { Ok(()) }
    }

    fn has_memory(&mut self, needed: u64) -> Result<(), Snag> {
        let available = self.here.available_bytes();
        if available < needed {
            let why = format!("{available} bytes of memory are available, and {needed} are needed with the reserve");
            return Err(Unshadowable::NoRoom(why).into());
        }
        Ok(())
    }

    fn start(&mut self, task: &Task, begun: Instant) -> Result<ShadowDone, Snag> {
        let vm = task.command.vm;
        let shadow = match self.here.find(vm)? {
            // One that an earlier life of the agent has started was not yet seen to be isolated.
            FoundShadow::Shadow { is_active: true, .. } => return self.started(vm),
            FoundShadow::Shadow { shadow, .. } => shadow,
            FoundShadow::Absent | FoundShadow::Other => return Err(Unshadowable::NoShadow.into()),
        };
        in_time(task, begun)?;
        self.has_memory(shadow.memory_bytes.saturating_add(self.config.reserve_bytes))?;
        self.is_isolated_now()?;
        self.here.start(vm)?;
        self.started(vm)
    }

    /// It runs: network and filter must be seen to lead nowhere, and its own port to be isolated as well, or it does not.
    fn started(&mut self, vm: VmId) -> Result<ShadowDone, Snag> {
        let isolated = self.is_isolated_now();
        if let Err(error) = &isolated {
            tracing::error!(%vm, %error, "a shadow is not seen to be isolated: it is retired");
            self.retire(vm)?;
        }
        isolated.map(|()| ShadowDone::Started { took_us: 0 })
    }

    fn is_isolated_now(&mut self) -> Result<(), Snag> {
        self.here.network()?.map_err(Unshadowable::NotIsolated)?;
        let shadows = self.here.shadows()?;
        let bridge = self.here.bridge()?;
        Ok(is_isolated(&bridge, &shadows).map_err(Unshadowable::NotIsolated)?)
    }

    fn pace(&mut self, task: &Task, profile: &Profile, begun: Instant) -> Result<ShadowDone, Snag> {
        let vm = task.command.vm;
        if !matches!(self.here.find(vm)?, FoundShadow::Shadow { is_active: true, .. }) {
            return Err(Unshadowable::NoShadow.into());
        }
        in_time(task, begun)?;
        let Some(pacing) = &mut self.pacing else {
            return Err(Snag::Never("this agent has no pacer link".to_owned()));
        };
        let socket = self.files.folder(vm).join(PACER_SOCKET);
        pacing.pace(vm, &socket, profile).map_err(|error| Snag::System(std::io::Error::other(error)))?;
        Ok(ShadowDone::Paced)
    }

    fn resize(&mut self, task: &Task, size: &ShadowSize, begun: Instant) -> Result<ShadowDone, Snag> {
        let FoundShadow::Shadow { shadow, is_active: true } = self.here.find(task.command.vm)? else {
            return Err(Unshadowable::NoShadow.into());
        };
        self.fit(task, &shadow, true, size, begun)?;
        Ok(ShadowDone::Resized { took_us: 0 })
    }

    /// Brings a shadow to a size that its definition has room for. What fails midway is taken back; what an agent that was killed has left half is
    /// done by the next order.
    fn fit(
        &mut self,
        task: &Task,
        shadow: &ShadowDomain,
        is_active: bool,
        size: &ShadowSize,
        begun: Instant,
    ) -> Result<(), Snag> {
        let (vm, has) = (shadow.vm, &shadow.limits);
        let to = has.at(size, self.here.shares(size.cpu_weight));
        if *has == to {
            return Ok(());
        }
        in_time(task, begun)?;
        if size.vcpus != shadow.vcpus || size.memory_bytes > shadow.memory_bytes {
            let ShadowDomain { vcpus, memory_bytes, .. } = shadow;
            let why = format!("it is defined with {vcpus} vCPUs and {memory_bytes} bytes of memory");
            return Err(Unshadowable::Unresizable(why).into());
        }
        self.has_room(vm, size, size.memory_bytes.saturating_sub(has.memory_bytes))?;
        let done = self.here.resize(vm, is_active, has, &to).map_err(Snag::from);
        let done = done.and_then(|()| if is_active { self.follows(vm, to.memory_bytes) } else { Ok(()) });
        if done.is_err()
            && let Err(error) = self.here.resize(vm, is_active, &to, has)
        {
            tracing::warn!(%vm, %error, "what a failed change of a shadow's size has left is not taken back yet");
        }
        done
    }

    /// Whether a guest's driver follows its balloon's target.
    fn follows(&mut self, vm: VmId, memory_bytes: u64) -> Result<(), Snag> {
        let left = self.here.ballooned(vm, memory_bytes)?;
        if left != memory_bytes {
            let why = format!("its balloon leaves {left} bytes to it, where {memory_bytes} were asked for");
            return Err(Unshadowable::Unresizable(why).into());
        }
        Ok(())
    }

    fn retire(&mut self, vm: VmId) -> Result<ShadowDone, Snag> {
        if !self.here.remove(vm)? {
            return Err(Unshadowable::NoShadow.into());
        }
        self.files.remove(vm)?;
        // One that runs here and is retired of this agent's own accord may be copied beside that.
        if let Some(copies) = self.copies.as_ref().filter(|_| !self.busy.has(vm)) {
            abandon(&mut self.here, copies, vm, None)?;
        }
        if let Some(received) = &self.received {
            received.remove(vm)?;
        }
        if self.here.shadows()?.is_empty()
            && let Err(error) = self.here.remove_network()
        {
            tracing::warn!(%error, "the shadows' network stays, though there is no shadow");
        }
        Ok(ShadowDone::Retired)
    }

    /// Removes files without a domain, and shadows without files. Returns how many of either.
    pub(super) fn tidy(&mut self, under_way: &BTreeSet<VmId>) -> u64 {
        self.try_tidy(under_way).unwrap_or_else(|error| {
            tracing::warn!(%error, "whether shadows have left something behind is not known");
            0
        })
    }

    fn try_tidy(&mut self, under_way: &BTreeSet<VmId>) -> Result<u64, Snag> {
        let folders = self.files.all()?;
        // A host that takes none and has none asks libvirt nothing of them.
        if folders.is_empty() && self.config.shadow.shadows_max == 0 {
            return self.tidy_copies(under_way);
        }
        let mut removed = self.tidy_copies(under_way)?;
        let busy = self.busy.clone();
        let is_spared = |vm: VmId| under_way.contains(&vm) || busy.has(vm);
        for vm in folders.into_iter().filter(|vm| !is_spared(*vm)) {
            if self.here.find(vm)? == FoundShadow::Absent {
                tracing::warn!(%vm, "a shadow's files without a shadow: removed");
                self.files.remove(vm)?;
                removed += 1;
            }
        }
        let shadows = self.here.shadows()?;
        for ShadowDomain { vm, of, .. } in shadows.into_iter().filter(|shadow| !is_spared(shadow.vm)) {
            if !self.files.has(vm)? {
                tracing::warn!(%vm, %of, "a shadow without its files: retired");
                self.retire(vm)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes copies that are half and that nobody makes, and what is left of those that were sent elsewhere. Whose shadow is gone the brain knows, which hears of all copies at each connection.
    fn tidy_copies(&mut self, under_way: &BTreeSet<VmId>) -> Result<u64, Snag> {
        let Some(copies) = &self.copies else { return Ok(0) };
        let mut removed = 0;
        for shadow in copies.all()? {
            if under_way.contains(&shadow) || self.busy.has(shadow) {
                continue;
            }
            if copies.is_sent(shadow)? {
                // The order that sent them is answered.
                copies.remove(shadow)?;
            } else if copies.note(shadow)?.is_none_or(|note| note.made.is_none()) {
                tracing::warn!(%shadow, "half copies of disks that nobody makes: removed");
                abandon(&mut self.here, copies, shadow, None)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// What is told of a shadow that is made: its disks are layers, so nothing was copied on this host.
fn copied() -> ShadowDone {
    ShadowDone::Copied { took_us: 0, copied_bytes: 0 }
}

#[cfg(test)]
mod tests;
