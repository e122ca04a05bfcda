//! The queue probe on the running kernel, with devices that are read from when the test likes. The test says so and passes where it may not load
//! eBPF programs or make a network namespace.

use super::QueueProbe;
use super::test_taps::{load_apart, send, taps};
use gnomon_common::abi::block::latency_bucket;
use gnomon_common::abi::queues::{TIMED_PER_TAP_MAX, TapQueue};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

/// Packets that the devices take before they are full.
const QUEUE: u64 = 200;

/// How long packets are left to wait.
const WAIT: Duration = Duration::from_millis(40);

fn packets(queue: &TapQueue) -> u64 {
    queue.waits_log2.iter().sum()
}

/// Takes packets of the test's own from a tap: the kernel sends some as well (it looks for routers).
fn take(mut tap: &File, packets: u64) {
    let mut packet = [0; 2048];
    let mut left = packets;
    while left > 0 {
        let length = tap.read(&mut packet).unwrap();
        // Ethernet, IPv4, UDP.
        if length == 14 + 20 + 8 + 64 {
            left -= 1;
        }
    }
}

#[test]
fn packets_are_timed_until_they_are_taken() {
    let Some(mut probe) = load_apart(QueueProbe::load) else { return };
    let [(tap, watched), (other_tap, other)] = taps(QUEUE);
    probe.watch(&BTreeSet::from([watched])).unwrap();
    let before = probe.drain().unwrap()[&watched];
    let sent = Instant::now();
    send(10);
    let queued = Instant::now();
    thread::sleep(WAIT);
    let least = queued.elapsed();
    take(&tap, 10);
    take(&other_tap, 10);
    let most = sent.elapsed();
    let told = probe.drain().unwrap();
    assert_eq!(told.keys().collect::<Vec<_>>(), [&watched], "device {other} is not watched");
    let after = told[&watched];
    // From `least` on: what the kernel itself sent may have waited for less or longer.
    let long = |queue: &TapQueue| queue.waits_log2[latency_bucket(least.as_nanos() as u64)..].iter().sum::<u64>();
    assert!((10..30).contains(&(long(&after) - long(&before))), "{before:?}\n{after:?}");
    let waited_ns = after.waited_ns - before.waited_ns;
    let number = packets(&after) - packets(&before);
    assert!(u128::from(waited_ns) >= 10 * least.as_nanos(), "{waited_ns} ns of {least:?} each");
    assert!(u128::from(waited_ns) <= u128::from(number) * most.as_nanos(), "{waited_ns} ns, of {most:?} each at most");
    probe.watch(&BTreeSet::new()).unwrap();
    assert!(probe.drain().unwrap().is_empty(), "nothing is watched");
}

#[test]
fn a_device_that_nobody_reads_keeps_few_places_and_gives_them_back() {
    let Some(mut probe) = load_apart(QueueProbe::load) else { return };
    let [(tap, stuck), (other_tap, other)] = taps(QUEUE);
    probe.watch(&BTreeSet::from([stuck, other])).unwrap();
    let before = probe.drain().unwrap();
    send(TIMED_PER_TAP_MAX + 50);
    let waiting = probe.drain().unwrap();
    assert!(waiting[&stuck].timed <= TIMED_PER_TAP_MAX, "{:?}", waiting[&stuck]);
    // Two packets of one place are not timed at once, and some of the places are other devices'.
    assert!(waiting[&stuck].timed >= TIMED_PER_TAP_MAX / 2, "{:?}", waiting[&stuck]);
    assert_eq!(packets(&waiting[&stuck]), packets(&before[&stuck]), "nobody took any");
    take(&other_tap, TIMED_PER_TAP_MAX + 50);
    take(&tap, TIMED_PER_TAP_MAX + 50);
    let taken = probe.drain().unwrap();
    assert!(taken[&stuck].timed < 10, "places were not given back: {:?}", taken[&stuck]);
    assert!(packets(&taken[&stuck]) >= TIMED_PER_TAP_MAX / 2, "{:?}", taken[&stuck]);
    // A full device drops: what is dropped was not taken, and keeps no place.
    let before = probe.drain().unwrap()[&stuck];
    send(QUEUE * 2);
    drop(tap);
    let dropped = probe.drain().unwrap()[&stuck];
    assert!(packets(&dropped) - packets(&before) < 10, "{before:?}\n{dropped:?}");
    assert!(dropped.timed < 10, "{dropped:?}");
}
