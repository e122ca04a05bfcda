//! Network traffic: raw Ethernet frames.
//!
//! A frame is addressed to the interface that sends it. A switch has just learnt from the sender's address that this one is at the port which the frame
//! came from, and drops it there: the host's side of the interface is loaded, and nobody else is.

mod address;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, send, socket_with};

use crate::board::{Board, TICK};
use crate::credit::Credit;
use address::LinkAddress;

/// Largest frame of an Ethernet without jumbo frames, in bytes, checksum left out.
pub const FRAME_BYTES: u16 = 1514;
/// Smallest, likewise.
pub const FRAME_BYTES_MIN: u16 = 60;
/// "Local Experimental Ethertype 1" of IEEE 802.
const ETHERTYPE: u16 = 0x88b5;
const INTERFACES: &str = "/sys/class/net";
/// What fails is left alone for so long.
const PAUSE: Duration = Duration::from_secs(10);

/// Why there is no traffic.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is no Ethernet interface of a device.
    #[error("no network interface")]
    None,
    /// It has no Ethernet address.
    #[error("{0} has no Ethernet address")]
    Address(String),
    /// The system says no.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

/// An interface to send on.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Wire {
    /// Opens an interface, by name or else the first one that is a device. It takes CAP_NET_RAW.
    ///
    /// # Errors
    /// Where the guest has none, or does not let it.
    pub fn open(name: Option<&str>, frame_bytes: u16) -> Result<Self, WireError> {
        let name = name.map(str::to_owned).or_else(|| first(Path::new(INTERFACES))).ok_or(WireError::None)?;
        let text = fs::read_to_string(Path::new(INTERFACES).join(&name).join("address"));
        let text = text.map_err(|error| WireError::Io(name.clone(), error))?;
        let own = mac(&text).ok_or_else(|| WireError::Address(name.clone()))?;
        let io = |error: rustix::io::Errno| WireError::Io(name.clone(), error.into());
        // No protocol: it is sent on, and nothing is received.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None).map_err(io)?;
        let index = name_to_index(&socket, &name).map_err(io)?;
        bind(&socket, &LinkAddress::new(index)).map_err(io)?;
        Ok(Wire { socket, frame: frame(own, frame_bytes) })
    }
}

/// The way to an interface. One that comes late, is renamed as udev does at boot, or is replaced, is looked for anew.
#[derive(Debug)]
pub struct Uplink {
    name: Option<String>,
    frame_bytes: u16,
    wire: Option<Wire>,
}

impl Uplink {
    /// By name, or else to the first interface that is a device; with frames of so many bytes.
    pub fn new(name: Option<String>, frame_bytes: u16) -> Self {
        Uplink { name, frame_bytes, wire: None }
    }

    /// The interface, opened where it is not yet.
    ///
    /// # Errors
    /// As of [`Wire::open`].
    pub fn open(&mut self) -> Result<&Wire, WireError> {
        let wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::open(self.name.as_deref(), self.frame_bytes)?,
        };
        Ok(self.wire.insert(wire))
    }
}

/// The first interface by name that is a device's: neither loopback nor a bridge or a tunnel.
fn first(interfaces: &Path) -> Option<String> {
    let entries = fs::read_dir(interfaces).ok()?.flatten().filter(|entry| entry.path().join("device").exists());
    entries.filter_map(|entry| entry.file_name().into_string().ok()).min()
}

/// An address as sysfs writes it, `52:54:00:12:34:56`.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn frame(own: [u8; 6], bytes: u16) -> Vec<u8> {
    let mut frame = [&own[..], &own, &ETHERTYPE.to_be_bytes()].concat();
    frame.resize(usize::from(bytes.clamp(FRAME_BYTES_MIN, FRAME_BYTES)), 0x5a);
    frame
}

/// Sends what is wanted, for ever.
pub(crate) fn serve(board: &Board, mut uplink: Uplink) {
    let mut told = false;
    loop {
        board.wait_until(|targets| targets.send_bytes_per_s > 0);
        let made = uplink.open().map_err(io::Error::other).and_then(|wire| traffic(board, wire));
        if let Err(error) = made {
            uplink.wire = None;
            if !std::mem::replace(&mut told, true) {
                eprintln!("gnomon-pacer: the network fails, and is tried again every {} s: {error}", PAUSE.as_secs());
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Returns once nothing is wanted any more.
fn traffic(board: &Board, wire: &Wire) -> io::Result<()> {
    let frame_bytes = wire.frame.len() as u64;
    let mut credit = Credit::default();
    let mut before = Instant::now();
    loop {
        let bytes_per_s = board.targets().send_bytes_per_s;
        if bytes_per_s == 0 {
            return Ok(());
        }
        thread::sleep(TICK);
        let now = Instant::now();
        credit.earn(bytes_per_s, now - before, frame_bytes);
        before = now;
        while credit.spend(frame_bytes, frame_bytes).is_some() {
            // It waits where the interface's queue is full: the guest sends as fast as it is let.
            match send(&wire.socket, &wire.frame, SendFlags::empty()) {
                Ok(sent) => Board::count(&board.sent, sent as u64),
                // The queue has dropped it.
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_to_who_sends_it_and_has_the_size_that_was_asked_for() {
        let own = mac("52:54:00:12:34:5f\n").unwrap();
        let frame = frame(own, 100);
        assert_eq!(frame[..14], [0x52, 0x54, 0, 0x12, 0x34, 0x5f, 0x52, 0x54, 0, 0x12, 0x34, 0x5f, 0x88, 0xb5]);
        assert_eq!(frame.len(), 100);
        assert_eq!(super::frame(own, 1).len(), 60);
        assert_eq!(super::frame(own, u16::MAX).len(), 1514);
        assert_eq!([mac(""), mac("1:2:3:4:5"), mac("1:2:3:4:5:x")], [None; 3]);
    }

    #[test]
    fn the_first_interface_of_a_device_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["lo", "br0", "eth1/device", "eth0/device"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        assert_eq!(first(dir.path()).as_deref(), Some("eth0"));
        assert_eq!(first(&dir.path().join("none")), None);
    }

    #[test]
    fn an_interface_that_was_not_there_is_found_later() {
        let mut uplink = Uplink::new(Some("none-such".to_owned()), 60);
        assert!(uplink.open().is_err() && uplink.wire.is_none());
        uplink.name = Some("lo".to_owned());
        match uplink.open().map(drop) {
            Err(WireError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIPPED, no CAP_NET_RAW");
            }
            opened => opened.unwrap(),
        }
    }

    #[test]
    fn loopback_takes_frames_where_the_test_may_send_any() {
        let wire = match Wire::open(Some("lo"), 60) {
            Err(WireError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                return println!("SKIPPED, no CAP_NET_RAW");
            }
            wire => wire.unwrap(),
        };
        assert_eq!(send(&wire.socket, &wire.frame, SendFlags::empty()), Ok(60));
        assert!(matches!(Wire::open(Some("none-such"), 60), Err(WireError::Io(..))));
    }
}
