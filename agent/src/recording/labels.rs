//! What a recording does not tell: names, which are replaced by labels that stay the same within it, and what is nobody's business.

use crate::reading::Culprit;
use crate::sample::Tick;
use gnomon_common::abi::sched::Command;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The labels given so far: kind and number.
#[derive(Debug)]
pub(super) struct Labels {
    keep_names: bool,
    given: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Labels {
    /// With `keep_names`, names of VMs, devices and commands are left as they are.
    pub(super) fn new(keep_names: bool) -> Self {
        Self { keep_names, given: BTreeMap::new() }
    }

    fn label(&mut self, kind: &'static str, name: &str) -> String {
        let of_kind = self.given.entry(kind).or_default();
        let next = of_kind.len() + 1;
        format!("{kind}{}", of_kind.entry(name.to_owned()).or_insert(next))
    }

    /// Takes out of a tick what a recording is not to have: always paths of control groups, in which VMs' names are, and devices that are no VM's.
    pub(super) fn clean(&mut self, tick: &mut Tick) {
        for (dir, _) in tick.cgroups.values_mut().flat_map(|reading| &mut reading.throttles) {
            *dir = Arc::from(Path::new(&self.label("group", &dir.to_string_lossy())));
        }
        if let Some((_, devices)) = &mut tick.network {
            let told: BTreeSet<&String> =
                tick.inventory.vms.iter().flat_map(|facts| &facts.interfaces).map(|device| &device.name).collect();
            devices.retain(|device, _| told.contains(device));
        }
        if !self.keep_names {
            self.replace_names(tick);
        }
    }

    fn replace_names(&mut self, tick: &mut Tick) {
        for facts in &mut Arc::make_mut(&mut tick.inventory).vms {
            // By its id, which is told: a VM that is renamed keeps its label.
            facts.name = self.label("vm", &facts.id.to_string());
            facts.interfaces.iter_mut().for_each(|device| device.name = self.label("net", &device.name));
        }
        if let Some((_, devices)) = &mut tick.network {
            *devices = self.relabelled(std::mem::take(devices));
        }
        if let Some(drops) = tick.window_end.as_mut().and_then(|end| end.drops.as_mut()) {
            drops.devices = self.relabelled(std::mem::take(&mut drops.devices));
        }
        if let Some(queues) = tick.window_end.as_mut().and_then(|end| end.queues.as_mut()) {
            queues.devices = self.relabelled(std::mem::take(&mut queues.devices));
        }
        for causes in tick.sched.iter_mut().flat_map(|reading| reading.culprits.values_mut()) {
            for (who, _) in &mut causes.culprits {
                if let Culprit::Task(command) = who {
                    *command = named(&self.label("task", &format!("{:?}", command.0)));
                }
            }
            causes.culprits.sort_by_key(|&(who, _)| who);
        }
    }

    fn relabelled<T>(&mut self, devices: BTreeMap<String, T>) -> BTreeMap<String, T> {
        devices.into_iter().map(|(device, value)| (self.label("net", &device), value)).collect()
    }
}

/// The command of that name, which is cut off at the kernel's 16 bytes.
fn named(name: &str) -> Command {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.as_bytes()).for_each(|(byte, of_name)| *byte = *of_name);
    let (first, second) = bytes.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    Command([word(first), word(second)])
}
