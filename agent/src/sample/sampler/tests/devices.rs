//! Which devices are looked at, and what is told of them.

use super::reader::{running_devices, taps};
use super::*;
use std::collections::BTreeMap;

#[test]
fn queues_are_watched_at_the_taps_of_vms_that_run_and_at_no_macvtap() {
    let bench = Bench::new();
    let watched = |state, is_macvtap| {
        // A device that every host has.
        let interfaces = vec![VmDevice { is_macvtap, ..tap("lo") }, tap("gnomon-no-such")];
        bench.publish(vec![VmFacts { interfaces, ..bench.facts(state) }], true);
        let inventory = bench.publish.borrow();
        let devices = running_devices(&inventory);
        let taps = taps(&inventory, &devices);
        (devices, taps)
    };
    let (none, lo) = (BTreeMap::new(), BTreeMap::from([("lo".to_owned(), 1)]));
    assert_eq!(watched(VmState::Running, false), (lo.clone(), lo.clone()));
    assert_eq!(watched(VmState::Running, true), (lo, none.clone()), "drops are counted there");
    assert_eq!(watched(VmState::Paused, false), (none.clone(), none));
}
