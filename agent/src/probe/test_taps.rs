//! Network devices for tests: taps in a network namespace of the test's own.

use super::{ProbeError, loaded};
use std::fs::{File, OpenOptions};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;

/// Puts the thread of this test alone, and the programs that it starts, into a network namespace, and loads a probe there; `None` where one or
/// the other may not be done, and says so.
pub(super) fn load_apart<P>(load: impl FnOnce() -> Result<P, ProbeError>) -> Option<P> {
    // SAFETY: a plain system call.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: no network namespace: {}", std::io::Error::last_os_error());
        return None;
    }
    loaded(load())
}

/// Taps `gnomon-tap1` and `gnomon-tap2` that take `queue` packets, each with a neighbour behind it, and their numbers. Gone with the files.
pub(super) fn taps(queue: u64) -> [(File, u32); 2] {
    [(1, c"gnomon-tap1"), (2, c"gnomon-tap2")].map(|(number, name)| {
        let file = tap(&name.to_string_lossy());
        ip(&format!("link set gnomon-tap{number} up txqueuelen {queue}"));
        ip(&format!("address add 10.99.{number}.1/24 dev gnomon-tap{number}"));
        ip(&format!("neighbour add 10.99.{number}.2 lladdr 02:00:00:00:00:01 dev gnomon-tap{number}"));
        // SAFETY: a string that ends in a zero.
        (file, unsafe { libc::if_nametoindex(name.as_ptr()) })
    })
}

/// A tap of this name in the thread's network namespace, which nobody reads from.
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

/// Sends packets of 64 bytes to the neighbour behind each of the two taps.
pub(super) fn send(packets: u64) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..packets {
        for address in ["10.99.1.2:9", "10.99.2.2:9"] {
            // What is dropped may be told to the sender.
            let _ = socket.send_to(&[0; 64], address);
        }
    }
}
