//! What is read of KVM, once a window.

use super::Reader;
use crate::reading::ExitReading;

impl Reader {
    /// Drains the exits probe; nothing where there is none, or it is shed.
    pub(super) fn drain_exits(&mut self) -> ExitReading {
        match self.sources.exits.as_mut().map(|probe| probe.drain()) {
            Some(Ok(reading)) => reading.unwrap_or_default(),
            Some(Err(error)) => {
                self.metrics.exit_failures.inc();
                tracing::warn!(%error, "no reading of exits in this window");
                ExitReading::new()
            }
            None => ExitReading::new(),
        }
    }
}
