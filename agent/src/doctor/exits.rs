//! The exits probe, loaded and made to count.

use super::Check;
use crate::probe::ExitProbe;
use crate::self_test::{self, Trial, Uncounted};

pub(super) fn examine() -> Check {
    let (signal, source) = ("KVM exits", "eBPF, kvm_exit and kvm_entry");
    match attempt() {
        Ok(trial) => {
            let told = "exits by reason and time away from the guest, of VMs that run under KVM";
            Check::ok(signal, source, format!("{told}; {}", trial.in_words("the exits of a guest of this process's")))
        }
        Err(error) => Check::unavailable(signal, source, error.to_string()).enable(
            "modprobe kvm_intel or kvm_amd, tracefs, and CAP_BPF and CAP_PERFMON, or root; emulated VMs have no exits",
        ),
    }
}

fn attempt() -> Result<Trial, Uncounted> {
    self_test::exits(&mut ExitProbe::load()?)
}
