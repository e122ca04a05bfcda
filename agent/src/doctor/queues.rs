//! The queue probe, loaded and made to count.

use super::Check;
use crate::probe::QueueProbe;
use crate::self_test::{self, Trial, Uncounted};

pub(super) fn examine() -> Check {
    let (signal, source) = ("network queues", "eBPF, BTF tracepoints");
    match attempt() {
        Ok(trial) => {
            let tried = trial.in_words("a packet of a connection of this process to itself");
            Check::ok(signal, source, format!("how long packets wait until their VM takes them; {tried}"))
        }
        Err(error) => Check::unavailable(signal, source, error.to_string())
            .enable("kernel 5.12 or later with BTF, and CAP_BPF and CAP_PERFMON, or root"),
    }
}

fn attempt() -> Result<Trial, Uncounted> {
    self_test::queues(&mut QueueProbe::load()?)
}
