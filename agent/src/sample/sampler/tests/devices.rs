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
