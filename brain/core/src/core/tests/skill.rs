//! What policy asks of a forecast before it is acted on.

use gnomon_common::wire::{Action, Setting};

use super::bench::{Bench, applied, policy, vm};
use super::{Input, at};
use crate::io::{Output, Record};
use crate::plan::Reason;
use crate::policy::{MigratePolicy, Mode, Policy};

/// A surge of a minute in every five, and how much demand there is in it wanders.
fn demand(second: u64) -> f64 {
    let wander = ((second * 7919) % 101) as f64 / 1000.0;
    if (100..160).contains(&(second % 300)) { 0.6 + wander } else { 0.1 + wander / 10.0 }
}

fn asking(skill_min: Option<f64>) -> Policy {
    let mut policy = policy(Mode::Auto);
    policy.forecast.skill_min = skill_min;
    policy
}

/// The reasons to grow of VM 1 in an hour and a half, and whether anything was ever said of a doubt.
fn live(policy: Policy, vms: u128) -> (Vec<Reason>, bool, Bench) {
    let mut bench = Bench::new(policy);
    let (mut quota, mut grown, mut is_told) = (1.0, Vec::new(), false);
    // To the minute before a surge.
    for second in (0..5460).step_by(10) {
        let wants: Vec<_> = (1..=vms).map(|number| (number, demand(second), demand(second))).collect();
        bench.report_on("b", second, &[], Some(1.0));
        bench.report(second, &wants, Some(quota));
        while let Some(output) = bench.core.poll_output() {
            match output {
                Output::Fit(job) => bench.core.handle(at(second + 10), Input::FitDone(Box::new(job.run()))),
                Output::Persist(Record::Plan(plan)) => {
                    grown.extend(plan.actions.iter().map(|action| action.reason).filter(|reason| !reason.is_slack()));
                }
                Output::Command { command, .. } => {
                    let Action::Set(Setting::CpuQuota { cores: Some(cores) }) = command.action else { continue };
                    bench.outcome_of(command.vm, second + 10, command.id, applied(quota, cores));
                    quota = cores;
                }
                Output::Notice(notice) => assert_ne!(notice.kind, "plan_refused_by_linter", "{}", notice.text),
                _ => {}
            }
        }
        let lines = bench.core.explain(vm(1)).unwrap().lines;
        is_told |= lines.iter().any(|line| line.contains("is not acted on"));
    }
    (grown, is_told, bench)
}

#[test]
fn a_forecast_with_too_little_skill_grows_nothing_and_live_demand_still_does() {
    let is_surge = |reason: &Reason| matches!(reason, Reason::ForecastSurge { .. });
    let (grown, is_told, bench) = live(asking(None), 1);
    assert!(grown.iter().any(is_surge) && !is_told, "{grown:?}");
    let skill = 1.0 - bench.core.forecast(vm(1)).unwrap().relative_error.unwrap();
    assert!(skill < 0.9, "{skill}");

    let (grown, is_told, _) = live(asking(Some(0.95)), 1);
    assert!(!grown.iter().any(is_surge) && is_told, "{grown:?}");
    assert!(grown.iter().any(|reason| matches!(reason, Reason::LiveDemand { .. })), "{grown:?}");

    let (grown, ..) = live(asking(Some(skill - 0.3)), 1);
    assert!(grown.iter().any(is_surge), "{grown:?}");
}

#[test]
fn a_host_that_is_too_full_only_by_such_forecasts_sends_nobody_away() {
    let moving = |skill_min| {
        let migrate = MigratePolicy { mode: Mode::Recommend, lead_ms: 60_000, rounds: 1, ..MigratePolicy::default() };
        Policy { migrate, ..asking(skill_min) }
    };
    let is_move = |reason: &Reason| matches!(reason, Reason::HostFull { .. });
    // Seven surge together on a host of 4.0 cores; while they are calm, only a forecast says so.
    let (grown, _, bench) = live(moving(None), 7);
    let early = grown.iter().filter(|reason| is_move(reason)).count();
    assert!(early > 0, "{grown:?}");
    assert!(bench.core.hosts().iter().all(|host| host.outlook.is_none_or(|outlook| !outlook.is_doubted)));
    let (.., bench) = live(moving(Some(0.95)), 7);
    let outlook = bench.core.hosts()[0].outlook.unwrap();
    assert!(outlook.is_doubted && outlook.full_rounds == 0 && outlook.demand_cores > outlook.room_cores, "{outlook:?}");
}
