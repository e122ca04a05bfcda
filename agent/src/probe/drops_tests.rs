//! The drop probe on the running kernel, with a device that nobody reads from. The test says so and passes where it may not load eBPF programs
//! or make a network namespace.

use super::{DropProbe, ProbeError};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;

/// Packets that the device takes before it is full, and packets sent.
const QUEUE: u64 = 20;
const SENT: u64 = 120;

/// A tap of this name in the thread's network namespace, which nobody reads from; gone with the file.
fn tap(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: an empty `struct ifreq` is one of zeros.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request of `tun(4)`, with the structure that it wants.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) }, 0, "no tap");
    file
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ifindex(name: &std::ffi::CStr) -> u32 {
    // SAFETY: a string that ends in a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Sends to a neighbour behind each of two taps.
fn send(packets: u64) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..packets {
        for address in ["10.99.1.2:9", "10.99.2.2:9"] {
            // What is dropped may be told to the sender.
            let _ = socket.send_to(&[0; 64], address);
        }
    }
}

#[test]
fn packets_that_a_full_device_drops_are_counted_with_their_reason() {
    // The thread of this test alone, and the programs that it starts, are in the namespace.
    // SAFETY: a plain system call.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: no network namespace: {}", std::io::Error::last_os_error());
        return;
    }
    let mut probe = match DropProbe::load() {
        Ok(probe) => probe,
        Err(error @ (ProbeError::NoBtf { .. } | ProbeError::NotPermitted { .. })) => {
            println!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let _taps = [(1, tap("gnomon-tap1")), (2, tap("gnomon-tap2"))].map(|(number, file)| {
        ip(&format!("link set gnomon-tap{number} up txqueuelen {QUEUE}"));
        ip(&format!("address add 10.99.{number}.1/24 dev gnomon-tap{number}"));
        ip(&format!("neighbour add 10.99.{number}.2 lladdr 02:00:00:00:00:01 dev gnomon-tap{number}"));
        file
    });
    let (watched, other) = (ifindex(c"gnomon-tap1"), ifindex(c"gnomon-tap2"));
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
