//! What Gnomon says of a VM's traffic is true: against what was sent, by a guest that answers every packet.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{InterfaceWindow, QueueWindow, Traffic};
use gnomon_e2e::{holes, observing, redefine, run, skipped, wait_for};
use xtask::lab::{GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

/// How many echo requests are sent, how many bytes of data each carries, and how long it takes.
const PACKETS: u32 = 1_000;
const DATA_BYTES: u32 = 1_000;
const SPAN_S: u32 = 10;

/// How often it is tried.
const ATTEMPTS: u32 = 3;

/// Headers: ICMP (RFC 792), IPv4 without options (RFC 791), Ethernet without a tag.
const HEADER_BYTES: u32 = 8 + 20 + 14;

/// Both sides also look for each other (ARP) and tell of themselves (IPv6): so many packets at most are not ours.
const OTHERS_MAX: f64 = 60.0;

/// The mean of busybox's `round-trip min/avg/max = 0.2/0.5/1.9 ms`.
fn mean_answer_ms(output: &str) -> Result<f64> {
    let times = output.split_once("min/avg/max = ").context("ping tells no times")?.1;
    Ok(times.split('/').nth(1).context("ping tells no mean")?.parse()?)
}

#[test]
fn packets_and_bytes_of_an_interface_are_those_that_were_sent_and_answered() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("network", 1))?;
    let host = lab.hosts()[0].clone();
    run(&host, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
    run(&host, "ip", &["address", "add", "10.88.0.1/24", "dev", "net0"])?;
    run(&host, "ip", &["link", "set", "net0", "up"])?;
    let guest = lab.define(&host, &GuestOptions::new("g1", "constant:0.1".parse()?))?;
    redefine(&guest, |xml| {
        let interface = "<interface type='bridge'><source bridge='net0'/><model type='virtio'/></interface></devices>";
        let xml = xml.replace("</devices>", interface);
        Ok(xml.replace("gnomon.load=", "gnomon.address=10.88.0.2/24 gnomon.load="))
    })?;
    lab.boot(std::slice::from_ref(&guest))?;
    let stack = Stack::start(lab, observing(), &AgentSettings::default())?;
    // The latest window of one second: when it began, and what its interfaces carried.
    let window = || -> Result<(u64, Vec<InterfaceWindow>)> {
        let view = stack.api().get("/api/v1/vms/g1")?;
        let start = serde_json::from_value::<Timestamp>(view["last_window"].clone())?;
        Ok((start.unix_ms(), serde_json::from_value(view["interfaces"].clone())?))
    };
    wait_for("the agent to know the interface", Duration::from_secs(30), || {
        Ok(window().is_ok_and(|(_, interfaces)| !interfaces.is_empty()))
    })?;
    let list = host.virsh(["domiflist", "g1"])?;
    let tap = list.split_whitespace().find(|word| word.starts_with("vnet")).context("no tap")?;

    let measure = || -> Result<()> {
        let (count, data) = (PACKETS.to_string(), DATA_BYTES.to_string());
        let interval = (f64::from(SPAN_S) / f64::from(PACKETS)).to_string();
        let ping = ["ping", "-q", "-c", &count, "-i", &interval, "-s", &data, "10.88.0.2"];
        let mut windows = BTreeMap::new();
        let output = thread::scope(|scope| -> Result<String> {
            let ping = scope.spawn(|| {
                let output = run(&host, "busybox", &ping);
                // Until the last window has arrived.
                thread::sleep(Duration::from_secs(3));
                output
            });
            while !ping.is_finished() {
                let (start, seen) = window()?;
                windows.insert(start, seen);
                thread::sleep(Duration::from_millis(200));
            }
            ping.join().map_err(|_| anyhow!("the thread of ping panicked"))?
        })?;
        ensure!(output.contains(&format!("{PACKETS} packets received")), "not all were answered: {output}");
        let starts: Vec<u64> = windows.keys().copied().collect();
        ensure!(holes(&starts, 1000).is_empty(), "windows are missing: {starts:?}");
        let told = windows.values().flatten().filter(|interface| interface.drops.is_some()).count();
        ensure!(told + 2 >= windows.len(), "why packets are dropped is told in {told} of {} windows", windows.len());
        let sum = |of: fn(&InterfaceWindow) -> &Traffic| {
            let traffic = windows.values().flatten().filter(|interface| interface.device == tap).map(of);
            traffic.fold((0.0, 0.0), |(bytes, packets), of| (bytes + of.bytes_per_s.mean, packets + of.packets_per_s))
        };
        let sums = (sum(|interface| &interface.received), sum(|interface| &interface.sent));
        let bytes = f64::from(PACKETS * (DATA_BYTES + HEADER_BYTES));
        for (direction, (seen_bytes, seen_packets)) in [("received", sums.0), ("sent", sums.1)] {
            println!("{direction}: {seen_packets:.0} packets and {seen_bytes:.0} bytes of {PACKETS} and {bytes}");
            let extra = seen_packets - f64::from(PACKETS);
            ensure!((-0.5..=OTHERS_MAX).contains(&extra), "{direction}: {seen_packets} packets, not {PACKETS}");
            ensure!(
                (-0.01..=0.02).contains(&(seen_bytes / bytes - 1.0)),
                "{direction}: {seen_bytes} bytes, not {bytes}"
            );
        }
        let queues: Vec<_> = windows.values().flatten().filter_map(|interface| interface.queue).collect();
        let timed: f64 = queues.iter().flat_map(|queue| queue.waits.0).map(f64::from).sum();
        let wait_ms =
            QueueWindow::mean_wait_ms(queues.iter()).context("no packet was timed until its guest took it")?;
        println!("{timed:.0} packets waited {wait_ms:.3} ms in the mean");
        ensure!(
            (0.9 * f64::from(PACKETS)..=f64::from(PACKETS) + OTHERS_MAX).contains(&timed),
            "{timed} of {PACKETS} packets were timed"
        );
        // One request is under way at a time: none waits for longer than until it is answered.
        let answered_ms = mean_answer_ms(&output)?;
        ensure!(wait_ms > 0.0 && wait_ms < answered_ms, "{wait_ms} ms, and answered after {answered_ms} ms");
        Ok(())
    };
    // A machine that stalls for a second skips a sample, and what went through then is in no window: that is not what is tested.
    for _ in 1..ATTEMPTS {
        match measure() {
            Ok(()) => return Ok(()),
            Err(error) => println!("once more: {error:#}"),
        }
    }
    measure()
}
