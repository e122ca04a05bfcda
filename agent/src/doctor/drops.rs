//! The drop probe, loaded and made to count.

use super::Check;
use crate::probe::DropProbe;
use crate::self_test::{self, Trial, Uncounted};

pub(super) fn examine() -> Check {
    let (signal, source) = ("network drops", "eBPF, a BTF tracepoint");
    match attempt() {
        Ok(trial) => {
            let tried = trial.in_words("a packet that this process sent to nobody");
            Check::ok(signal, source, format!("packets dropped by device and reason; {tried}"))
        }
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("kernel 5.17 or later with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}

fn attempt() -> Result<Trial, Uncounted> {
    self_test::drops(&mut DropProbe::load()?)
}
