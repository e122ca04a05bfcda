//! What a VM does on disks, in words.

use gnomon_common::wire::{DiskFlow, DiskWindow, GuestDisk, MeanMax};

use super::bench::{Bench, at, policy, report_of, vm};
use crate::io::Input;
use crate::policy::Mode;

const MIB: f64 = (1 << 20) as f64;

fn told(disk: DiskWindow) -> Option<String> {
    let mut bench = Bench::new(policy(Mode::Observe));
    let mut report = report_of("a", 0, &[(1, 0.2, 0.2)], None);
    report.vms[0].disk = Some(disk);
    bench.core.handle(at(10), Input::Report(Box::new(report)));
    bench.core.explain(vm(1)).unwrap().lines.into_iter().find(|line| line.starts_with("On disks"))
}

#[test]
fn with_a_page_cache_between_both_layers_are_told_and_without_one_there_is_one() {
    let bytes_per_s = MeanMax { mean: MIB / 4.0, max: MIB };
    let write = DiskFlow { bytes_per_s, operations_per_s: 0.5, ..DiskFlow::default() };
    let host = DiskWindow { write, queue_depth: 0.25, ..DiskWindow::default() };
    let below = "On disks it reads 0.00 and writes 0.25 MiB/s in 0.5 requests/s, with 0.25 under way in the mean.";
    assert_eq!(told(host.clone()).as_deref(), Some(below));
    let disk = |target: &str| GuestDisk {
        target: target.to_owned(),
        read_bytes_per_s: MIB,
        write_bytes_per_s: 2.0 * MIB,
        read_operations_per_s: 64.0,
        write_operations_per_s: 128.0,
    };
    let above = "Its guest reads 2.00 and writes 4.00 MiB/s in 384.0 requests/s on vda, vdb, with the host's page cache between.";
    let both = DiskWindow { guest: vec![disk("vda"), disk("vdb")], ..host };
    assert_eq!(told(both), Some(format!("{below} {above}")));
}
