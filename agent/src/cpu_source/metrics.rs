//! Which signals of CPU this agent has, and where they come from.

use gnomon_common::wire::CpuSource;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    signal: &'static str,
    source: &'static str,
}

/// `gnomon_agent_signal_available`.
#[derive(Clone, Debug, Default)]
pub struct SignalMetrics(Family<Labels, Gauge>);

impl SignalMetrics {
    /// Registers it.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "gnomon_agent_signal_available",
            "Whether a signal is measured on this host (1) or not (0), and by which source",
            metrics.0.clone(),
        );
        metrics
    }

    /// Shows what a source tells, in place of the one before it.
    pub fn show(&self, rung: CpuSource) {
        self.0.clear();
        let signals = [
            ("cpu_run", true),
            ("cpu_wait", rung.tells_waiting()),
            ("cpu_wait_histogram", rung.counts_events()),
            ("cpu_wakeups", rung.counts_events()),
            ("cpu_preemptions", rung.counts_events()),
        ];
        for (signal, told) in signals {
            self.0.get_or_create(&Labels { signal, source: rung.name() }).set(i64::from(told));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rung_does_not_tell_is_shown_as_unavailable() {
        let mut registry = Registry::default();
        let metrics = SignalMetrics::register(&mut registry);
        metrics.show(CpuSource::TaskStorage);
        metrics.show(CpuSource::Schedstat);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for (signal, value) in [("cpu_run", 1), ("cpu_wait", 1), ("cpu_wait_histogram", 0), ("cpu_preemptions", 0)] {
            let line = format!("gnomon_agent_signal_available{{signal=\"{signal}\",source=\"schedstat\"}} {value}");
            assert!(text.contains(&line), "no {line} in {text}");
        }
        assert!(!text.contains("task_storage"), "the source before it is still shown: {text}");
    }
}
