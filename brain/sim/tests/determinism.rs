//! The same scenario and seed give the same bytes; a small one is kept in full.

use gnomon_sim::demo::demo_scenario;
use gnomon_sim::{Event, Load, Scenario, Timed, run};

fn eventful(seed: u64) -> Scenario {
    let mut scenario = demo_scenario(seed, 300);
    let host = || "host-a".to_owned();
    let events = [
        (80, Event::LinkDown { host: host(), for_s: 10, spool_lost: false }),
        (150, Event::BrainRestart { for_s: 3 }),
        (200, Event::AgentRestart { host: host(), for_s: 5 }),
    ];
    scenario.events = events.into_iter().map(|(at_s, event)| Timed { at_s, event }).collect();
    scenario
}

#[test]
fn the_same_scenario_gives_the_same_bytes() {
    for seed in 0..5 {
        let (first, second) = (run(eventful(seed)), run(eventful(seed)));
        assert_eq!(first.to_text(), second.to_text());
        assert_eq!(serde_json::to_string(&first).unwrap(), serde_json::to_string(&second).unwrap());
    }
    assert_ne!(run(eventful(1)).to_text(), run(eventful(2)).to_text());
}

#[test]
fn a_scenario_survives_being_written_down() {
    let scenario = eventful(3);
    let text = serde_json::to_string(&scenario).unwrap();
    assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
}

#[test]
fn three_days_of_one_vm_are_as_they_were() {
    let mut scenario = demo_scenario(1, 200);
    scenario.name = "three days and a surge foreseen".to_owned();
    scenario.hosts.truncate(1);
    scenario.vms.truncate(1);
    scenario.vms[0].noise_cores = 0.02;
    scenario.vms[0].load =
        Load::Day { period_s: 50.5, phase_s: 30.0, base: 0.1, peak: 0.8, width_s: 12.0, shoulder_s: 1.0 };
    let run = run(scenario);
    let series = run.vm("shop");
    // Four seconds a line: demand, limit and forecast as bars of up to twenty.
    let bar = |value: f64| "#".repeat((value * 20.0).round() as usize);
    let line = |second: usize| {
        let forecast = series.forecast_p95[second].map_or(String::new(), bar);
        format!("{second:>4} |{:<20}|{:<20}|{forecast:<20}|", bar(series.demand[second]), bar(series.limit[second]))
    };
    let picture: Vec<String> = (0..200).step_by(4).map(line).collect();
    let header = "   s |demand              |limit               |p95 a lead ahead    |".to_owned();
    insta::assert_snapshot!([vec![header], picture, run.log].concat().join("\n"));
}
