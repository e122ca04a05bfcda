//! The drop probe, loaded and read.

use super::Check;
use crate::probe::DropProbe;

pub(super) fn examine() -> Check {
    let (signal, source) = ("network drops", "eBPF, a BTF tracepoint");
    match DropProbe::load().and_then(|mut probe| probe.drain()) {
        Ok(_) => Check::ok(signal, source, "packets dropped by device and reason"),
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("kernel 5.17 or later with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}
