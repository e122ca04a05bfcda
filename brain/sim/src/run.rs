//! A scenario played to its end.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;
use crate::world::{Snapshot, World};

/// What happened in a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// One series for each VM, by name.
    pub vms: Vec<VmSeries>,
    /// One line for each event.
    pub log: Vec<String>,
}

/// One VM's time series: one value for each second, in cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VmSeries {
    /// Its name.
    pub name: String,
    /// What it wanted.
    pub demand: Vec<f64>,
    /// What it got.
    pub ran: Vec<f64>,
    /// What it might have used.
    pub limit: Vec<f64>,
    /// What was forecast, one lead time ahead of the second, as its median; `None` where there was no forecast.
    pub forecast_p50: Vec<Option<f64>>,
    /// The same as the 95 % quantile.
    pub forecast_p95: Vec<Option<f64>>,
    /// The season in use, in seconds.
    pub season_s: Vec<Option<f64>>,
}

/// Plays a scenario.
pub fn run(scenario: Scenario) -> Run {
    let name = scenario.name.clone();
    let duration_s = scenario.duration_s;
    let policy = scenario.policy.clone();
    let lead_steps = (policy.cpu.lead_ms / policy.forecast.resolution_ms.max(1)) as usize;
    let mut world = World::new(scenario);
    let mut vms: Vec<VmSeries> = Vec::new();
    for _ in 0..duration_s {
        record(&mut vms, &world.step(), lead_steps);
    }
    Run { scenario: name, vms, log: world.take_log() }
}

fn record(series: &mut Vec<VmSeries>, snapshot: &Snapshot, lead_steps: usize) {
    for vm in &snapshot.vms {
        let place = series.iter().position(|series| series.name == vm.name).unwrap_or_else(|| {
            series.push(VmSeries { name: vm.name.clone(), ..VmSeries::default() });
            series.len() - 1
        });
        let series = &mut series[place];
        let ahead = vm.forecast.as_ref().and_then(|forecast| forecast.steps.get(lead_steps)).copied();
        series.demand.push(vm.demand_cores);
        series.ran.push(vm.ran_cores);
        series.limit.push(vm.limit_cores);
        series.forecast_p50.push(ahead.map(|quantiles| quantiles.p50));
        series.forecast_p95.push(ahead.map(|quantiles| quantiles.p95));
        let season_ms = vm.forecast.as_ref().and_then(|forecast| forecast.season_ms);
        series.season_s.push(season_ms.map(|ms| ms as f64 / 1000.0));
    }
}

impl Run {
    /// The series of a VM; panics when there is none of that name.
    pub fn vm(&self, name: &str) -> &VmSeries {
        self.vms.iter().find(|vm| vm.name == name).unwrap_or_else(|| panic!("no VM {name} in {}", self.scenario))
    }

    /// Everything as text: the same for the same scenario and seed, byte for byte.
    pub fn to_text(&self) -> String {
        let mut text = format!("# {}\n", self.scenario);
        for vm in &self.vms {
            let _ = writeln!(text, "## {}", vm.name);
            for (second, (demand, limit)) in vm.demand.iter().zip(&vm.limit).enumerate() {
                let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
                let (p50, p95) = (shown(vm.forecast_p50[second]), shown(vm.forecast_p95[second]));
                let _ = writeln!(text, "{second:>5} {demand:.3} {limit:.2} {p50} {p95}");
            }
        }
        self.log.iter().fold(text, |text, line| text + line + "\n")
    }
}
