//! What tells the sampler's gauges apart.

use gnomon_common::wire::VmId;
use prometheus_client::encoding::EncodeLabelSet;

/// Which direction of which VM's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct DirectionLabel {
    pub(in crate::sample) vm: String,
    pub(in crate::sample) name: String,
    pub(in crate::sample) direction: &'static str,
}

/// Which direction of the host's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct HostDirectionLabel {
    pub(in crate::sample) direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct ReasonLabel {
    pub(in crate::sample) reason: &'static str,
}

/// Which VM a value is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct VmLabel {
    pub(in crate::sample) vm: String,
    pub(in crate::sample) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct DropLabel {
    pub(in crate::sample) reason: String,
}

/// Which VM's vCPUs left their guest, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct ExitLabel {
    pub(in crate::sample) vm: String,
    pub(in crate::sample) name: String,
    pub(in crate::sample) reason: &'static str,
}

/// Which VM waited, and for what: few, unlike the pairs of VMs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::sample) struct WaitLabel {
    pub(in crate::sample) vm: String,
    pub(in crate::sample) name: String,
    pub(in crate::sample) cause: &'static str,
}

impl WaitLabel {
    /// Its own quota, its own other threads, other VMs, tasks of the host.
    pub(in crate::sample) const CAUSES: [&str; 4] = ["quota", "own", "vm", "host"];

    pub(in crate::sample) fn new(vm: &VmLabel, cause: &'static str) -> Self {
        Self { vm: vm.vm.clone(), name: vm.name.clone(), cause }
    }
}

impl VmLabel {
    pub(in crate::sample) fn new(vm: VmId, name: &str) -> Self {
        Self { vm: vm.to_string(), name: name.to_owned() }
    }
}
