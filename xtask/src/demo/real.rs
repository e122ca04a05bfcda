//! The real fleet: three lab hosts, three guests, three agents and a brain.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use gnomon_common::time::Timestamp;
use gnomon_core::view::{Explanation, Forecast, HostView};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::foresight::{Foresight, grown_for};
use super::record::{Kind, Row};
use super::world::{Guest, GuestSecond, HostLine, Second, World};
use crate::lab::{self, DayRange, GuestOptions, HostOptions, Lab, Schedule, Truth};
use crate::process::{cargo, run_logged, target_dir};
use crate::progress::Activity;
use crate::stack::{AgentSettings, BrainSettings, Stack};

/// Days that fit into a demo: the guests' workloads are drawn from these bounds, which neither agent nor brain knows.
const DAY: DayRange = DayRange { period_s: (55.0, 75.0), base: (0.08, 0.12), peak: (0.70, 0.80), width: (0.25, 0.35) };
/// The flat guest's level, in cores.
const FLAT_CORES: f64 = 0.2;
/// The walking guest's schedule; low enough that three guests fit on two cores.
const WALK: &str = "step_s=3,step=0.05,low=0.1,high=0.4";
/// What each host declares to have, and cannot exceed, in cores.
const HOST_CORES: f64 = 1.0;
/// Points of the truth averaged over a window.
const TRUTH_POINTS: u32 = 10;
const HEARTBEAT_MS: u64 = 1000;

/// A window as the brain's API tells it; only what the demo needs.
#[derive(Debug, Deserialize)]
struct Point {
    start_ms: u64,
    window_ms: u32,
    demand_low_cores: Option<f64>,
    demand_high_cores: Option<f64>,
    throttled: Option<f64>,
    limit_cores: f64,
}

/// A guest and what has been read of it.
#[derive(Debug)]
struct Watched {
    guest: Guest,
    truth: Truth,
    foresight: Foresight,
    /// Windows that began before this were read already.
    next_ms: u64,
    limit_before: Option<f64>,
}

/// The lab with everything on it.
pub(super) struct RealWorld {
    stack: Stack,
    watched: Vec<Watched>,
    start_ms: u64,
    next: Instant,
}

impl RealWorld {
    /// Builds the programs, brings up hosts and guests, starts brain and agents. Says what it does; takes down what it made on error.
    pub(super) fn start(seed: u64) -> Result<Self> {
        let mut build = cargo();
        // All programs, as the tests build them: another selection would compile shared crates again with other features.
        build.args(["build", "--locked", "--bins"]);
        run_logged(build, "agent and brain, built", 300, &target_dir().join("demo-build.log"))?;

        let activity = std::sync::Arc::new(Activity::start("three libvirt hosts with a guest each", 15));
        let mut options = lab::Options::new("demo", 3);
        options.seed = Some(seed);
        options.hosts.fill(HostOptions { capacity_cores: Some(HOST_CORES), ..HostOptions::default() });
        let told = activity.clone();
        options.progress = lab::Progress::new(move |what| told.detail(what));
        let lab = Lab::up(options)?;
        let walk: Schedule = format!("walk:seed={},{WALK}", seed % 1_000_000).parse()?;
        let plans = [
            ("shop", Kind::Periodic, lab.draw_day("shop", &DAY)),
            ("batch", Kind::Flat, Schedule::Constant(FLAT_CORES)),
            ("lab", Kind::Walk, walk),
        ];
        let mut booted = Vec::new();
        for ((name, _, schedule), host) in plans.iter().zip(lab.hosts()) {
            booted.push(lab.define(host, &GuestOptions::new(name, schedule.clone()))?);
        }
        lab.boot(&booted)?;
        activity.done();
        let activity_stack = Activity::start("a brain and three agents", 5);
        let settings = BrainSettings { policy: gnomon_sim::demo::demo_policy(), heartbeat_ms: HEARTBEAT_MS };
        let agents = AgentSettings::default();
        let hosts: Vec<String> = lab.hosts().iter().map(|host| host.name().to_owned()).collect();
        let mut watched = Vec::new();
        for ((name, kind, schedule), host) in plans.into_iter().zip(hosts) {
            let period_s = if let Schedule::Periodic(day) = &schedule { Some(day.period_s) } else { None };
            watched.push(Watched {
                truth: lab.truth(name)?,
                guest: Guest { name: name.to_owned(), host, kind, period_s },
                foresight: Foresight::default(),
                next_ms: 0,
                limit_before: None,
            });
        }
        let stack = Stack::start(lab, settings, &agents)?;
        activity_stack.done();
        let start_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        for guest in &mut watched {
            guest.next_ms = start_ms;
        }
        Ok(Self { stack, watched, start_ms, next: Instant::now() })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let value = self.stack.api().get(path)?;
        serde_json::from_value(value).with_context(|| format!("understanding {path}"))
    }

    fn look(&self, index: usize) -> Result<(Vec<Point>, Option<Forecast>, Option<Explanation>)> {
        let Watched { guest, next_ms, .. } = &self.watched[index];
        // The brain hears of a guest with its first report.
        if self.stack.api().get(&format!("/api/v1/vms/{}", guest.name)).is_err() {
            return Ok((Vec::new(), None, None));
        }
        let of = |what: &str| format!("/api/v1/vms/{}/{what}", guest.name);
        Ok((
            self.get(&of(&format!("history?since_ms={next_ms}")))?,
            self.get(&of("forecast"))?,
            self.get(&of("explain"))?,
        ))
    }
}

impl Watched {
    /// A window as a row. Of the limits at its beginning and its end the smaller one counts: a resize that comes within a second
    /// does not save that second.
    fn row(&mut self, point: &Point, start_ms: u64) -> Row {
        let forecast = self.foresight.recall(point.start_ms);
        let allocation = point.limit_cores.min(self.limit_before.unwrap_or(point.limit_cores));
        self.limit_before = Some(point.limit_cores);
        self.next_ms = point.start_ms + 1;
        Row {
            at_s: (point.start_ms - start_ms) as f64 / 1000.0,
            wanted: self.wanted(point),
            demand_low: point.demand_low_cores.unwrap_or(0.0),
            demand_high: point.demand_high_cores.unwrap_or(0.0),
            allocation,
            forecast_p50: forecast.map(|(median, _)| median),
            forecast_p95: forecast.map(|(_, high)| high),
            throttled: point.throttled.unwrap_or(0.0),
            grown_for: None,
        }
    }

    /// The mean of the guest's schedule over a window.
    fn wanted(&self, point: &Point) -> f64 {
        let start = UNIX_EPOCH + Duration::from_millis(point.start_ms);
        let step = Duration::from_millis(u64::from(point.window_ms)) / TRUTH_POINTS;
        let levels = (0..TRUTH_POINTS).map(|nth| self.truth.level_at(start + step * nth + step / 2));
        levels.sum::<f64>() / f64::from(TRUTH_POINTS)
    }
}

impl World for RealWorld {
    fn title(&self) -> &'static str {
        "real QEMU guests on three libvirt hosts"
    }

    fn guests(&self) -> Vec<Guest> {
        self.watched.iter().map(|watched| watched.guest.clone()).collect()
    }

    fn next_second(&mut self) -> Result<Second> {
        self.next += Duration::from_secs(1);
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        let hosts: Vec<HostView> = self.get("/api/v1/hosts")?;
        let lead_ms = self.stack.settings().policy.cpu.lead_ms;
        let mut guests = Vec::new();
        for index in 0..self.watched.len() {
            let (points, forecast, explanation) = self.look(index)?;
            let watched = &mut self.watched[index];
            let ahead = forecast.map_or(Vec::new(), |forecast| watched.foresight.remember(&forecast, lead_ms));
            let now =
                Timestamp::from_unix_ms(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?);
            let grown_for = explanation.as_ref().and_then(|why| grown_for(why, now));
            let row = |point: &Point| Row { grown_for, ..watched.row(point, self.start_ms) };
            let rows = points.iter().map(row).collect();
            let reason = explanation.and_then(|why| why.recent.first().map(|action| action.action.reason.to_string()));
            guests.push(GuestSecond { rows, ahead, reason: reason.unwrap_or_default() });
        }
        Ok(Second { hosts: hosts.iter().map(HostLine::of).collect(), guests })
    }
}
