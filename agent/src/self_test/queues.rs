//! A connection of this process to itself, over the loopback device: its first packet is queued there, and given back where it arrives
//! (`tcp_rcv_state_process` of `net/ipv4/tcp_input.c`). Of datagrams newer kernels give the memory back unseen.

use super::{Trial, Uncounted, drops::LOOPBACK};
use crate::probe::QueueProbe;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A packet that has not been given back by then is on no way that this knows.
const TAKEN_MAX: Duration = Duration::from_millis(200);

const POLL: Duration = Duration::from_millis(5);

/// Makes the queue probe time a packet on the loopback device, which is watched for that time alone.
///
/// # Errors
/// If it does not time it.
pub fn queues(probe: &mut QueueProbe) -> Result<Trial, Uncounted> {
    probe.watch(&BTreeSet::from([LOOPBACK]))?;
    let tried = try_queues(probe);
    let unwatched = probe.watch(&BTreeSet::new());
    tried.and_then(|trial| unwatched.map(|()| trial).map_err(Uncounted::from))
}

fn try_queues(probe: &QueueProbe) -> Result<Trial, Uncounted> {
    let taken = || -> Result<u64, Uncounted> {
        Ok(probe.drain()?.get(&LOOPBACK).map_or(0, |queue| queue.waits_log2.iter().sum()))
    };
    let before = taken()?;
    if let Err(error) = connect_to_oneself() {
        return Ok(Trial::NotProvoked(format!("no packet over the loopback device: {error}")));
    }
    let connected = Instant::now();
    while taken()? <= before {
        if connected.elapsed() > TAKEN_MAX {
            return Err(Uncounted::Queues);
        }
        thread::sleep(POLL);
    }
    Ok(Trial::Counted)
}

/// Opens a connection to a socket of this process, and closes both.
fn connect_to_oneself() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    TcpStream::connect_timeout(&listener.local_addr()?, TAKEN_MAX).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::loaded;

    #[test]
    fn the_queue_probe_times_a_packet_and_watches_nothing_afterwards() {
        let Some(mut probe) = loaded(QueueProbe::load()) else { return };
        assert_eq!(queues(&mut probe).unwrap(), Trial::Counted);
        connect_to_oneself().unwrap();
        assert!(probe.drain().unwrap().is_empty(), "the loopback device is no VM's");
    }
}
