//! Links fail, agents and the brain die, people interfere: what is learnt survives and nothing is done twice.

use gnomon_core::{OperatorRequest, Scope};
use gnomon_sim::demo::{VMS, demo_scenario};
use gnomon_sim::score::{is_met_ahead, surges};
use gnomon_sim::world::vm_id;
use gnomon_sim::{Event, HostSpec, Load, Run, Scenario, Timed, run};

const DAY: Load = Load::Day { period_s: 61.4, phase_s: 20.0, base: 0.1, peak: 0.8, width_s: 15.0, shoulder_s: 2.0 };

fn scenario(events: &[(u64, Event)]) -> Scenario {
    let mut scenario = demo_scenario(1, 500);
    scenario.vms[0].load = DAY;
    scenario.events = events.iter().map(|(at_s, event)| Timed { at_s: *at_s, event: event.clone() }).collect();
    scenario
}

fn met(run: &Run, from_s: f64) -> (usize, usize) {
    let surges = surges(&DAY, from_s, 500.0);
    (surges.iter().filter(|surge| is_met_ahead(run.vm(VMS[0]), surge, 6.0)).count(), surges.len())
}

fn lines<'a>(run: &'a Run, what: &str) -> Vec<&'a String> {
    run.log.iter().filter(|line| line.contains(what)).collect()
}

#[test]
fn a_brain_that_was_killed_goes_on_from_its_store() {
    let run = run(scenario(&[(260, Event::BrainRestart { for_s: 5 })]));
    // From the first surge after the restart on: history was not learnt anew.
    let (met, all) = met(&run, 266.0);
    assert!(all >= 2 && met == all, "{met} of {all}");
    assert!(lines(&run, " 2-1 ").len() >= 2, "the second life's first command was not sent and answered");
}

#[test]
fn a_link_that_fails_in_a_surge_costs_no_history() {
    let down = Event::LinkDown { host: "host-a".to_owned(), for_s: 20, spool_lost: false };
    let run = run(scenario(&[(200, down)]));
    assert_eq!(lines(&run, "out_of_order"), Vec::<&String>::new());
    let (met, all) = met(&run, 250.0);
    assert!(all >= 3 && met == all, "{met} of {all}");
}

#[test]
fn lost_reports_and_a_restarted_agent_leave_gaps_that_the_season_survives() {
    let lost = Event::LinkDown { host: "host-a".to_owned(), for_s: 15, spool_lost: true };
    let restart = Event::AgentRestart { host: "host-a".to_owned(), for_s: 10 };
    let run = run(scenario(&[(210, lost), (290, restart)]));
    let (met, all) = met(&run, 320.0);
    assert!(all >= 2 && met == all, "{met} of {all}");
}

#[test]
fn a_quota_that_someone_set_by_hand_is_seen_and_put_right() {
    let by_hand = Event::SetQuota { vm: VMS[1].to_owned(), cores: Some(0.05) };
    let run = run(scenario(&[(100, by_hand)]));
    let limit = &run.vm(VMS[1]).limit;
    assert!(limit[100] < 0.06 && limit[103] > 0.18, "{:?}", &limit[97..106]);
}

#[test]
fn a_vm_that_moves_takes_its_history_along() {
    let moves = Event::Move { vm: VMS[0].to_owned(), host: "host-b".to_owned() };
    let run = run(scenario(&[(265, moves)]));
    let (met, all) = met(&run, 266.0);
    assert!(all >= 2 && met == all, "{met} of {all}");
}

#[test]
fn a_release_restores_the_baseline_and_a_resume_takes_it_up_again() {
    let scope = || Scope::Vm(vm_id(0));
    let run = run(scenario(&[
        (260, Event::Operator { request: OperatorRequest::Release { scope: scope() } }),
        (330, Event::Operator { request: OperatorRequest::Resume { scope: scope() } }),
    ]));
    let limit = &run.vm(VMS[0]).limit;
    assert!(limit[262..330].iter().all(|limit| *limit == 1.0), "it was unlimited before Gnomon came");
    assert!(limit[335..].iter().any(|limit| *limit < 0.5));
}

#[test]
fn an_agent_that_runs_dry_is_not_flooded() {
    let mut scenario = scenario(&[]);
    scenario.hosts[0] = HostSpec { dry_run: true, ..scenario.hosts[0].clone() };
    let run = run(scenario);
    let asked = lines(&run, "dry run").len();
    assert!((3..=9).contains(&asked), "{asked} commands in 500 s");
    assert!(run.vm(VMS[0]).limit.iter().all(|limit| *limit == 1.0));
}

#[test]
fn a_lasting_shift_of_demand_is_followed() {
    let mut scenario = scenario(&[]);
    let flat = |cores| Box::new(Load::Flat { cores });
    scenario.vms[0].load = Load::Shift { at_s: 200.0, before: flat(0.2), after: flat(0.7) };
    let run = run(scenario);
    let series = run.vm(VMS[0]);
    let short = (205..500).filter(|&second| series.demand[second] > series.limit[second]).count();
    assert!(short <= 15, "short for {short} of 295 s after the shift");
    assert!(series.limit[190] < 0.4);
}
