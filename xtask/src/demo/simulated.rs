//! The simulated fleet: the same core, simulated hosts and guests. Faster than real time, and said so.

use std::thread;
use std::time::Duration;

use super::foresight::{Foresight, grown_for};
use super::record::{Kind, Row};
use super::world::{Guest, GuestSecond, HostLine, Second, World};
use gnomon_common::time::Timestamp;
use gnomon_sim::Load;

/// How long a simulated second takes, so that a person can watch.
const SECOND: Duration = Duration::from_millis(50);

/// The simulator's demo fleet.
pub(super) struct SimulatedWorld {
    world: gnomon_sim::World,
    pace: Duration,
    start: Option<Timestamp>,
    foresight: Vec<Foresight>,
}

impl SimulatedWorld {
    /// A fleet whose workloads are drawn from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self::with_pace(seed, SECOND)
    }

    /// The same with another length of a simulated second.
    pub(super) fn with_pace(seed: u64, pace: Duration) -> Self {
        let world = gnomon_sim::demo_fleet(seed);
        let foresight = world.scenario().vms.iter().map(|_| Foresight::default()).collect();
        Self { world, pace, start: None, foresight }
    }
}

impl World for SimulatedWorld {
    fn title(&self) -> &'static str {
        "simulated fleet, twenty times real time"
    }

    fn guests(&self) -> Vec<Guest> {
        let guest = |vm: &gnomon_sim::VmSpec| {
            let (kind, period_s) = match vm.load {
                Load::Day { period_s, .. } => (Kind::Periodic, Some(period_s)),
                Load::Walk { .. } => (Kind::Walk, None),
                _ => (Kind::Flat, None),
            };
            Guest { name: vm.name.clone(), host: vm.host.clone(), kind, period_s }
        };
        self.world.scenario().vms.iter().map(guest).collect()
    }

    fn next_second(&mut self) -> anyhow::Result<Second> {
        thread::sleep(self.pace);
        let snapshot = self.world.step();
        let start = *self.start.get_or_insert(snapshot.at);
        let lead_ms = self.world.scenario().policy.cpu.lead_ms;
        let hosts = self.world.core().map_or(Vec::new(), gnomon_core::Core::hosts).iter().map(HostLine::of).collect();
        let mut guests = Vec::new();
        for (vm, foresight) in snapshot.vms.iter().zip(&mut self.foresight) {
            let ahead = vm.forecast.as_ref().map_or(Vec::new(), |forecast| foresight.remember(forecast, lead_ms));
            let forecast = foresight.recall(snapshot.at.unix_ms());
            let cpu = vm.known.as_ref().and_then(|known| known.cpu);
            let explanation = self.world.core().and_then(|core| core.explain(vm.vm));
            let row = Row {
                at_s: snapshot.at.since(start).as_secs_f64(),
                wanted: vm.demand_cores,
                demand_low: cpu.map_or(vm.ran_cores, |cpu| cpu.demand_low.mean),
                demand_high: cpu.map_or(vm.ran_cores, |cpu| cpu.demand_high.mean),
                allocation: vm.limit_cores,
                forecast_p50: forecast.map(|(median, _)| median),
                forecast_p95: forecast.map(|(_, high)| high),
                throttled: cpu.map_or(0.0, |cpu| cpu.throttled.mean),
                grown_for: explanation.as_ref().and_then(|why| grown_for(why, snapshot.at)),
            };
            let reason = explanation.and_then(|why| why.recent.first().map(|action| action.action.reason.to_string()));
            guests.push(GuestSecond { rows: vec![row], ahead, reason: reason.unwrap_or_default() });
        }
        Ok(Second { hosts, guests })
    }
}
