//! A VM that one of the sources refuses.

use super::*;

const SOURCES: [&str; 4] = ["cpu", "disks", "reclaim", "exits"];

/// Which sources measure the VM.
fn measured(bench: &Bench) -> Vec<&'static str> {
    let state = bench.script.0.lock().unwrap();
    let by = [
        state.counters.contains_key(&web()),
        state.disks.contains_key(&web()),
        state.reclaim.contains_key(&web()),
        state.exits.contains_key(&web()),
    ];
    SOURCES.into_iter().zip(by).filter_map(|(source, is)| is.then_some(source)).collect()
}

#[test]
fn a_vm_that_one_source_refuses_is_the_others_until_it_goes_and_is_tried_again() {
    for refusing in SOURCES {
        let mut bench = Bench::new();
        let inventory = |bench: &mut Bench, vms: Vec<VmFacts>| {
            bench.publish(vms, true);
            bench.second(0.5, 0.0);
        };
        bench.script.0.lock().unwrap().refusing = Some(refusing);
        let facts = bench.facts(VmState::Running);
        inventory(&mut bench, vec![facts.clone()]);
        let others: Vec<_> = SOURCES.into_iter().filter(|&source| source != refusing).collect();
        assert_eq!(measured(&bench), others);
        inventory(&mut bench, Vec::new());
        assert!(measured(&bench).is_empty(), "{refusing}: {:?} have it still", measured(&bench));

        inventory(&mut bench, vec![facts.clone()]);
        bench.script.0.lock().unwrap().refusing = None;
        inventory(&mut bench, vec![facts.clone()]);
        assert_eq!(measured(&bench), SOURCES, "{refusing}");
        let calls = bench.calls().len();
        inventory(&mut bench, vec![facts]);
        assert_eq!(bench.calls().len(), calls, "what all have taken is no news");
    }
}

#[test]
fn a_vm_that_starts_anew_is_forgotten_first_also_where_one_source_refused_it() {
    let mut bench = Bench::new();
    bench.script.0.lock().unwrap().refusing = Some("cpu");
    let mut facts = bench.facts(VmState::Running);
    bench.publish(vec![facts.clone()], true);
    bench.second(0.0, 0.0);
    bench.script.0.lock().unwrap().refusing = None;
    facts.process.as_mut().unwrap().start_ticks = 100;
    bench.publish(vec![facts], true);
    bench.second(0.0, 0.0);
    assert_eq!(bench.calls(), ["track [7]", "untrack", "track [7]"]);
}
