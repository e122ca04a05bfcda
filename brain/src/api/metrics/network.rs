//! Gauges of what goes through VMs' network interfaces, all of a VM together.

use super::{Gauges, Vm, VmGauges, VmQuantile, family, quantiles};
use gnomon_common::wire::{InterfaceWindow, LatencyHistogram, Traffic};
use prometheus_client::registry::Registry;

/// All of them.
pub(super) struct NetworkGauges {
    received: VmGauges,
    sent: VmGauges,
    wait: Gauges<VmQuantile>,
}

impl NetworkGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            received: family(
                registry,
                "gnomon_vm_network_received_bytes_per_second",
                "Traffic into the VM in the latest window, all its interfaces together",
            ),
            sent: family(
                registry,
                "gnomon_vm_network_sent_bytes_per_second",
                "Traffic out of the VM in the latest window, all its interfaces together",
            ),
            wait: family(
                registry,
                "gnomon_vm_network_wait_seconds",
                "What a share of the packets into the VM waited no longer than until it took them, of those timed in the latest window, to a power of two; absent where none was",
            ),
        }
    }

    /// Shows a VM's latest window; nothing of one without interfaces.
    pub(super) fn show(&self, vm: &Vm, interfaces: &[InterfaceWindow]) {
        if interfaces.is_empty() {
            return;
        }
        let sum = |of: fn(&InterfaceWindow) -> &Traffic| -> f64 {
            interfaces.iter().map(|interface| of(interface).bytes_per_s.mean).sum()
        };
        self.received.get_or_create(vm).set(sum(|interface| &interface.received));
        self.sent.get_or_create(vm).set(sum(|interface| &interface.sent));
        let mut timed = LatencyHistogram::default();
        interfaces.iter().filter_map(|interface| interface.queue.as_ref()).for_each(|queue| timed.add(&queue.waits));
        for (quantile, seconds) in quantiles(&timed) {
            self.wait.get_or_create(&VmQuantile { vm: vm.clone(), quantile }).set(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::QueueWindow;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn a_vms_interfaces_are_told_together() {
        let mut registry = Registry::default();
        let gauges = NetworkGauges::register(&mut registry);
        let interface = |bucket: usize, packets: u32| {
            let mut queue = QueueWindow::default();
            queue.waits.0[bucket] = packets;
            let mut interface = InterfaceWindow { queue: Some(queue), ..InterfaceWindow::default() };
            interface.received.bytes_per_s.mean = 10.0;
            interface
        };
        let vm = |name: &str| Vm { vm: name.to_owned(), name: name.to_owned(), host: "h1".to_owned() };
        gauges.show(&vm("busy"), &[interface(0, 90), interface(9, 10), InterfaceWindow::default()]);
        gauges.show(&vm("cut-off"), &[]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str, more: &str| -> Option<f64> {
            let line = format!("gnomon_vm_network_{name}{{vm=\"busy\",name=\"busy\",host=\"h1\"{more}}} ");
            text.lines().find_map(|told| told.strip_prefix(&line)?.parse().ok())
        };
        assert_eq!(value("received_bytes_per_second", ""), Some(20.0));
        assert_eq!(value("wait_seconds", ",quantile=\"0.5\""), Some(0.002_048 / 1e3), "{text}");
        assert_eq!(value("wait_seconds", ",quantile=\"0.99\""), Some(1.048_576 / 1e3), "{text}");
        assert!(!text.contains("cut-off"), "{text}");
    }
}
