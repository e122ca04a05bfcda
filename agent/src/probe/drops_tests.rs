//! The drop probe on the running kernel, with a device that nobody reads from. The test says so and passes where it may not load eBPF programs
//! or make a network namespace.

use super::DropProbe;
use super::test_taps::{load_apart, send, taps};
use std::collections::BTreeSet;

/// Packets that the device takes before it is full, and packets sent.
const QUEUE: u64 = 20;
const SENT: u64 = 120;

#[test]
fn packets_that_a_full_device_drops_are_counted_with_their_reason() {
    let Some(mut probe) = load_apart(DropProbe::load) else { return };
    let [(_tap, watched), (_other_tap, other)] = taps(QUEUE);
    probe.watch(&BTreeSet::from([watched])).unwrap();
    let before = probe.drain().unwrap().remove(&watched).unwrap_or_default();
    send(SENT);
    let drops = probe.drain().unwrap();
    assert_eq!(drops.keys().collect::<Vec<_>>(), [&watched], "device {other} is not watched");
    let counted: Vec<(String, u64)> = drops[&watched]
        .iter()
        .map(|(&reason, count)| (probe.reason(reason), count - before.get(&reason).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    println!("{counted:?}");
    let full: u64 = counted.iter().filter(|(reason, _)| reason == "full_ring").map(|(_, count)| count).sum();
    // The kernel's own packets (it looks for routers) may take places in the queue, or be dropped as well.
    assert!((SENT - QUEUE..SENT - QUEUE + 20).contains(&full), "{full} of {SENT} were dropped: {counted:?}");
    assert_eq!(probe.missed().unwrap(), 0);
    probe.watch(&BTreeSet::new()).unwrap();
    send(1);
    assert!(probe.drain().unwrap().is_empty(), "nothing is watched");
    assert_eq!((probe.reason(0x0003_0007), probe.reason(u32::MAX)), ("3/7".to_owned(), "65535/65535".to_owned()));
}
