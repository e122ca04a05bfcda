//! The memory probe, loaded and read.

use super::Check;
use crate::probe::MemoryProbe;

pub(super) fn examine() -> Check {
    let (signal, source) = ("memory, reclaim", "eBPF, BTF tracepoints");
    match MemoryProbe::load().and_then(|mut probe| probe.drain().map(|_| probe)) {
        Ok(probe) if probe.sees_limits() => {
            Check::ok(signal, source, "time that a VM's threads make room for what they ask for")
        }
        Ok(_) => Check::degraded(signal, source, "what the host is short of, not what a control group's limit costs")
            .enable("a kernel with CONFIG_MEMCG"),
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}
