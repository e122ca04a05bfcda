//! Anomalies of the last days: one incident, one alert, and what many VMs have at once is one alert as well.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::VmId;

use crate::anomaly::fleet::{self, Finding, TOGETHER_S};
use crate::archive::Kpi;
use crate::pattern::Sighting;

/// For how long incidents are told.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// Incidents kept at most, oldest forgotten first: a fleet's week, and a bad day.
const INCIDENTS_MAX: usize = 10_000;

/// What has an incident: a VM's KPI.
pub(super) type Subject = (VmId, Kpi);

/// Incidents by the time they were found.
#[derive(Clone, Debug, Default)]
pub(super) struct Incidents {
    sightings: VecDeque<(VmId, Sighting)>,
    /// When the last one was told that concerned the whole fleet, in Unix seconds.
    fleet_told_s: Option<i64>,
}

/// How a new incident is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// By itself.
    One,
    /// As the first of many VMs' at once.
    Fleet {
        /// How many VMs have one by now.
        vms: usize,
    },
    /// Not: the fleet's was told.
    Known,
}

impl Incidents {
    /// Takes in what was just seen, in a fleet of so many VMs, and says how to tell it.
    pub(super) fn add(&mut self, vm: VmId, sighting: Sighting, fleet_vms: usize) -> News {
        let at_s = sighting.1.at_s;
        self.insert(vm, sighting);
        let from_s = at_s.saturating_sub(TOGETHER_S);
        if self.fleet_told_s.is_some_and(|told_s| (from_s..=at_s).contains(&told_s)) {
            return News::Known;
        }
        let recent = self.sightings.iter().rev().take_while(|(_, (_, incident))| incident.at_s >= from_s);
        let vms = recent.map(|(vm, _)| *vm).collect::<BTreeSet<_>>().len();
        if fleet::is_fleet_wide(vms, fleet_vms) {
            self.fleet_told_s = Some(at_s);
            return News::Fleet { vms };
        }
        News::One
    }

    /// Takes in what a VM's detectors found in its history, in place of what was known of it.
    pub(super) fn replace(&mut self, now: Timestamp, vm: VmId, sightings: Vec<Sighting>) {
        self.sightings.retain(|(known, _)| *known != vm);
        let oldest_s = oldest_s(now);
        let recent = sightings.into_iter().filter(|(_, incident)| incident.at_s >= oldest_s);
        recent.for_each(|sighting| self.insert(vm, sighting));
    }

    fn insert(&mut self, vm: VmId, sighting: Sighting) {
        let place = self.sightings.partition_point(|(_, (_, incident))| incident.at_s <= sighting.1.at_s);
        self.sightings.insert(place, (vm, sighting));
        let newest_s = self.sightings.back().map_or(0, |(_, (_, incident))| incident.at_s);
        let kept_s = i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX);
        while self.sightings.len() > INCIDENTS_MAX
            || self.sightings.front().is_some_and(|(_, (_, incident))| incident.at_s < newest_s.saturating_sub(kept_s))
        {
            self.sightings.pop_front();
        }
    }

    /// The incidents of the last days, those of many VMs at once folded into one, the latest first.
    pub(super) fn findings(&self, now: Timestamp, fleet_vms: usize) -> Vec<Finding<Subject>> {
        let oldest_s = oldest_s(now);
        let recent = self.sightings.iter().filter(|(_, (_, incident))| incident.at_s >= oldest_s);
        let incidents: Vec<_> = recent.map(|(vm, (kpi, incident))| ((*vm, *kpi), incident.clone())).collect();
        let mut findings = fleet::fold(&incidents, fleet_vms);
        findings.reverse();
        findings
    }
}

fn oldest_s(now: Timestamp) -> i64 {
    let now_s = i64::try_from(now.unix_ms() / 1000).unwrap_or(i64::MAX);
    now_s.saturating_sub_unsigned(KEPT.as_secs())
}
