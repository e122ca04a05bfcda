//! The block probe, loaded and made to count.

use super::Check;
use crate::probe::BlockProbe;
use crate::self_test::{self, Trial, Uncounted};
use std::path::Path;

/// Tries it with a file in `state_dir`, where there is one.
pub(super) fn examine(state_dir: Option<&Path>) -> Check {
    let (signal, source) = ("disk I/O", "eBPF, BTF tracepoints");
    match attempt(state_dir) {
        Ok(found) => {
            let told = "bytes, operations, latencies and queue depth by VM and disk";
            Check::ok(signal, source, format!("{told}; {}", found.in_words("a block that this process wrote")))
        }
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}

fn attempt(state_dir: Option<&Path>) -> Result<Trial, Uncounted> {
    let mut probe = BlockProbe::load()?;
    match state_dir {
        Some(dir) => self_test::disks(&mut probe, dir),
        None => Ok(Trial::NotProvoked("no state directory is known".to_owned())),
    }
}
