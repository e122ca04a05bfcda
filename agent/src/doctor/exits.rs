//! The exits probe, loaded and read.

use super::Check;
use crate::probe::ExitProbe;

pub(super) fn examine() -> Check {
    let (signal, source) = ("KVM exits", "eBPF, kvm_exit and kvm_entry");
    match ExitProbe::load().and_then(|mut probe| probe.drain()) {
        Ok(_) => Check::ok(signal, source, "exits by reason and time away from the guest, of VMs that run under KVM"),
        Err(error) => Check::unavailable(signal, source, error.to_string()).enable(
            "modprobe kvm_intel or kvm_amd, tracefs, and CAP_BPF and CAP_PERFMON, or root; emulated VMs have no exits",
        ),
    }
}
