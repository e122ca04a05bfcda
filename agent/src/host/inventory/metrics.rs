//! What the inventory tells about itself.

use super::memory::Balloon;
use gnomon_common::wire::VmState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

/// The inventory's metrics; clones share their values.
#[derive(Clone, Debug, Default)]
pub struct InventoryMetrics {
    surveys: Counter,
    survey_failures: Counter,
    connections: Counter,
    pub(super) events_dropped: Counter,
    pub(super) deadlines_missed: Counter,
    domains: Family<StateLabel, Gauge>,
    threads: Family<RoleLabel, Gauge>,
    unlocated: Gauge,
    pub(super) memory_failures: Counter,
    balloons: Family<BalloonLabel, Gauge>,
    polling_cores: Family<ProcessLabel, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BalloonLabel {
    balloon: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProcessLabel {
    process: &'static str,
}

const STATES: [VmState; 6] =
    [VmState::Running, VmState::Paused, VmState::Arriving, VmState::ShutOff, VmState::Crashed, VmState::Other];

fn state_name(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Arriving => "arriving",
        VmState::ShutOff => "shut_off",
        VmState::Crashed => "crashed",
        VmState::Other => "other",
    }
}

impl InventoryMetrics {
    /// Registers them, with their full names.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register(
            "gnomon_agent_inventory_surveys",
            "Surveys of libvirt's domains that succeeded",
            self.surveys.clone(),
        );
        r.register(
            "gnomon_agent_inventory_survey_failures",
            "Surveys that failed: libvirt was down or refused",
            self.survey_failures.clone(),
        );
        r.register("gnomon_agent_libvirt_connections", "Connections to libvirt opened", self.connections.clone());
        r.register(
            "gnomon_agent_inventory_events_dropped",
            "Lifecycle events dropped because the surveyor was too far behind",
            self.events_dropped.clone(),
        );
        r.register(
            "gnomon_agent_inventory_deadlines_missed",
            "Times libvirt was silent for longer than the deadline",
            self.deadlines_missed.clone(),
        );
        r.register("gnomon_agent_vms", "Domains known to libvirt, by state", self.domains.clone());
        r.register("gnomon_agent_vm_threads", "Threads of all VMs, by role", self.threads.clone());
        r.register(
            "gnomon_agent_vms_unlocated",
            "Running VMs whose QEMU process could not be told for sure: they are not measured",
            self.unlocated.clone(),
        );
        r.register(
            "gnomon_agent_memory_statistics_failures",
            "Looks at a VM's memory statistics that failed",
            self.memory_failures.clone(),
        );
        r.register(
            "gnomon_agent_vm_balloons",
            "Active VMs by what is known of their balloon: movable, silent (no driver answers), absent, unknown",
            self.balloons.clone(),
        );
        r.register(
            "gnomon_agent_polling_cores",
            "CPU that the agent's surveys and questions for memory statistics cause, in cores, in the last minute: libvirtd as a whole, and the main threads of all QEMUs, each while it is asked and less what it uses when it is not; absent where that cannot be read",
            self.polling_cores.clone(),
        );
    }

    /// What a process spends on answering, in cores; `None` where that is not known.
    pub(super) fn answering(&self, process: &'static str, cores: Option<f64>) {
        let label = ProcessLabel { process };
        match cores {
            // A mean of little within the noise may come out below nothing.
            Some(cores) => drop(self.polling_cores.get_or_create(&label).set(cores.max(0.0))),
            None => drop(self.polling_cores.remove(&label)),
        }
    }

    pub(super) fn balloons(&self, balloons: impl Iterator<Item = Balloon>) {
        let mut counts = BTreeMap::from(["unknown", "absent", "silent", "movable"].map(|name| (name, 0_i64)));
        for balloon in balloons {
            *counts.entry(balloon.name()).or_default() += 1;
        }
        for (balloon, count) in counts {
            self.balloons.get_or_create(&BalloonLabel { balloon }).set(count);
        }
    }

    pub(super) fn survey_failed(&self) {
        self.survey_failures.inc();
    }

    pub(super) fn surveyed(&self, vms: &[super::VmFacts]) {
        self.surveys.inc();
        for state in STATES {
            let count = vms.iter().filter(|facts| facts.state == state).count();
            self.domains.get_or_create(&StateLabel { state: state_name(state) }).set(signed(count));
        }
        let mut threads: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (role, count) in vms.iter().filter_map(|facts| facts.process.as_ref()).flat_map(|process| process.roles()) {
            *threads.entry(role).or_default() += count;
        }
        for role in ["vcpu", "iothread", "vhost", "emulator", "worker"] {
            let count = threads.get(role).copied().unwrap_or(0);
            self.threads.get_or_create(&RoleLabel { role }).set(signed(count));
        }
        let unlocated = vms.iter().filter(|facts| facts.state == VmState::Running && facts.process.is_none()).count();
        self.unlocated.set(signed(unlocated));
    }

    pub(super) fn connected(&self, opened: u64) {
        self.connections.inc_by(opened.saturating_sub(self.connections.get()));
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
