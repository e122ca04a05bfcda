//! Gnomon on a kernel that is not the developer's: Debian's, with cgroup version 2 alone and guests under KVM, in an emulated
//! machine.
//!
//! These tests need what the lab needs, and a Debian to make the machine's disk of; elsewhere each says what is missing and
//! passes. The first run makes the disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::Progress;
use xtask::lab::full::{FullLab, Options, check_machine};
use xtask::stack::full::{check, check_migration};

/// Says why a test does nothing on this machine.
fn skipped(machines: usize) -> bool {
    let missing = check_machine(machines);
    if let Err(missing) = &missing {
        println!("SKIPPED, no full lab on this machine: {missing:#}");
    }
    missing.is_err()
}

fn up(name: &str, machines: usize) -> Result<FullLab> {
    let options = Options { progress: Progress::new(|what| println!("{what}")), ..Options::new(name, machines) };
    FullLab::up(&options)
}

#[test]
fn the_agent_measures_and_resizes_a_kvm_guest_on_debians_kernel_with_cgroup_version_2() -> Result<()> {
    if skipped(1) {
        return Ok(());
    }
    let findings = check(up("full", 1)?)?;
    println!("{findings}");
    Ok(())
}

/// The light lab on a stock machine of today, which has no hierarchy of version 1.
#[test]
fn the_light_lab_works_where_there_is_cgroup_version_2_alone() -> Result<()> {
    if skipped(1) {
        return Ok(());
    }
    let lab = up("light", 1)?;
    let host = &lab.machines()[0];
    let xtask = |arguments: &str, patience_s: u64| {
        let script = format!("CARGO_TARGET_DIR=/lab/target /lab/bin/xtask lab --name inner {arguments}");
        host.run_within(&script, Duration::from_secs(patience_s)).with_context(|| format!("xtask lab {arguments}"))
    };
    const UP: &str = "up --hosts 1 --capacity-cores 0.8";
    const BOOT: &str = "boot h1 g1 --kvm --quota-cores 0.5 --load constant:0.2";
    xtask(UP, 180)?;
    let group = "/sys/fs/cgroup/gnomon-inner-h1";
    let capacity = host.run(&format!("cat {group}/machine/cpu.max"))?;
    ensure!(capacity.trim() == "80000 100000", "the guests' ceiling is {capacity:?}");

    // The emulated KVM hangs a part of its guests while they boot: once, the lab begins anew.
    if let Err(hang) = xtask(BOOT, 240) {
        println!("begins anew: {hang:#}");
        xtask("down", 60)?;
        xtask(UP, 180)?;
        xtask(BOOT, 240)?;
    }
    let guest = format!("{group}/machine/qemu-1-g1.libvirt-qemu");
    let quota = host.run(&format!("cat {guest}/cpu.max"))?;
    ensure!(quota.trim() == "50000 100000", "the guest's quota is {quota:?}");
    let used_us = || -> Result<u64> {
        let text = host.run(&format!("sed -n 's/^usage_usec //p' {guest}/cpu.stat"))?;
        text.trim().parse().with_context(|| format!("{text:?} in cpu.stat"))
    };
    let before_us = used_us()?;
    ensure!(before_us > 0, "the guest's group counts nothing");
    let seen = xtask("shell h1 -- virsh --quiet --connect qemu:///system list --name", 60)?;
    ensure!(seen.trim() == "g1", "the inner host's libvirt lists {seen:?}");
    ensure!(used_us()? > before_us, "the guest does not run");

    xtask("down", 60)?;
    let left =
        host.run("find /sys/fs/cgroup -name 'gnomon-*'; ps -e -o args | grep -F gnomon-inner | grep -v grep || true")?;
    ensure!(left.trim().is_empty(), "the inner lab left {left}");
    lab.down()
}

/// Two emulated machines on the CPUs of one: minutes.
#[test]
#[ignore = "two emulated machines: `cargo xtask test --full-lab`"]
fn both_agents_follow_a_guest_that_migrates_between_two_hosts() -> Result<()> {
    if skipped(2) {
        return Ok(());
    }
    let moved = check_migration(up("moves", 2)?)?;
    println!("{moved:?}");
    Ok(())
}
