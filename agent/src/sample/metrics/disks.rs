//! What VMs do on the host's disks, and what no VM is known to do there.

use super::labels::{HostDirectionLabel, VmLabel};
use super::{GaugeF64, show};
use gnomon_common::wire::{DiskRest, DiskWindow};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Default)]
pub(in crate::sample) struct DiskMetrics {
    read: Family<VmLabel, GaugeF64>,
    write: Family<VmLabel, GaugeF64>,
    operations: Family<VmLabel, GaugeF64>,
    queue: Family<VmLabel, GaugeF64>,
    rest_bytes: Family<HostDirectionLabel, GaugeF64>,
    rest_operations: Family<HostDirectionLabel, GaugeF64>,
    requests_missed: Gauge,
}

impl DiskMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        for (name, help, family) in [
            ("gnomon_agent_vm_disk_read_bytes_per_second", "Read from the host's disks in the last window", &self.read),
            (
                "gnomon_agent_vm_disk_write_bytes_per_second",
                "Written to the host's disks in the last window",
                &self.write,
            ),
            ("gnomon_agent_vm_disk_operations_per_second", "Reads and writes in the last window", &self.operations),
            ("gnomon_agent_vm_disk_queue_depth", "Mean number of requests under way in the last window", &self.queue),
        ] {
            r.register(name, help, family.clone());
        }
        r.register(
            "gnomon_agent_disk_rest_bytes_per_second",
            "Read from and written to the host's disks in the last window without being known to be a VM's; absent without the block probe",
            self.rest_bytes.clone(),
        );
        r.register(
            "gnomon_agent_disk_rest_operations_per_second",
            "Reads and writes of the host's disks in the last window that are not known to be a VM's; absent without the block probe",
            self.rest_operations.clone(),
        );
        r.register(
            "gnomon_agent_disk_requests_missed",
            "Requests of which it is not known whose they were or how long they took, since the block probe was loaded",
            self.requests_missed.clone(),
        );
    }

    pub(in crate::sample) fn vm(&self, vm: &VmLabel, disk: Option<&DiskWindow>) {
        let operations = |disk: &DiskWindow| disk.read.operations_per_s + disk.write.operations_per_s;
        show(&self.read, vm, disk.map(|disk| disk.read.bytes_per_s.mean));
        show(&self.write, vm, disk.map(|disk| disk.write.bytes_per_s.mean));
        show(&self.operations, vm, disk.map(operations));
        show(&self.queue, vm, disk.map(|disk| disk.queue_depth));
    }

    pub(in crate::sample) fn rest(&self, rest: Option<&DiskRest>) {
        let (read, write) = (HostDirectionLabel { direction: "read" }, HostDirectionLabel { direction: "write" });
        show(&self.rest_bytes, &read, rest.map(|rest| rest.read_bytes_per_s));
        show(&self.rest_bytes, &write, rest.map(|rest| rest.write_bytes_per_s));
        show(&self.rest_operations, &read, rest.map(|rest| rest.read_operations_per_s));
        show(&self.rest_operations, &write, rest.map(|rest| rest.write_operations_per_s));
    }

    pub(in crate::sample) fn missed(&self, requests: u64) {
        self.requests_missed.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }
}
