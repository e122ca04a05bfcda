//! Which devices are looked at, and what is told of them.

use super::reader::{running_devices, taps};
use super::*;
use crate::host::inventory::guest_disks::GuestDisksReading;
use crate::host::libvirt::GuestDiskCounters;
use gnomon_common::wire::{DiskWindow, GuestDisk};
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

#[test]
fn what_no_vm_is_known_to_have_done_is_shown_and_absent_where_nothing_tells() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    let shown = |bench: &Bench| {
        ["bytes", "operations"].map(|what| {
            let metric = format!("gnomon_agent_disk_rest_{what}_per_second");
            ["read", "write"].map(|direction| bench.metric(&format!("{metric}{{direction=\"{direction}\"}}")))
        })
    };
    for second in 1..=20_u64 {
        // The script tells the rest what it tells the VM.
        let disks = BTreeMap::from([(DiskId { major: 0, minor: 99 }, writes(second * 100))]);
        bench.script.0.lock().unwrap().disks.insert(web(), disks);
        bench.second(0.5, 0.0);
    }
    assert_eq!(shown(&bench), [[Some(0.0), Some(409_600.0)], [Some(0.0), Some(100.0)]]);
    assert_eq!(bench.metric("gnomon_agent_disk_requests_missed"), Some(120.0), "as many as the script has seconds");

    bench.script.0.lock().unwrap().broken = true;
    bench.seconds(10, 0.5, 0.0);
    assert_eq!(shown(&bench), [[None; 2]; 2]);
}

/// So many of 4 KiB.
fn writes(operations: u64) -> DiskAccount {
    let done = Direction { operations, bytes: operations * 4096, ..Direction::default() };
    DiskAccount { write: done, ..DiskAccount::default() }
}

#[test]
fn what_a_guest_does_above_the_page_cache_is_told_beside_what_reaches_a_disk() {
    let mut bench = Bench::new();
    let asked = |second: u64, writes| {
        let counters = GuestDiskCounters { writes, written_bytes: writes * 512, ..GuestDiskCounters::default() };
        GuestDisksReading { start_ticks: 99, taken_ns: second * S, disks: vec![("vda".to_owned(), counters)] }
    };
    let mut told = Vec::new();
    for (second, writes) in [(101, 40), (112, 150), (123, 150)] {
        let guest_disks = Some(asked(second, writes));
        bench.publish(vec![VmFacts { guest_disks, ..bench.facts(VmState::Running) }], true);
        bench.seconds(10, 0.5, 0.0);
        let report = bench.reports.try_recv().unwrap();
        told.push(only(&report).disk.clone().unwrap());
    }
    let of_guest = |write_operations_per_s| GuestDisk {
        target: "vda".to_owned(),
        write_bytes_per_s: 512.0 * write_operations_per_s,
        write_operations_per_s,
        ..GuestDisk::default()
    };
    let guest: Vec<_> = told.iter().map(|disk| disk.guest.clone()).collect();
    assert_eq!(guest, [vec![], vec![of_guest(10.0)], vec![of_guest(0.0)]]);
    assert!(told.iter().all(|disk| disk.write.operations_per_s == 0.0), "nothing of it has reached a disk");
}
