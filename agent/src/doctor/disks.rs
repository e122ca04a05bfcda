//! The block probe, loaded and made to count.

use super::Check;
use crate::probe::BlockProbe;
use crate::self_test::{self, Requests, Uncounted};
use std::path::Path;

/// Tries it with a file in `state_dir`, where there is one.
pub(super) fn examine(state_dir: Option<&Path>) -> Check {
    let (signal, source) = ("disk I/O", "eBPF, BTF tracepoints");
    match attempt(state_dir) {
        Ok(found) => {
            let told = "bytes, operations, latencies and queue depth by VM and disk";
            Check::ok(signal, source, format!("{told}; {}", in_words(&found)))
        }
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}

fn attempt(state_dir: Option<&Path>) -> Result<Requests, Uncounted> {
    let mut probe = BlockProbe::load()?;
    match state_dir {
        Some(dir) => self_test::disks(&mut probe, dir),
        None => Ok(Requests::NotProvoked("no state directory is known".to_owned())),
    }
}

fn in_words(found: &Requests) -> String {
    match found {
        Requests::Attributed => "counted a block that this process wrote".to_owned(),
        Requests::Unattributed => "counted a block that this process wrote, but not as its own".to_owned(),
        Requests::NotProvoked(why) => format!("not tried: {why}"),
    }
}
