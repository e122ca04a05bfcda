//! What Gnomon says of a VM's disks is true: against QEMU's own counters and the rates at which the guest reads and writes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::{DiskFlow, DiskWindow, GuestDisk, ProcessIo};
use gnomon_e2e::{now_ms, observing, redefine, skipped, wait_for};
use serde_json::Value;
use xtask::lab::{Guest, GuestOptions, Host, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const MIB: u64 = 1 << 20;
const WRITTEN_BYTES_PER_S: u64 = 2 * MIB;
const READ_BYTES_PER_S: u64 = MIB;
const SPAN: Duration = Duration::from_secs(20);
/// Length of a window of a stack's agent, in seconds.
const WINDOW_S: f64 = 1.0;
/// How far the layers may be apart.
const TOLERANCE: f64 = 0.05;

/// How QEMU may hand its I/O to the kernel, each with a guest of its own.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    io: &'static str,
    cache: &'static str,
}

const WAYS: [Way; 4] = [
    Way { name: "native", io: "native", cache: "none" },
    Way { name: "pool", io: "threads", cache: "none" },
    Way { name: "uring", io: "io_uring", cache: "none" },
    Way { name: "cached", io: "threads", cache: "writeback" },
];

#[test]
fn what_a_guest_reads_and_writes_is_told_as_qemu_counts_it_however_it_hands_it_over() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("disk", 1))?;
    let host = lab.hosts()[0].clone();
    let ways: Vec<Way> = ways().collect();
    let guests = ways.iter().map(|way| busy(&lab, &host, way)).collect::<Result<Vec<_>>>()?;
    lab.boot(&guests)?;
    let stack = Stack::start(lab, observing(), &AgentSettings::default())?;
    for (guest, way) in guests.iter().zip(&ways) {
        wait_for("the guest's disk to be told", Duration::from_secs(40), || {
            let is_told = |disk: &DiskWindow| disk.process.is_some() && disk.guest.is_empty() == (way.cache == "none");
            Ok(told(&stack, guest).is_ok_and(|(_, disk)| disk.as_ref().is_some_and(is_told)))
        })?;
    }
    let mut seen = guests.iter().map(Seen::begin).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    while began.elapsed() < SPAN {
        thread::sleep(Duration::from_millis(50));
        for (guest, seen) in guests.iter().zip(&mut seen) {
            let (start_ms, disk) = told(&stack, guest)?;
            if start_ms > seen.last_ms {
                seen.last_ms = start_ms;
                seen.windows.extend(disk);
            }
        }
    }
    for ((guest, way), seen) in guests.iter().zip(&ways).zip(&seen) {
        let qemu = seen.qemu(guest)?;
        println!("{}", way.name);
        let compared = if way.cache == "none" { one_layer(seen, &qemu) } else { two_layers(seen, &qemu) };
        compared.with_context(|| format!("guest {}", way.name))?;
    }
    Ok(())
}

/// What is known of a guest so far. QEMU is asked before the first window begins and after the last has ended: what these count, QEMU has counted.
struct Seen {
    began: Instant,
    before: BlockStats,
    /// Start of the last window.
    last_ms: u64,
    windows: Vec<DiskWindow>,
}

impl Seen {
    fn begin(guest: &Guest) -> Result<Self> {
        let (before, began) = (BlockStats::of(guest)?, Instant::now());
        Ok(Self { began, before, last_ms: now_ms(), windows: Vec::new() })
    }

    /// What QEMU did meanwhile, reads and writes.
    fn qemu(&self, guest: &Guest) -> Result<[Done; 2]> {
        let (after, span_s) = (BlockStats::of(guest)?, self.began.elapsed().as_secs_f64());
        let done = |after: Counted, before: Counted| Done {
            bytes_per_s: (after.bytes - before.bytes) as f64 / span_s,
            operations_per_s: (after.operations - before.operations) as f64 / span_s,
            under_way_s: (after.total_ns - before.total_ns) as f64 / 1e9,
        };
        Ok([done(after.read, self.before.read), done(after.write, self.before.write)])
    }

    fn mean(&self, value: impl Fn(&DiskWindow) -> f64) -> f64 {
        self.windows.iter().map(value).sum::<f64>() / self.windows.len() as f64
    }

    /// What the windows tell of requests in one direction.
    fn told(&self, flow: fn(&DiskWindow) -> &DiskFlow) -> Done {
        let stay_ms = |flow: &DiskFlow| flow.device_ms.unwrap_or(0.0) + flow.queued_ms.unwrap_or(0.0);
        let stays = |window: &DiskWindow| flow(window).operations_per_s * WINDOW_S * stay_ms(flow(window)) / 1e3;
        Done {
            bytes_per_s: self.mean(|window| flow(window).bytes_per_s.mean),
            operations_per_s: self.mean(|window| flow(window).operations_per_s),
            under_way_s: self.windows.iter().map(stays).sum(),
        }
    }
}

/// Requests in one direction.
#[derive(Clone, Copy, Debug)]
struct Done {
    bytes_per_s: f64,
    operations_per_s: f64,
    /// How long they took, all together, in seconds.
    under_way_s: f64,
}

/// Those that this kernel has.
fn ways() -> impl Iterator<Item = Way> {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let has_io_uring = disabled.trim() == "0";
    if !has_io_uring {
        println!("without io_uring, which this kernel does not let everyone use");
    }
    WAYS.into_iter().filter(move |way| has_io_uring || way.io != "io_uring")
}

/// Defines a guest that reads from and writes to a disk.
fn busy(lab: &Lab, host: &Host, way: &Way) -> Result<Guest> {
    let Way { name, io, cache } = way;
    let guest = lab.define(host, &GuestOptions::new(name, "constant:0.05".parse()?))?;
    // Written, so that the host's file system has its blocks and adds no writes of its own.
    let disk = host.dir().join(format!("{name}.img"));
    fs::write(&disk, vec![1; 4 * MIB as usize])?;
    fs::File::open(&disk)?.sync_all()?;
    redefine(&guest, |xml| {
        let devices = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='{cache}' io='{io}'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk></devices>",
            disk.display()
        );
        let xml = xml.replace("</devices>", &devices);
        let rates = format!("gnomon.disk={WRITTEN_BYTES_PER_S} gnomon.disk_read={READ_BYTES_PER_S}");
        Ok(xml.replace("gnomon.load=", &format!("{rates} gnomon.load=")))
    })?;
    Ok(guest)
}

/// The start of the latest window and the guest's disks in it.
fn told(stack: &Stack, guest: &Guest) -> Result<(u64, Option<DiskWindow>)> {
    let view: Value = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?;
    let start_ms = view["last_window"].as_u64().context("no window yet")?;
    Ok((start_ms, serde_json::from_value(view["disk"].clone())?))
}

/// Without a page cache between, what the windows tell of the host's disks is what QEMU did for the guest. Requests are one for one: the guest has one
/// of each direction under way, in areas apart, so that there is nothing to merge, and each is a sixteenth of what any layer splits.
fn one_layer(seen: &Seen, qemu: &[Done; 2]) -> Result<()> {
    ensure!(seen.windows.len() >= 15, "only {} windows", seen.windows.len());
    let process = |of: fn(ProcessIo) -> f64| seen.mean(|disk| disk.process.map_or(0.0, of));
    let [read, write] = *qemu;
    let directions = [
        ("reads", seen.told(|disk| &disk.read), read, process(|io| io.read_bytes_per_s), READ_BYTES_PER_S),
        ("writes", seen.told(|disk| &disk.write), write, process(|io| io.write_bytes_per_s), WRITTEN_BYTES_PER_S),
    ];
    for (what, ebpf, qemu, process, guest) in directions {
        println!("  {what}: guest {guest} B/s, QEMU {qemu:.3?}, eBPF {ebpf:.3?}, /proc/PID/io {process:.0} B/s");
        for (whose, rate) in [("QEMU", qemu.bytes_per_s), ("/proc/PID/io", process), ("the guest", guest as f64)] {
            close(&format!("bytes of {what} by eBPF and by {whose}"), ebpf.bytes_per_s, rate)?;
        }
        close(&format!("{what} by eBPF and by QEMU"), ebpf.operations_per_s, qemu.operations_per_s)?;
        // A request's time in the host's queue and at the device lies within its time in QEMU, which ends when QEMU gets a CPU to look. So this is a
        // bound from one side only.
        ensure!(
            ebpf.under_way_s > 0.0 && ebpf.under_way_s <= qemu.under_way_s,
            "{what} took {:.3} s by eBPF, {:.3} s by QEMU",
            ebpf.under_way_s,
            qemu.under_way_s
        );
    }
    let last = seen.windows.last().context("no window")?;
    for flow in [&last.read, &last.write] {
        ensure!(flow.device_ms.is_some_and(|ms| ms > 0.0), "{last:?}");
    }
    ensure!(last.latency.quantile_ms(0.5).is_some() && seen.mean(|disk| disk.queue_depth) > 0.0, "{last:?}");
    ensure!(last.disks.iter().any(|disk| disk.latency.quantile_ms(0.5).is_some()), "{last:?}");
    ensure!(seen.windows.iter().all(|disk| disk.guest.is_empty()), "QEMU was asked for what the block layer tells");
    Ok(())
}

/// With one, what the guest does is told, and apart from it what reaches a disk: of these reads nothing, and of writes what is written back now and
/// then, since it is the same MiB each time.
fn two_layers(seen: &Seen, qemu: &[Done; 2]) -> Result<()> {
    ensure!(seen.windows.len() >= 15, "only {} windows", seen.windows.len());
    ensure!(
        seen.windows.iter().all(|disk| disk.guest.len() == 1 && disk.guest[0].target == "vda"),
        "{:?}",
        seen.windows
    );
    let guest = |of: fn(&GuestDisk) -> f64| seen.mean(|disk| disk.guest.iter().map(of).sum());
    let guest = [
        (guest(|disk| disk.read_bytes_per_s), guest(|disk| disk.read_operations_per_s)),
        (guest(|disk| disk.write_bytes_per_s), guest(|disk| disk.write_operations_per_s)),
    ];
    let host = [seen.told(|disk| &disk.read), seen.told(|disk| &disk.write)];
    let rates = [("reads", READ_BYTES_PER_S), ("writes", WRITTEN_BYTES_PER_S)];
    for ((((what, rate), (bytes_per_s, operations_per_s)), host), qemu) in
        rates.into_iter().zip(guest).zip(host).zip(qemu)
    {
        println!(
            "  {what}: guest's layer {bytes_per_s:.0} B/s in {operations_per_s:.1}, QEMU {qemu:.3?}, host's layer {host:.3?}"
        );
        close(&format!("bytes of {what} by the guest's layer and by the guest"), bytes_per_s, rate as f64)?;
        close(&format!("bytes of {what} by the guest's layer and by QEMU"), bytes_per_s, qemu.bytes_per_s)?;
        close(&format!("{what} by the guest's layer and by QEMU"), operations_per_s, qemu.operations_per_s)?;
        ensure!(host.bytes_per_s < bytes_per_s / 2.0, "{what} went past the page cache: {host:?}");
    }
    let [read, _] = host;
    ensure!(read.bytes_per_s <= TOLERANCE * READ_BYTES_PER_S as f64, "what the cache has was read: {read:?}");
    Ok(())
}

fn close(what: &str, one: f64, other: f64) -> Result<()> {
    ensure!((one - other).abs() <= TOLERANCE * other, "{what}: {one:.1} and {other:.1} a second");
    Ok(())
}

/// What QEMU has done for the guest, by libvirt's block statistics.
struct BlockStats {
    read: Counted,
    write: Counted,
}

#[derive(Clone, Copy)]
struct Counted {
    bytes: u64,
    operations: u64,
    total_ns: u64,
}

impl BlockStats {
    fn of(guest: &Guest) -> Result<Self> {
        let text = guest.host().virsh(["domblkstat", guest.name(), "vda"])?;
        let number = |key: &str| {
            let value =
                text.lines().find_map(|line| line.split_once(&format!(" {key} "))?.1.trim().parse::<u64>().ok());
            value.with_context(|| format!("no {key} in {text}"))
        };
        let counted = |way: &str| -> Result<Counted> {
            Ok(Counted {
                bytes: number(&format!("{way}_bytes"))?,
                operations: number(&format!("{way}_req"))?,
                total_ns: number(&format!("{way}_total_times"))?,
            })
        };
        Ok(Self { read: counted("rd")?, write: counted("wr")? })
    }
}
