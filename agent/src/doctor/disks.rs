//! The block probe, loaded and read.

use super::Check;
use crate::probe::BlockProbe;

pub(super) fn examine() -> Check {
    let (signal, source) = ("disk I/O", "eBPF, BTF tracepoints");
    match BlockProbe::load().and_then(|mut probe| probe.drain()) {
        Ok(_) => Check::ok(signal, source, "bytes, operations, latencies and queue depth by VM and disk"),
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}
