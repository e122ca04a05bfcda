//! Which devices are looked at, and what is told of them.

use super::reader::{running_devices, taps};
use super::*;
use gnomon_common::wire::DiskWindow;
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

#[test]
fn drops_and_queues_are_absent_while_their_probes_are_shed_and_where_they_cannot_be_read() {
    let mut bench = Bench::new();
    let interfaces = vec![tap("lo")];
    bench.publish(vec![VmFacts { interfaces, ..bench.facts(VmState::Running) }], true);
    let mut told = |shed, broken| {
        {
            let mut state = bench.script.0.lock().unwrap();
            (state.shed, state.broken) = (shed, broken);
        }
        for _ in 0..10 {
            let count = bench.second + 1;
            let table = format!("Inter-|\n face |bytes\n lo: {count} {count} 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n");
            write(bench.dir.path(), "proc/net/dev", &table);
            bench.second(0.5, 0.0);
        }
        let report = bench.reports.try_recv().unwrap();
        let lo = &only(&report).interfaces[0];
        let metric = |name: &str| bench.metric(name).unwrap();
        let missed = metric("gnomon_agent_network_drops_missed");
        (lo.drops.is_some(), lo.queue.is_some(), missed, metric("gnomon_agent_network_read_failures_total"))
    };
    let (working, shed, broken) = ((false, false), (true, false), (false, true));
    let mut after = |(is_shed, is_broken)| told(is_shed, is_broken);
    assert_eq!(after(working), (false, false, 7.0, 0.0), "there is nothing to compare with");
    assert_eq!(after(working), (true, true, 7.0, 0.0));
    assert_eq!(after(shed), (false, false, 0.0, 0.0), "nothing counts, which is no failure");
    assert_eq!(after(working), (false, false, 7.0, 0.0), "they began anew");
    assert_eq!(after(working), (true, true, 7.0, 0.0));
    assert_eq!(after(broken), (false, false, 7.0, 2.0));
    assert_eq!(after(working), (false, false, 7.0, 2.0));
    assert_eq!(after(working), (true, true, 7.0, 2.0));
}

#[test]
fn what_another_process_under_the_vms_pid_was_charged_with_is_not_the_vms() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    let mut charged = Vec::new();
    for second in 1..=40_u64 {
        if second == 25 {
            // The VM has ended, which the inventory does not know yet.
            write(bench.dir.path(), "proc/7/stat", "7 (cp) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0");
        }
        write(bench.dir.path(), "proc/7/io", &format!("read_bytes: 0\nwrite_bytes: {}\n", second << 21));
        bench.second(0.5, 0.0);
        let window = bench.reports.try_recv().ok();
        charged.extend(window.map(|report| only(&report).disk.as_ref().unwrap().process));
    }
    let its = charged[1].map(|process| process.write_bytes_per_s);
    assert_eq!((its, charged[2], charged[3]), (Some(f64::from(1 << 21)), None, None));
}

#[test]
fn disks_that_the_host_does_not_see_are_absent_and_not_idle() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(10, 0.5, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).disk, Some(DiskWindow::default()), "one that is seen is idle");
    bench.publish(vec![VmFacts { disks_unseen: true, ..bench.facts(VmState::Running) }], true);
    bench.seconds(10, 0.5, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).disk, None);
}
