//! The memory probe, loaded and made to count.

use super::Check;
use crate::probe::MemoryProbe;
use crate::self_test::{self, Trial, Uncounted};
use std::path::Path;

pub(super) fn examine() -> Check {
    let (signal, source) = ("memory, reclaim", "eBPF, BTF tracepoints");
    match attempt() {
        Ok((true, trial)) => {
            let told = "time that a VM's threads make room for what they ask for";
            let tried = trial.in_words("a reclaim in a control group of this process's");
            Check::ok(signal, source, format!("{told}; {tried}"))
        }
        Ok((false, _)) => {
            Check::degraded(signal, source, "what the host is short of, not what a control group's limit costs")
                .enable("a kernel with CONFIG_MEMCG")
        }
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}

/// Whether it sees the limits of control groups, and what it counted.
fn attempt() -> Result<(bool, Trial), Uncounted> {
    let mut probe = MemoryProbe::load()?;
    let trial = self_test::reclaim(&mut probe, Path::new(self_test::CGROUP_ROOT))?;
    Ok((probe.sees_limits(), trial))
}
