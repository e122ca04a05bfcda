//! Weeks of a fleet: what the long history is good for.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::wire::{Report, Setting, VmId};

use super::bench::{Bench, applied, at, facts, host, report_of, vm};
use crate::Core;
use crate::archive::{BlockKey, Change, SealedBlock};
use crate::io::{Input, Lesson, Output, Record, Restored};
use crate::job::Job;
use crate::plan::Reason;
use crate::policy::{AnomalyPolicy, CpuPolicy, MigratePolicy, Mode, Policy};

/// Minutes of a window here.
const WINDOW_MIN: u64 = 5;
const DAY_MIN: u64 = 1440;

/// A day of `at(0)`'s that two hours are busy on.
fn office(minute: u64) -> f64 {
    let jitter = (minute / WINDOW_MIN * 7919 % 13) as f64 / 400.0;
    if (540..660).contains(&(minute % DAY_MIN)) { 0.8 + jitter } else { 0.15 + jitter }
}

fn policy() -> Policy {
    let cpu = CpuPolicy { lead_ms: 600_000, violation_rate: 0.0, ..CpuPolicy::default() };
    Policy { mode: Mode::Auto, cpu, ..Policy::default() }
}

/// A fleet on host `a` whose quotas are what they were last set to.
struct Fleet {
    bench: Bench,
    /// Which fits are made.
    fits: fn(&Job) -> bool,
    quotas: BTreeMap<VmId, f64>,
    /// (minute, VM, cores, why), in order.
    resizes: Vec<(u64, VmId, f64, Reason)>,
    notices: Vec<&'static str>,
    blocks: BTreeMap<(VmId, BlockKey), SealedBlock>,
    lessons: BTreeMap<String, Lesson>,
    reports: Vec<Report>,
    /// What the audit log says came of surges, and of what was out of the ordinary.
    verdicts: Vec<(String, String)>,
}

impl Fleet {
    fn new(core: Core) -> Self {
        Self {
            bench: Bench::of(core),
            fits: |_| true,
            quotas: BTreeMap::new(),
            resizes: Vec::new(),
            notices: Vec::new(),
            blocks: BTreeMap::new(),
            lessons: BTreeMap::new(),
            reports: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// The fleet with another core, that was told what the store keeps: of reports, those since a minute.
    fn restarted(&self, policy: Policy, reports_since: u64) -> Self {
        let mut core = Core::new(policy, 2, 2);
        core.restore(Restored::Host { host: host("a"), facts: facts() });
        for ((vm, _), block) in &self.blocks {
            core.restore(Restored::History { vm: *vm, block: block.clone() });
        }
        self.lessons.values().for_each(|lesson| core.restore(Restored::Lesson(lesson.clone())));
        for report in self.reports.iter().filter(|report| report.start >= at(reports_since * 60)) {
            core.restore(Restored::Report(Box::new(report.clone())));
        }
        Self { quotas: self.quotas.clone(), ..Self::new(core) }
    }

    fn live(&mut self, minutes: std::ops::Range<u64>, vms: u128, demand: impl Fn(u128, u64) -> f64) {
        for minute in minutes.step_by(WINDOW_MIN as usize) {
            let wants: Vec<(u128, f64, f64)> =
                (1..=vms).map(|number| (number, demand(number, minute), demand(number, minute))).collect();
            let mut report = report_of("a", minute * 60, &wants, None);
            report.window_ms = 300_000;
            for window in &mut report.vms {
                window.allocation.quota_cores = Some(*self.quotas.entry(window.vm).or_insert(1.0));
            }
            self.reports.push(report.clone());
            let now = at((minute + WINDOW_MIN) * 60);
            self.bench.core.handle(now, Input::Report(Box::new(report)));
            while let Some(output) = self.bench.core.poll_output() {
                match output {
                    Output::Fit(job) if !(self.fits)(&job.0) => {}
                    Output::Fit(job) => self.bench.core.handle(now, Input::FitDone(Box::new(job.run()))),
                    Output::Notice(notice) => self.notices.push(notice.kind),
                    Output::Persist(Record::History { vm, change: Change::Persist(block) }) => {
                        self.blocks.insert((vm, block.key), block);
                    }
                    Output::Persist(Record::Lesson { lesson, .. }) => {
                        self.lessons.insert(lesson.subject(), lesson);
                    }
                    Output::Persist(Record::History { vm, change: Change::Forget(key) }) => {
                        self.blocks.remove(&(vm, key));
                    }
                    Output::Persist(Record::Plan(plan)) => {
                        let resizes = plan.actions.iter().filter_map(|action| match action.action {
                            gnomon_common::wire::Action::Set(Setting::CpuQuota { cores: Some(cores) }) => {
                                Some((minute + WINDOW_MIN, action.vm, cores, action.reason))
                            }
                            _ => None,
                        });
                        self.resizes.extend(resizes);
                    }
                    Output::Command { command, .. } => {
                        let (id, vm) = (command.id, command.vm);
                        let after =
                            self.resizes.iter().rev().find(|resize| resize.1 == vm).map_or(1.0, |resize| resize.2);
                        let before = self.quotas.insert(vm, after).unwrap_or(1.0);
                        self.bench.outcome_of(vm, (minute + WINDOW_MIN) * 60, id, applied(before, after));
                    }
                    Output::Persist(Record::Audit(audit))
                        if audit.verb.starts_with("surge_") || audit.verb.starts_with("anomaly_") =>
                    {
                        self.verdicts.push((audit.verb, audit.detail));
                    }
                    Output::Persist(_) | Output::Capacity(_) => {}
                }
            }
        }
    }
}

#[test]
fn a_daily_surge_is_provided_for_before_it_comes() {
    let mut fleet = Fleet::new(Core::new(policy(), 1, 1));
    fleet.fits = |_| false;
    fleet.live(0..8 * DAY_MIN - 60, 1, |_, minute| office(minute));
    fleet.fits = |_| true;
    fleet.live(8 * DAY_MIN - 60..9 * DAY_MIN, 1, |_, minute| office(minute));
    let surge = 8 * DAY_MIN + 540;
    let today: Vec<_> = fleet.resizes.iter().filter(|resize| resize.0 >= 8 * DAY_MIN).collect();
    let grown = today.iter().find(|resize| resize.2 >= 0.8).expect("it grows");
    assert!(grown.0 <= surge && grown.0 + 15 >= surge, "at minute {} of {surge}", grown.0);
    assert!(matches!(grown.3, Reason::ForecastSurge { .. }), "{:?}", grown.3);
    assert!(today.iter().any(|resize| resize.0 > surge + 120 && resize.2 < 0.4), "{today:?}");
    let explained = fleet.bench.core.explain(vm(1)).unwrap().lines.join("\n");
    assert!(explained.contains("Its long history has seasons of a day"), "{explained}");

    // It came; on a day when nobody works it does not.
    let (verbs, details): (Vec<&str>, Vec<&str>) =
        fleet.verdicts.iter().map(|(verb, detail)| (verb.as_str(), detail.as_str())).unzip();
    assert_eq!(verbs, ["surge_served"], "{details:?}");
    assert!(details[0].contains("it came and was served: at most 0."), "{}", details[0]);
    fleet.live(9 * DAY_MIN..10 * DAY_MIN, 1, |_, _| office(0));
    let stayed_away = &fleet.verdicts[1..];
    assert!(!stayed_away.is_empty() && stayed_away.iter().all(|(verb, _)| verb == "surge_absent"), "{stayed_away:?}");
    let recent = fleet.bench.core.explain(vm(1)).unwrap().recent;
    let remarks: Vec<&str> = recent.iter().filter_map(|action| action.remark.as_deref()).collect();
    assert!(remarks.iter().any(|remark| remark.starts_with("it did not come")), "{remarks:?}");
}

#[test]
fn a_daily_surge_that_a_host_has_no_room_for_is_seen_before_it_comes() {
    let migrate = MigratePolicy { lead_ms: 600_000, ..MigratePolicy::default() };
    let mut fleet = Fleet::new(Core::new(Policy { migrate, ..policy() }, 1, 1));
    fleet.fits = |_| false;
    fleet.live(0..8 * DAY_MIN - 60, 1, |_, minute| office(minute));
    fleet.fits = |_| true;
    let outlook = |fleet: &Fleet| fleet.bench.core.host(&host("a")).unwrap().outlook.unwrap().demand_cores;
    let surge = 8 * DAY_MIN + 540;
    fleet.live(8 * DAY_MIN - 60..surge - 120, 1, |_, minute| office(minute));
    assert!(outlook(&fleet) < 0.4, "{} two hours before", outlook(&fleet));
    fleet.live(surge - 120..surge - 5, 1, |_, minute| office(minute));
    assert!(outlook(&fleet) >= 0.75, "{} five minutes before", outlook(&fleet));
}

#[test]
fn a_fleet_with_a_past_is_sized_for_its_promise() {
    let mut promising = policy();
    promising.cpu.violation_rate = 0.01;
    let mut fleet = Fleet::new(Core::new(promising, 1, 1));
    fleet.fits = |job| matches!(job, Job::Train(_));
    let burst = |number: u128, minute: u64| (minute / WINDOW_MIN * 31 + number as u64 * 17) % 97 < 3;
    let demand =
        |number: u128, minute: u64| if burst(number, minute) { 0.5 } else { 0.8 * office(minute + number as u64 * 30) };
    fleet.live(0..5 * DAY_MIN, 8, demand);
    let from = 5 * DAY_MIN;
    fleet.resizes.clear();
    let (mut short, mut slack, mut windows) = (0.0, 0.0, 0.0);
    for minute in (from..from + 2 * DAY_MIN).step_by(WINDOW_MIN as usize) {
        for number in 1..=8 {
            let (wanted, quota) = (demand(number, minute), fleet.quotas[&vm(number)]);
            short += f64::from(u8::from(wanted > quota));
            slack += (quota - wanted).max(0.0) / quota;
            windows += 1.0;
        }
        fleet.live(minute..minute + WINDOW_MIN, 8, demand);
    }
    let promised = fleet.resizes.iter().filter(|resize| matches!(resize.3, Reason::Promise { .. })).count();
    assert!(promised > 10, "{promised} of {}", fleet.resizes.len());
    assert!(short / windows < 0.03, "too small for {} of the time", short / windows);
    assert!(slack / windows < 0.75, "{}", slack / windows);
    let explained = fleet.bench.core.explain(vm(1)).unwrap().lines.join("\n");
    assert!(explained.contains("It is sized for the fleet's promise"), "{explained}");

    // A restart trains anew on what is remembered, and does not wait for days.
    let mut restarted = fleet.restarted(fleet.bench.core.policy(), from + DAY_MIN);
    restarted.fits = |job| matches!(job, Job::Train(_));
    restarted.live(from + 2 * DAY_MIN..from + 2 * DAY_MIN + 10, 8, demand);
    let explained = restarted.bench.core.explain(vm(1)).unwrap().lines.join("\n");
    assert!(explained.contains("It is sized for the fleet's promise"), "{explained}");

    // It also knows what a violation was worth.
    let price = |fleet: &Fleet| match &fleet.lessons["fleet"] {
        Lesson::Promise(promise) => promise.price(),
        other => panic!("{other:?}"),
    };
    restarted.live(from + 2 * DAY_MIN + 10..from + 2 * DAY_MIN + 130, 8, demand);
    let (before, after) = (price(&fleet), price(&restarted));
    // It began with 0.3 over the promised rate.
    assert!((before / 60.0).ln().abs() > 0.5, "{before}");
    assert!((after / before).ln().abs() < 0.2, "{before} {after}");
}

#[test]
fn what_many_vms_have_at_once_is_told_once_and_what_one_has_by_its_name() {
    let mut fleet = Fleet::new(Core::new(policy(), 1, 1));
    // What detectors see does not depend on forecasts.
    fleet.fits = |_| false;
    let quiet = |number: u128, minute: u64| 0.2 + office(minute + number as u64 * 60) / 50.0;
    fleet.live(0..5 * DAY_MIN, 10, quiet);
    fleet.notices.clear();
    fleet.live(
        5 * DAY_MIN..5 * DAY_MIN + 60,
        10,
        |number, minute| if number == 3 { 0.9 } else { quiet(number, minute) },
    );
    assert_eq!(fleet.notices, ["anomaly"]);
    let alerts = fleet.bench.core.alerts();
    assert_eq!((alerts[0].members[0].vm, alerts[0].fleet_wide), (vm(3), false));
    assert_eq!((alerts[0].members[0].name.as_str(), alerts[0].members[0].host.clone()), ("vm3", Some(host("a"))));
    fleet.notices.clear();
    fleet.live(6 * DAY_MIN..6 * DAY_MIN + 60, 10, |number, minute| quiet(number, minute) + 0.6);
    let fleet_wide = fleet.notices.iter().filter(|kind| **kind == "anomaly_fleet").count();
    assert_eq!(fleet_wide, 1, "{:?}", fleet.notices);
    assert!(fleet.notices.len() <= 3, "{:?}", fleet.notices);
    let latest = &fleet.bench.core.alerts()[0];
    assert!(latest.fleet_wide && latest.members.len() >= 9, "{latest:?}");
}

#[test]
fn a_vm_that_leaps_is_given_something_on_top_within_the_budget_and_for_a_while() {
    let anomaly =
        AnomalyPolicy { surplus_share: 0.5, host_cores_max: 0.3, lasts_ms: 3_600_000, ..AnomalyPolicy::default() };
    let quiet = |number: u128, minute: u64| 0.2 + office(minute + number as u64 * 60) / 50.0;
    let leaps = |number, minute| if number <= 2 { 0.5 } else { quiet(number, minute) };
    let is_anomaly = |reason: &Reason| matches!(reason, Reason::Anomaly { .. });
    let begins = 5 * DAY_MIN;
    for (surplus_share, expected) in [(0.0, 0), (0.5, 2)] {
        let anomaly = AnomalyPolicy { surplus_share, ..anomaly.clone() };
        let mut fleet = Fleet::new(Core::new(Policy { anomaly, ..policy() }, 1, 1));
        fleet.fits = |_| false;
        fleet.live(0..begins, 10, quiet);
        assert!(!fleet.resizes.iter().any(|(.., reason)| is_anomaly(reason)), "what is ordinary is given nothing");
        fleet.live(begins..begins + 30, 10, leaps);
        let given: BTreeMap<VmId, f64> = fleet
            .resizes
            .iter()
            .filter(|(.., reason)| is_anomaly(reason))
            .map(|&(_, vm, cores, _)| (vm, cores - 0.55))
            .collect();
        assert_eq!(given.len(), expected, "{:?}", fleet.resizes);
        assert!(!fleet.notices.contains(&"plan_refused_by_linter"), "the planner keeps to it by itself");
        let total: f64 = given.values().sum();
        assert!(total <= 0.3 + 0.02 && (expected == 0 || total > 0.25), "{given:?}");
        if expected > 0 {
            let lines = fleet.bench.core.explain(vm(1)).unwrap().lines;
            assert!(lines.iter().any(|line| line.contains("are given on top of its live demand")), "{lines:?}");
            // The demand stays, the incident is over: so is what was given on top.
            fleet.live(begins + 30..begins + 150, 10, leaps);
            assert!((1..=2).all(|number| fleet.quotas[&vm(number)] < 0.57), "{:?}", fleet.quotas);
            // Nothing of it was wanted.
            let verbs: Vec<&str> = fleet.verdicts.iter().map(|(verb, _)| verb.as_str()).collect();
            assert_eq!(verbs, ["anomaly_absent"; 2], "{:?}", fleet.verdicts);
        }
    }
}

#[test]
fn a_restart_knows_the_day_from_stored_history_and_tells_nothing_twice() {
    let mut fleet = Fleet::new(Core::new(policy(), 1, 1));
    fleet.fits = |_| false;
    fleet.live(0..6 * DAY_MIN, 1, |_, minute| office(minute));
    fleet.live(6 * DAY_MIN..6 * DAY_MIN + 60, 1, |_, _| 0.99);
    fleet.live(6 * DAY_MIN + 60..8 * DAY_MIN - 60, 1, |_, minute| office(minute));
    fleet.fits = |_| true;
    fleet.live(8 * DAY_MIN - 60..8 * DAY_MIN, 1, |_, minute| office(minute));
    let known = fleet.bench.core.forecast_for(vm(1), Duration::from_hours(20)).unwrap();
    let alerts = fleet.bench.core.alerts();
    assert!(!alerts.is_empty());

    let mut restarted = fleet.restarted(policy(), 7 * DAY_MIN);
    restarted.live(8 * DAY_MIN..8 * DAY_MIN + 30, 1, |_, minute| office(minute));
    assert_eq!(restarted.notices, [""; 0]);
    assert_eq!(restarted.bench.core.alerts(), alerts);
    let forecast = restarted.bench.core.forecast_for(vm(1), Duration::from_hours(20)).unwrap();
    assert_eq!(forecast.season_ms, known.season_ms);
    let most = |forecast: &crate::view::Forecast| forecast.steps.iter().map(|step| step.p50).fold(0.0, f64::max);
    assert!((most(&forecast) - most(&known)).abs() < 0.05, "{} {}", most(&forecast), most(&known));
}
