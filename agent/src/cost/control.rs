//! Measures what the sources and the agent cost, shows it, and has done what the governor decides.

use super::budget::{Budget, Candidate, Governor, Verdict};
use super::timing::{Timed, Timing};
use super::{Costed, aside};
use crate::command::clock::wall_clock;
use crate::probe::{ProgramCost, give_back_memory};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// Time between two measurements, in milliseconds.
const MEASUREMENT_MS: u32 = 60_000;

type GaugeF64 = Gauge<f64, AtomicU64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProgram {
    program: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProbe {
    probe: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPart {
    part: &'static str,
}

#[derive(Default)]
struct Metrics {
    busy_cores: Family<ByProgram, GaugeF64>,
    run_seconds: Family<ByProgram, GaugeF64>,
    runs_per_second: Family<ByProgram, GaugeF64>,
    shed: Family<ByProbe, Gauge>,
    shed_since: Family<ByProbe, GaugeF64>,
    cost_cores: Family<ByPart, GaugeF64>,
    budget_cores: GaugeF64,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "gnomon_agent_probe_busy_cores",
            "CPU spent in an eBPF program, in cores, in the last measured sample of a minute; the kernel's timing is part of it",
            metrics.busy_cores.clone(),
        );
        registry.register(
            "gnomon_agent_probe_run_seconds",
            "Mean time of one run of an eBPF program, in the last measured sample of a minute",
            metrics.run_seconds.clone(),
        );
        registry.register(
            "gnomon_agent_probe_runs_per_second",
            "How often an eBPF program ran, in the last measured sample of a minute",
            metrics.runs_per_second.clone(),
        );
        registry.register(
            "gnomon_agent_probe_shed",
            "Whether a probe is given up to stay within the budget (1) or not (0)",
            metrics.shed.clone(),
        );
        registry.register(
            "gnomon_agent_probe_shed_timestamp_seconds",
            "When a probe was given up, in Unix time; absent while it is not",
            metrics.shed_since.clone(),
        );
        registry.register(
            "gnomon_agent_cost_cores",
            "What is compared with the budget, in cores: the agent's own CPU in the last minute, without what copies of disks take, and its eBPF programs in the measured sample of it",
            metrics.cost_cores.clone(),
        );
        registry.register(
            "gnomon_agent_cost_budget_cores",
            "What the agent and its eBPF programs may cost at the present load of the host, in cores",
            metrics.budget_cores.clone(),
        );
        metrics
    }

    /// Shows the programs of a source and returns what they cost, in cores.
    fn programs(&self, before: &[ProgramCost], after: &[ProgramCost], elapsed_s: f64) -> f64 {
        let mut cores = 0.0;
        // Loaded meanwhile is measured the next time.
        for (before, after) in before.iter().zip(after) {
            let label = ByProgram { program: after.program };
            let spent_s = after.run_ns.saturating_sub(before.run_ns) as f64 / 1e9;
            let runs = after.runs.saturating_sub(before.runs);
            self.busy_cores.get_or_create(&label).set(spent_s / elapsed_s);
            self.runs_per_second.get_or_create(&label).set(runs as f64 / elapsed_s);
            if runs > 0 {
                self.run_seconds.get_or_create(&label).set(spent_s / runs as f64);
            }
            cores += spent_s / elapsed_s;
        }
        cores
    }

    /// Shows what is compared with the budget; `None` where the kernel does not tell.
    fn cost(&self, agent_cores: f64, programs_cores: Option<f64>) {
        let (agent, programs) = (ByPart { part: "agent" }, ByPart { part: "programs" });
        self.cost_cores.get_or_create(&agent).set(agent_cores);
        match programs_cores {
            Some(cores) => drop(self.cost_cores.get_or_create(&programs).set(cores)),
            None => drop(self.cost_cores.remove(&programs)),
        }
    }

    /// Shows that a probe is given up since now, or is not.
    fn show_shed(&self, probe: &'static str, is_shed: bool) {
        let label = ByProbe { probe };
        self.shed.get_or_create(&label).set(i64::from(is_shed));
        if is_shed {
            self.shed_since.get_or_create(&label).set(wall_clock().unix_ms() as f64 / 1e3);
        } else {
            self.shed_since.remove(&label);
        }
    }

    /// Programs that are gone cost nothing that could be shown.
    fn forget(&self, programs: &[ProgramCost]) {
        for cost in programs {
            let label = ByProgram { program: cost.program };
            self.busy_cores.remove(&label);
            self.run_seconds.remove(&label);
            self.runs_per_second.remove(&label);
        }
    }
}

/// Keeps what measuring costs within the budget.
pub struct CostControl {
    governor: Governor,
    timing: Timing,
    metrics: Metrics,
    ticks: u64,
    ticks_per_measurement: u64,
    timed: Option<Measurement>,
    /// When the last measurement ended.
    since: Option<Totals>,
    /// What is given up: by its place in the order, what it is called.
    shed: BTreeMap<usize, &'static str>,
    /// Whether it was said that nothing is left to give up.
    excess_told: bool,
}

/// One sample in which programs are timed.
struct Measurement {
    timed: Timed,
    began: Instant,
    /// By source.
    before: Vec<Vec<ProgramCost>>,
}

/// CPU time used by now.
#[derive(Clone, Copy)]
struct Totals {
    taken: Instant,
    /// Without what is set aside.
    agent_s: f64,
    host_ns: u64,
}

impl Totals {
    fn now(host_ns: u64) -> Self {
        let agent = clock_gettime(ClockId::ProcessCPUTime);
        let agent_s = agent.tv_sec as f64 + agent.tv_nsec as f64 / 1e9 - aside::total().as_secs_f64();
        Self { taken: Instant::now(), agent_s, host_ns }
    }

    /// Cores used by the agent and by the whole host since `before`.
    fn cores_since(&self, before: &Self) -> (f64, f64) {
        let elapsed_s = (self.taken - before.taken).as_secs_f64();
        let host_s = self.host_ns.saturating_sub(before.host_ns) as f64 / 1e9;
        // What is set aside is counted a little late.
        ((self.agent_s - before.agent_s).max(0.0) / elapsed_s, host_s / elapsed_s)
    }
}

impl CostControl {
    /// Registers its metrics. It will be called every `sample_ms` milliseconds, and measures once a minute.
    pub fn register(budget: Budget, sample_ms: u32, registry: &mut Registry) -> Self {
        // A measurement takes two calls.
        let ticks_per_measurement = u64::from(MEASUREMENT_MS / sample_ms.max(1)).max(2);
        Self {
            governor: Governor::new(budget),
            timing: Timing::default(),
            metrics: Metrics::register(registry),
            ticks: 0,
            ticks_per_measurement,
            timed: None,
            since: None,
            shed: BTreeMap::new(),
            excess_told: false,
        }
    }

    /// What is given up now, first what goes first.
    pub fn shed(&self) -> impl Iterator<Item = &'static str> {
        self.shed.values().copied()
    }

    /// To be called once per sample, with all sources in the order in which they are to be given up, always the same ones, and the CPU time
    /// that the host has used by now, in nanoseconds.
    pub fn tick(&mut self, sources: &mut [&mut dyn Costed], host_ns: u64) {
        let at = self.ticks % self.ticks_per_measurement;
        self.ticks += 1;
        match at {
            0 => self.begin(sources),
            1 => self.conclude(sources, host_ns),
            _ => {}
        }
    }

    /// For one sample programs are timed.
    fn begin(&mut self, sources: &[&mut dyn Costed]) {
        let Some(timed) = self.timing.begin() else { return };
        let before = sources.iter().map(|source| programs(&**source)).collect();
        self.timed = Some(Measurement { timed, began: Instant::now(), before });
    }

    fn conclude(&mut self, sources: &mut [&mut dyn Costed], host_ns: u64) {
        let order = self.candidates(sources);
        let now = Totals::now(host_ns);
        // The first time there is nothing to compare with, and what starting took is no cost of measuring.
        let Some(before) = self.since.replace(now) else { return };
        let (agent_cores, busy_cores) = now.cores_since(&before);
        // Of all or of none: they are timed together.
        let programs_cores: Option<f64> = order.iter().map(|candidate| candidate.programs_cores).sum();
        self.metrics.cost(agent_cores, programs_cores);
        self.metrics.budget_cores.set(self.governor.allowed_cores(busy_cores));
        let verdict = self.governor.judge(agent_cores + programs_cores.unwrap_or(0.0), busy_cores, &order);
        self.execute(verdict, sources);
        if verdict != Verdict::Exceeded {
            self.excess_told = false;
        } else if !std::mem::replace(&mut self.excess_told, true) {
            tracing::warn!(
                agent_cores,
                ?programs_cores,
                "the agent costs more than its budget, and no probe is left that is worth giving up"
            );
        }
    }

    /// Ends the measurement of the sources' programs.
    fn candidates(&mut self, sources: &[&mut dyn Costed]) -> Vec<Candidate> {
        // Turned off meanwhile: half a measurement would look cheap.
        let measured = self.timed.take().filter(|measured| self.timing.lasted(&measured.timed));
        let candidate = |(index, source): (usize, &&mut dyn Costed)| {
            drop(self.metrics.shed.get_or_create(&ByProbe { probe: source.name() })); // shown also before it ever is
            let programs_cores = measured.as_ref().map(|Measurement { began, before, .. }| {
                let before = before.get(index).map(Vec::as_slice).unwrap_or_default();
                self.metrics.programs(before, &programs(&**source), began.elapsed().as_secs_f64())
            });
            Candidate { sheddable: source.can_shed(), programs_cores }
        };
        sources.iter().enumerate().map(candidate).collect()
    }

    fn execute(&mut self, verdict: Verdict, sources: &mut [&mut dyn Costed]) {
        let (Verdict::Shed(index) | Verdict::Restore(index)) = verdict else { return };
        let Some(source) = sources.get_mut(index) else { return };
        let (probe, shedding) = (source.name(), matches!(verdict, Verdict::Shed(_)));
        let before = programs(&**source);
        let done = if shedding { source.shed() } else { source.restore() };
        if !shedding {
            give_back_memory();
        }
        match done {
            Ok(()) => {
                self.metrics.forget(&before);
                self.metrics.show_shed(probe, shedding);
                if shedding {
                    self.shed.insert(index, probe);
                } else {
                    self.shed.remove(&index);
                }
                if shedding {
                    tracing::warn!(
                        probe,
                        "the agent costs more than its budget: the probe is given up, and what it tells is absent"
                    );
                } else {
                    tracing::info!(probe, "the agent is well within its budget: the probe measures again");
                }
            }
            Err(error) => {
                self.governor.failed(verdict);
                tracing::warn!(probe, shedding, %error, "the probe stays as it is");
            }
        }
    }
}

/// The cost of a source's programs; of none where it cannot be read.
fn programs(source: &dyn Costed) -> Vec<ProgramCost> {
    source.programs().unwrap_or_else(|error| {
        tracing::debug!(probe = source.name(), %error, "the probe's cost cannot be read");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SourceError;

    /// A source that can be given up, unless it is broken.
    struct Source {
        name: &'static str,
        is_broken: bool,
    }

    impl Costed for Source {
        fn name(&self) -> &'static str {
            self.name
        }

        fn shed(&mut self) -> Result<(), SourceError> {
            if self.is_broken { Err("it does not let go".into()) } else { Ok(()) }
        }
    }

    #[test]
    fn what_is_given_up_is_told_in_the_order_in_which_it_goes() {
        let mut control = CostControl::register(Budget::default(), 1_000, &mut Registry::default());
        let mut sources =
            [("queues", false), ("exits", false), ("drops", true)].map(|(name, is_broken)| Source { name, is_broken });
        let mut told = |verdicts: &[Verdict]| -> Vec<&'static str> {
            for &verdict in verdicts {
                control.execute(verdict, &mut sources.each_mut().map(|source| source as &mut dyn Costed));
            }
            control.shed().collect()
        };
        assert!(told(&[]).is_empty());
        assert_eq!(told(&[Verdict::Shed(1), Verdict::Shed(0)]), ["queues", "exits"]);
        assert_eq!(told(&[Verdict::Shed(2)]), ["queues", "exits"], "it stays as it is");
        assert_eq!(told(&[Verdict::Restore(0)]), ["exits"]);
    }
}
