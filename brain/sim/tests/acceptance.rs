use gnomon_sim::demo::{VMS, demo_scenario};
use gnomon_sim::run;
use gnomon_sim::score::{is_given_back, is_met_ahead, reactive_at_slack, service, surges, unforced_rises};
use gnomon_sim::scenario::Load;

#[test]
fn probe() {
    let (mut met, mut back, mut all) = (0, 0, 0);
    let mut worst = 0;
    for seed in 0..100 {
        let scenario = demo_scenario(seed, 800);
        let Load::Day { period_s, phase_s, .. } = scenario.vms[0].load else { unreachable!() };
        let load = scenario.vms[0].load.clone();
        let headroom = scenario.policy.cpu.headroom;
        let outcome = run(scenario);
        let warm = phase_s + 3.0 * period_s;
        let series = outcome.vm(VMS[0]);
        let judged: Vec<_> = surges(&load, warm, 800.0).into_iter().take(5).collect();
        let (m, b) = (
            judged.iter().filter(|surge| is_met_ahead(series, surge, 6.0)).count(),
            judged.iter().filter(|surge| is_given_back(series, surge, period_s)).count(),
        );
        met += m; back += b; all += judged.len();
        if m + 1 < judged.len() || b < judged.len() { worst += 1; println!("seed {seed}: met {m} back {b} of {} period {period_s:.1}", judged.len()); }
        let ours = service(&series.demand, &series.limit, warm as usize);
        let theirs = reactive_at_slack(&series.demand, 6, 1.0, warm as usize, ours.slack_cores);
        if seed < 10 { println!("{ours:?} vs {theirs:?}"); }
        for name in &VMS[1..] {
            let rises = unforced_rises(outcome.vm(name), headroom);
            let surge = outcome.log.iter().filter(|line| line.contains("forecast demand of")).count();
            let season = outcome.vm(name).season_s.iter().flatten().count();
            if !rises.is_empty() || season > 0 { println!("seed {seed} {name}: {rises:?} {season} surge lines {surge}"); }
        }
    }
    println!("met {met} back {back} of {all}, bad seeds {worst}");
}

#[test]
fn show() {
    let outcome = run(demo_scenario(78, 500));
    println!("{}", outcome.to_text());
}

#[test]
fn why() {
    let mut world = gnomon_sim::World::new(demo_scenario(78, 500));
    for s in 0..500 {
        let snap = world.step();
        if s % 40 == 39 {
            let e = world.core().unwrap().explain(snap.vms[0].vm).unwrap();
            println!("{s} {:#?}", e.lines);
        }
    }
}
