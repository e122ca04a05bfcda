//! A packet for a port that takes none, on the loopback device: the kernel drops it, and nobody else is sent anything.

use super::{Trial, Uncounted};
use crate::probe::DropProbe;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// `LOOPBACK_IFINDEX` of `include/net/flow.h`: its number in every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// A packet that has not been dropped by then is on no way that this knows.
const DROPPED_MAX: Duration = Duration::from_millis(200);

const POLL: Duration = Duration::from_millis(5);

/// Makes the drop probe count a packet that is dropped on the loopback device, which is watched for that time alone.
///
/// # Errors
/// If it does not count it.
pub fn drops(probe: &mut DropProbe) -> Result<Trial, Uncounted> {
    probe.watch(&BTreeSet::from([LOOPBACK]))?;
    let tried = try_drops(probe);
    let unwatched = probe.watch(&BTreeSet::new());
    tried.and_then(|trial| unwatched.map(|()| trial).map_err(Uncounted::from))
}

fn try_drops(probe: &mut DropProbe) -> Result<Trial, Uncounted> {
    let mut dropped =
        || -> Result<u64, Uncounted> { Ok(probe.drain()?.get(&LOOPBACK).map_or(0, |counts| counts.values().sum())) };
    let before = dropped()?;
    if let Err(error) = send_to_nobody() {
        return Ok(Trial::NotProvoked(format!("no packet over the loopback device: {error}")));
    }
    let sent = Instant::now();
    while dropped()? <= before {
        if sent.elapsed() > DROPPED_MAX {
            return Err(Uncounted::Drops);
        }
        thread::sleep(POLL);
    }
    Ok(Trial::Counted)
}

/// Sends an empty datagram to a port that is taken, by a socket that is connected to another: to anyone else it is nobody's.
fn send_to_nobody() -> io::Result<()> {
    let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let (taken, peer, sender) = (socket()?, socket()?, socket()?);
    taken.connect(peer.local_addr()?)?;
    sender.send_to(&[], taken.local_addr()?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::loaded;

    #[test]
    fn the_drop_probe_counts_a_packet_and_watches_nothing_afterwards() {
        let Some(mut probe) = loaded(DropProbe::load()) else { return };
        assert_eq!(drops(&mut probe).unwrap(), Trial::Counted);
        send_to_nobody().unwrap();
        thread::sleep(POLL);
        assert!(probe.drain().unwrap().is_empty(), "the loopback device is no VM's");
    }
}
