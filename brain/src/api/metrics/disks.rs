//! Gauges of what VMs do on their hosts' disks: of each VM, and of each disk that it used.

use super::{Gauges, Vm, VmGauges, VmQuantile, family, quantiles};
use gnomon_common::wire::{DiskFlow, DiskShare, DiskWindow, GuestDisk};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmDisk {
    #[prometheus(flatten)]
    vm: Vm,
    /// As on its host, in `/sys/block`; of the guest's own, its target.
    disk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiskQuantile {
    #[prometheus(flatten)]
    disk: VmDisk,
    quantile: &'static str,
}

/// All of them.
pub(super) struct DiskGauges {
    read_bytes: VmGauges,
    written_bytes: VmGauges,
    reads: VmGauges,
    writes: VmGauges,
    queue_depth: VmGauges,
    latency: Gauges<VmQuantile>,
    device_read_bytes: Gauges<VmDisk>,
    device_written_bytes: Gauges<VmDisk>,
    device_queue_depth: Gauges<VmDisk>,
    device_latency: Gauges<DiskQuantile>,
    device_latency_mean: Gauges<VmDisk>,
    guest_read_bytes: Gauges<VmDisk>,
    guest_written_bytes: Gauges<VmDisk>,
    guest_reads: Gauges<VmDisk>,
    guest_writes: Gauges<VmDisk>,
}

impl DiskGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            read_bytes: family(
                registry,
                "gnomon_vm_disk_read_bytes_per_second",
                "Read from all disks of the host for the VM in the latest window",
            ),
            written_bytes: family(
                registry,
                "gnomon_vm_disk_written_bytes_per_second",
                "Written to all disks of the host for the VM in the latest window",
            ),
            reads: family(
                registry,
                "gnomon_vm_disk_reads_per_second",
                "Read requests of the VM that the host's disks completed in the latest window",
            ),
            writes: family(
                registry,
                "gnomon_vm_disk_writes_per_second",
                "Write requests of the VM that the host's disks completed in the latest window",
            ),
            queue_depth: family(
                registry,
                "gnomon_vm_disk_queue_depth",
                "Requests of the VM under way in the latest window, on average, queued or at a disk",
            ),
            latency: family(
                registry,
                "gnomon_vm_disk_latency_seconds",
                "What a share of the VM's requests took no longer than at their disk in the latest window, to a power of two; absent without requests",
            ),
            device_read_bytes: family(
                registry,
                "gnomon_vm_disk_device_read_bytes_per_second",
                "Read from one disk of the host for the VM in the latest window",
            ),
            device_written_bytes: family(
                registry,
                "gnomon_vm_disk_device_written_bytes_per_second",
                "Written to one disk of the host for the VM in the latest window",
            ),
            device_queue_depth: family(
                registry,
                "gnomon_vm_disk_device_queue_depth",
                "Requests of the VM under way in the latest window, on average, queued for one disk or at it",
            ),
            device_latency: family(
                registry,
                "gnomon_vm_disk_device_latency_seconds",
                "What a share of the VM's requests took no longer than at this disk in the latest window, to a power of two; absent without requests",
            ),
            device_latency_mean: family(
                registry,
                "gnomon_vm_disk_device_latency_mean_seconds",
                "Mean time of the VM's requests at one disk in the latest window; absent without requests",
            ),
            guest_read_bytes: family(
                registry,
                "gnomon_vm_disk_guest_read_bytes_per_second",
                "Read by the guest from one of its disks behind the host's page cache, by QEMU's last two counts",
            ),
            guest_written_bytes: family(
                registry,
                "gnomon_vm_disk_guest_written_bytes_per_second",
                "Written by the guest to one of its disks behind the host's page cache, by QEMU's last two counts",
            ),
            guest_reads: family(
                registry,
                "gnomon_vm_disk_guest_reads_per_second",
                "Reads by the guest of one of its disks behind the host's page cache, by QEMU's last two counts",
            ),
            guest_writes: family(
                registry,
                "gnomon_vm_disk_guest_writes_per_second",
                "Writes by the guest to one of its disks behind the host's page cache, by QEMU's last two counts",
            ),
        }
    }

    /// Shows a VM's latest window.
    pub(super) fn show(&self, vm: &Vm, window: &DiskWindow) {
        let flows: [(&VmGauges, &VmGauges, &DiskFlow); 2] =
            [(&self.read_bytes, &self.reads, &window.read), (&self.written_bytes, &self.writes, &window.write)];
        for (bytes, requests, flow) in flows {
            bytes.get_or_create(vm).set(flow.bytes_per_s.mean);
            requests.get_or_create(vm).set(flow.operations_per_s);
        }
        self.queue_depth.get_or_create(vm).set(window.queue_depth);
        for (quantile, seconds) in quantiles(&window.latency) {
            self.latency.get_or_create(&VmQuantile { vm: vm.clone(), quantile }).set(seconds);
        }
        for share in &window.disks {
            self.show_disk(vm, share);
        }
        for disk in &window.guest {
            self.show_guest(vm, disk);
        }
    }

    fn show_guest(&self, vm: &Vm, disk: &GuestDisk) {
        let labels = VmDisk { vm: vm.clone(), disk: disk.target.clone() };
        self.guest_read_bytes.get_or_create(&labels).set(disk.read_bytes_per_s);
        self.guest_written_bytes.get_or_create(&labels).set(disk.write_bytes_per_s);
        self.guest_reads.get_or_create(&labels).set(disk.read_operations_per_s);
        self.guest_writes.get_or_create(&labels).set(disk.write_operations_per_s);
    }

    fn show_disk(&self, vm: &Vm, share: &DiskShare) {
        let labels = VmDisk { vm: vm.clone(), disk: share.name.clone() };
        self.device_read_bytes.get_or_create(&labels).set(share.read_bytes_per_s);
        self.device_written_bytes.get_or_create(&labels).set(share.write_bytes_per_s);
        self.device_queue_depth.get_or_create(&labels).set(share.queue_depth);
        if let Some(ms) = share.device_ms {
            self.device_latency_mean.get_or_create(&labels).set(ms / 1e3);
        }
        for (quantile, seconds) in quantiles(&share.latency) {
            self.device_latency.get_or_create(&DiskQuantile { disk: labels.clone(), quantile }).set(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{LatencyHistogram, MeanMax};
    use prometheus_client::encoding::text::encode;

    #[test]
    fn a_vms_disks_are_told_together_and_one_by_one_and_what_is_not_known_is_absent() {
        let mut latency = LatencyHistogram::default();
        (latency.0[0], latency.0[9]) = (96, 4);
        let flow = |bytes, operations_per_s| DiskFlow {
            bytes_per_s: MeanMax { mean: bytes, max: 2.0 * bytes },
            operations_per_s,
            ..DiskFlow::default()
        };
        let share = |name: &str, device_ms, latency| DiskShare {
            name: name.to_owned(),
            read_bytes_per_s: 4096.0,
            write_bytes_per_s: 512.0,
            queue_depth: 0.5,
            device_ms,
            latency,
        };
        let busy = DiskWindow {
            read: flow(8192.0, 2.0),
            write: flow(512.0, 1.0),
            queue_depth: 1.5,
            latency,
            process: None,
            disks: vec![share("sda", Some(2.5), latency), share("8:16", None, LatencyHistogram::default())],
            guest: vec![GuestDisk {
                target: "vda".to_owned(),
                read_bytes_per_s: 65_536.0,
                write_bytes_per_s: 16_384.0,
                read_operations_per_s: 8.0,
                write_operations_per_s: 4.0,
            }],
        };
        let vm = |name: &str| Vm { vm: "1".to_owned(), name: name.to_owned(), host: "a".to_owned() };
        let mut registry = Registry::default();
        let gauges = DiskGauges::register(&mut registry);
        gauges.show(&vm("busy"), &busy);
        gauges.show(&vm("idle"), &DiskWindow::default());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |metric: &str, vm: &str, rest: &str| -> Option<f64> {
            let line = format!("gnomon_vm_disk_{metric}{{vm=\"1\",name=\"{vm}\",host=\"a\"{rest}}} ");
            text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok())
        };
        let of_all = [
            "read_bytes_per_second",
            "written_bytes_per_second",
            "reads_per_second",
            "writes_per_second",
            "queue_depth",
        ];
        assert_eq!(of_all.map(|metric| value(metric, "busy", "")), [8192.0, 512.0, 2.0, 1.0, 1.5].map(Some), "{text}");
        assert_eq!(of_all.map(|metric| value(metric, "idle", "")), [Some(0.0); 5], "{text}");
        let quantile = |vm: &str, level: &str| value("latency_seconds", vm, &format!(",quantile=\"{level}\""));
        assert_eq!(
            ["0.5", "0.95", "0.99"].map(|level| quantile("busy", level)),
            [0.002_048, 0.002_048, 1.048_576].map(|ms| Some(ms / 1e3))
        );
        assert_eq!(quantile("idle", "0.5"), None);
        let of_one =
            |metric: &str, disk: &str| value(&format!("device_{metric}"), "busy", &format!(",disk=\"{disk}\""));
        let metrics = ["read_bytes_per_second", "written_bytes_per_second", "queue_depth", "latency_mean_seconds"];
        assert_eq!(metrics.map(|metric| of_one(metric, "sda")), [4096.0, 512.0, 0.5, 0.0025].map(Some), "{text}");
        assert_eq!(of_one("latency_mean_seconds", "8:16"), None, "nothing was timed");
        let of_one = |level: &str, disk: &str| {
            value("device_latency_seconds", "busy", &format!(",disk=\"{disk}\",quantile=\"{level}\""))
        };
        assert_eq!(["0.5", "0.99"].map(|level| of_one(level, "sda")), [0.002_048, 1.048_576].map(|ms| Some(ms / 1e3)));
        assert_eq!(of_one("0.5", "8:16"), None);
        let of_guest = |metric: &str, vm: &str| value(&format!("guest_{metric}_per_second"), vm, ",disk=\"vda\"");
        let metrics = ["read_bytes", "written_bytes", "reads", "writes"];
        assert_eq!(metrics.map(|metric| of_guest(metric, "busy")), [65_536.0, 16_384.0, 8.0, 4.0].map(Some), "{text}");
        assert_eq!(metrics.map(|metric| of_guest(metric, "idle")), [None; 4], "no page cache before its disks");
    }
}
