//! What Gnomon says of a VM's disks is true: against QEMU's own counters and the rate at which the guest writes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::DiskWindow;
use gnomon_e2e::{observing, redefine, skipped, wait_for};
use serde_json::Value;
use xtask::lab::{Guest, GuestOptions, Host, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const MIB: u64 = 1 << 20;
const BYTES_PER_S: u64 = 2 * MIB;
const SPAN: Duration = Duration::from_secs(20);
/// How far the layers may be apart.
const TOLERANCE: f64 = 0.05;

/// How QEMU may hand its I/O to the kernel, each with a guest of its own.
const WAYS: [(&str, &str); 3] = [("native", "native"), ("pool", "threads"), ("uring", "io_uring")];

#[test]
fn what_a_guest_writes_is_told_as_qemu_counts_it_however_it_hands_it_over() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("disk", 1))?;
    let host = lab.hosts()[0].clone();
    let guests = ways().map(|(name, io)| writing(&lab, &host, name, io)).collect::<Result<Vec<_>>>()?;
    lab.boot(&guests)?;
    let stack = Stack::start(lab, observing(), &AgentSettings::default())?;
    for guest in &guests {
        wait_for("the guest's disk to be told", Duration::from_secs(30), || {
            Ok(told(&stack, guest).is_ok_and(|(_, disk)| disk.is_some_and(|disk| disk.process.is_some())))
        })?;
    }
    let mut seen = guests
        .iter()
        .map(|guest| Ok(Seen { last_ms: told(&stack, guest)?.0, before: written(guest)?, windows: Vec::new() }))
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    while began.elapsed() < SPAN {
        thread::sleep(Duration::from_millis(50));
        for (guest, seen) in guests.iter().zip(&mut seen) {
            if let (start_ms, Some(disk)) = told(&stack, guest)?
                && start_ms > seen.last_ms
            {
                seen.last_ms = start_ms;
                seen.windows.push(disk);
            }
        }
    }
    for (guest, seen) in guests.iter().zip(&seen) {
        let qemu = (written(guest)? - seen.before) as f64 / began.elapsed().as_secs_f64();
        compare(&seen.windows, qemu).with_context(|| format!("guest {}", guest.name()))?;
    }
    Ok(())
}

/// What is known of a guest so far.
struct Seen {
    /// Start of the last window.
    last_ms: u64,
    /// By QEMU's count.
    before: u64,
    windows: Vec<DiskWindow>,
}

/// Those that this kernel has.
fn ways() -> impl Iterator<Item = (&'static str, &'static str)> {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let has_io_uring = disabled.trim() == "0";
    if !has_io_uring {
        println!("without io_uring, which this kernel does not let everyone use");
    }
    WAYS.into_iter().filter(move |(_, io)| has_io_uring || *io != "io_uring")
}

/// Defines a guest that writes to a disk.
fn writing(lab: &Lab, host: &Host, name: &str, io: &str) -> Result<Guest> {
    let guest = lab.define(host, &GuestOptions::new(name, "constant:0.05".parse()?))?;
    // Written, so that the host's file system has its blocks and adds no writes of its own.
    let disk = host.dir().join(format!("{name}.img"));
    fs::write(&disk, vec![1; 4 * MIB as usize])?;
    fs::File::open(&disk)?.sync_all()?;
    redefine(&guest, |xml| {
        let devices = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='{io}'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk></devices>",
            disk.display()
        );
        let xml = xml.replace("</devices>", &devices);
        Ok(xml.replace("gnomon.load=", &format!("gnomon.disk={BYTES_PER_S} gnomon.load=")))
    })?;
    Ok(guest)
}

/// The start of the latest window and the guest's disks in it.
fn told(stack: &Stack, guest: &Guest) -> Result<(u64, Option<DiskWindow>)> {
    let view: Value = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?;
    let start_ms = view["last_window"].as_u64().context("no window yet")?;
    Ok((start_ms, serde_json::from_value(view["disk"].clone())?))
}

/// What the windows tell, beside what QEMU wrote in that time, in bytes per second.
fn compare(windows: &[DiskWindow], qemu: f64) -> Result<()> {
    ensure!(windows.len() >= 15, "only {} windows", windows.len());
    let mean = |value: &dyn Fn(&DiskWindow) -> f64| windows.iter().map(value).sum::<f64>() / windows.len() as f64;
    let ebpf = mean(&|disk| disk.write.bytes_per_s.mean);
    let process = mean(&|disk| disk.process.map_or(0.0, |process| process.write_bytes_per_s));
    let (operations, depth) = (mean(&|disk| disk.write.operations_per_s), mean(&|disk| disk.queue_depth));
    let last = windows.last().context("no window")?;
    println!(
        "guest {BYTES_PER_S} B/s, QEMU {qemu:.0}, eBPF {ebpf:.0}, /proc/PID/io {process:.0}; {operations:.1} writes/s of {:.3} ms, \
         depth {depth:.4}, disks {:?}",
        last.write.device_ms.unwrap_or(f64::NAN),
        last.disks.iter().map(|disk| &disk.name).collect::<Vec<_>>()
    );
    for (whose, rate) in [("QEMU", qemu), ("/proc/PID/io", process)] {
        ensure!((ebpf - rate).abs() <= TOLERANCE * rate, "eBPF says {ebpf:.0} B/s, {whose} {rate:.0}");
    }
    ensure!((ebpf - BYTES_PER_S as f64).abs() <= TOLERANCE * BYTES_PER_S as f64, "eBPF says {ebpf:.0} B/s");
    ensure!(last.write.device_ms.is_some_and(|ms| ms > 0.0) && last.latency.quantile_ms(0.5).is_some(), "{last:?}");
    ensure!(last.disks.iter().any(|disk| disk.latency.quantile_ms(0.5).is_some()) && depth > 0.0, "{last:?}");
    Ok(())
}

/// Bytes that QEMU has written for the guest, by libvirt's block statistics.
fn written(guest: &Guest) -> Result<u64> {
    let text = guest.host().virsh(["domblkstat", guest.name(), "vda"])?;
    let value = text.lines().find_map(|line| line.split_once("wr_bytes")?.1.trim().parse().ok());
    value.with_context(|| format!("no wr_bytes in {text}"))
}
