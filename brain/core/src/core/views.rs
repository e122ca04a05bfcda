//! Values copied out for the API.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Culprits, HostId, VmId, Who};

use super::Core;
use super::incidents::Subject;
use crate::anomaly::fleet::Finding;
use crate::archive::Archive;
use crate::fleet::{Host, Vm};
use crate::forecast::Forecaster;
use crate::forecast::engine::{LEVELS, Share};
use crate::pattern::Ahead;
use crate::plan::balance::{Prospect, Room};
use crate::view::{
    Alert, AlertMember, ContentionView, CulpritView, DiskWaitView, Forecast, HistoryStep, HostOutlook, HostView,
    ModelShare, Quantiles, VmView, WaitView,
};

impl Core {
    /// Every known host, by name.
    pub fn hosts(&self) -> Vec<HostView> {
        self.fleet.hosts.iter().map(|(id, host)| self.host_view(id, host)).collect()
    }

    /// One host.
    pub fn host(&self, host: &HostId) -> Option<HostView> {
        self.fleet.hosts.get(host).map(|entry| self.host_view(host, entry))
    }

    /// Every VM on a host, by id. Those that vanished are not shown.
    pub fn vms(&self) -> Vec<VmView> {
        self.fleet.present().map(|(id, vm, host)| self.vm_view(id, vm, host)).collect()
    }

    /// Whether anything is known of a VM, be it on a host or vanished not long ago.
    pub fn knows(&self, vm: VmId) -> bool {
        self.fleet.vms.contains_key(&vm)
    }

    /// One VM that is on a host.
    pub fn vm(&self, id: VmId) -> Option<VmView> {
        let vm = self.fleet.vms.get(&id)?;
        Some(self.vm_view(id, vm, vm.host.as_ref()?))
    }

    /// The VM with this id, or the one with this name if exactly one VM has it.
    pub fn find_vm(&self, id_or_name: &str) -> Option<VmId> {
        if let Ok(id) = id_or_name.parse::<VmId>() {
            return self.fleet.vms.get(&id).and_then(|vm| vm.host.as_ref()).map(|_| id);
        }
        let mut named = self.fleet.present().filter(|(_, vm, _)| vm.name == id_or_name).map(|(id, ..)| id);
        named.next().filter(|_| named.next().is_none())
    }

    /// The forecast of a VM's CPU demand; `None` while there is too little history.
    pub fn forecast(&self, vm: VmId) -> Option<Forecast> {
        let vm = self.fleet.vms.get(&vm)?;
        let forecaster = vm.ready()?;
        let cores_max = f64::from(vm.allocation.vcpus);
        let steps =
            (1..=self.policy.forecast.horizon_steps).map(|ahead| forecaster.quantiles(ahead, cores_max)).collect();
        Some(Forecast {
            made: vm.history.closed_until(),
            resolution_ms: vm.history.resolution_ms(),
            season_ms: season_ms(vm),
            model: model(forecaster).to_owned(),
            relative_error: forecaster.relative_error(),
            steps,
            models: Vec::new(),
            skill: None,
        })
    }

    /// The forecast of a VM's CPU demand for as long as `ahead`, up to 30 days: in the policy's steps within its horizon, else in steps of 5
    /// minutes, and beyond a day in hours. `None` while there is too little history for that.
    pub fn forecast_for(&self, id: VmId, ahead: Duration) -> Option<Forecast> {
        let forecast = &self.policy.forecast;
        if ahead <= Duration::from_millis(forecast.resolution_ms) * u32::try_from(forecast.horizon_steps).ok()? {
            return self.forecast(id);
        }
        let vm = self.fleet.vms.get(&id)?;
        let Ahead { start, step, quantiles } = vm.pattern.ahead(vm.window_end, ahead)?;
        let (shares, skill) = vm.pattern.models()?;
        let cores_max = f64::from(vm.allocation.vcpus);
        let of = |quantiles: [f64; LEVELS.len()]| {
            let [p50, p90, p95, p99] = quantiles.map(|cores| cores.min(cores_max));
            Quantiles { p50, p90, p95, p99 }
        };
        let share = |share: &Share| ModelShare {
            model: share.model.to_owned(),
            weight: share.weight,
            error_cores: share.error.is_finite().then_some(share.error),
        };
        let longest = vm.pattern.seasons().iter().map(|season| season.length()).max();
        Some(Forecast {
            made: start,
            resolution_ms: u64::try_from(step.as_millis()).ok()?,
            season_ms: longest.and_then(|length| u64::try_from(length.as_millis()).ok()),
            model: "combination".to_owned(),
            relative_error: Some(1.0 - skill),
            steps: quantiles.into_iter().map(of).collect(),
            models: shares.iter().map(share).collect(),
            skill: Some(skill),
        })
    }

    /// A VM's long history, copied out; some of its blocks may be in the store alone. `None` for a VM that is not known.
    pub fn archive(&self, id: VmId) -> Option<Archive> {
        self.fleet.vms.get(&id).map(|vm| vm.pattern.archive().clone())
    }

    /// What was out of the ordinary in the last seven days, the latest first. What many VMs had at once is one alert.
    pub fn alerts(&self) -> Vec<Alert> {
        let findings = self.incidents.findings(self.now, self.fleet.vms.len());
        findings.into_iter().map(|finding| self.alert(finding)).collect()
    }

    fn alert(&self, finding: Finding<Subject>) -> Alert {
        let (since_s, found_s, fleet_wide, members) = match finding {
            Finding::One { series, incident } => (incident.since_s, incident.at_s, false, vec![(series, incident)]),
            Finding::Fleet { since_s, at_s, members } => (since_s, at_s, true, members),
        };
        let at = |unix_s: i64| Timestamp::from_unix_ms(u64::try_from(unix_s).unwrap_or(0).saturating_mul(1000));
        let member = |((id, kpi), incident)| {
            let vm = self.fleet.vms.get(&id);
            let name = vm.map_or_else(String::new, |vm| vm.name.clone());
            AlertMember { vm: id, name, host: vm.and_then(|vm| vm.host.clone()), kpi, incident }
        };
        let members = members.into_iter().map(member).collect();
        Alert { since: at(since_s), found: at(found_s), fleet_wide, members }
    }

    /// A VM's demand history from `since` on, oldest first; steps that were not measured are left out.
    pub fn history(&self, vm: VmId, since: Timestamp) -> Vec<HistoryStep> {
        let Some(vm) = self.fleet.vms.get(&vm) else { return Vec::new() };
        let resolution_ms = vm.history.resolution_ms();
        let steps = vm.history.since(since.unix_ms().div_ceil(resolution_ms));
        steps
            .filter_map(|(index, step)| {
                let step = step?;
                let (start, mean) = (Timestamp::from_unix_ms(index * resolution_ms), step.mean());
                Some(HistoryStep { start, low: mean.low, high: mean.high, peak: step.peak() })
            })
            .collect()
    }

    fn host_view(&self, id: &HostId, host: &Host) -> HostView {
        let limits = host.vms.iter().filter_map(|vm| self.fleet.vms.get(vm)).map(|vm| vm.allocation.cpu_limit_cores());
        HostView {
            host: id.clone(),
            facts: host.facts.clone(),
            connected: host.connected,
            last_window: host.last_window,
            window: host.window.clone(),
            vms: host.vms.len(),
            allocated_cores: limits.sum(),
            hold: self.holds.on_host(id),
            mode: self.told_mode_of_host(id),
            losses: host.losses,
            outlook: host.prospect.map(|prospect| self.outlook_view(host, &prospect)),
            draining_since: self.moves.draining.get(id).copied(),
            stuck: host.stuck.clone(),
            contention: host
                .contention
                .share(self.now, &self.shadows.calibrations)
                .map(|(share, witness)| ContentionView { share, witness }),
            disk_wait: host
                .contention
                .request_ms(self.now, &self.shadows.calibrations)
                .map(|(request_ms, witness)| DiskWaitView { request_ms, witness }),
        }
    }

    fn outlook_view(&self, host: &Host, prospect: &Prospect) -> HostOutlook {
        let room = Room::of(&host.facts, &self.policy.migrate);
        HostOutlook {
            demand_cores: prospect.load.high_cores(),
            room_cores: room.cores,
            memory_bytes: prospect.load.memory_bytes,
            room_bytes: room.memory_bytes as u64,
            gives_back_bytes: prospect.gives_back_bytes,
            full_rounds: prospect.full_rounds,
            is_doubted: prospect.is_doubted,
        }
    }

    pub(super) fn vm_view(&self, id: VmId, vm: &Vm, host: &HostId) -> VmView {
        VmView {
            vm: id,
            name: vm.name.clone(),
            shadow: vm.shadow,
            host: host.clone(),
            state: vm.state,
            cpu: vm.cpu,
            waited: vm.culprits.as_ref().map(|culprits| self.wait_view(culprits)),
            memory: vm.memory,
            interfaces: vm.interfaces.clone(),
            disk: vm.disk.clone(),
            exits: vm.exits.clone(),
            allocation: vm.allocation,
            last_window: vm.last_window,
            season_ms: season_ms(vm),
            hold: self.holds.on_vm(id, Some(host)),
            mode: self.told_mode_of(id),
            held: self.holds.settings_of(id).collect(),
            baselines: vm.baselines.clone(),
            stood_down: vm.stood_down,
            in_flight: vm.flight.as_ref().map(|flight| flight.record.command.id),
            migration: vm.migration,
            dirty_bytes_per_s: vm.travel.dirty_bytes_per_s(self.now),
        }
    }

    /// With VMs by name.
    fn wait_view(&self, culprits: &Culprits) -> WaitView {
        let named = culprits.named.iter().map(|culprit| {
            let (vm, name) = match &culprit.who {
                Who::Vm(id) => {
                    let known = self.fleet.vms.get(id);
                    (Some(*id), known.map_or_else(|| id.to_string(), |vm| vm.name.clone()))
                }
                Who::Task(command) => (None, command.clone()),
            };
            CulpritView { vm, name, cores: cores(culprit.cores) }
        });
        WaitView {
            own_quota_cores: culprits.own_quota_cores.map(cores),
            own_cores: cores(culprits.own_cores),
            culprits: named.collect(),
            others_cores: cores(culprits.others_cores),
        }
    }
}

/// To a millionth: what single precision adds beyond that is noise.
fn cores(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

/// The season in milliseconds, where one has earned its say.
pub(super) fn season_ms(vm: &Vm) -> Option<u64> {
    let steps = vm.ready()?.season_steps()?;
    Some(Duration::from_millis(vm.history.resolution_ms()).mul_f64(steps).as_millis() as u64)
}

fn model(forecaster: &Forecaster) -> &'static str {
    match forecaster.season_steps() {
        Some(_) => "exponential smoothing with a season",
        None => "simple exponential smoothing",
    }
}
