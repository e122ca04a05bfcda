//! A bad link: a relay of UDP packets between the agents and the brain that loses, delays, reorders and slows them down.
//!
//! It does what `tc netem` does, in user space, because many kernels that tests run on are built without it. Which packets suffer is drawn
//! from a fixed seed.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until};
use xtask::lab::{BRAIN_ADDRESS, Lab};

/// Largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_536;
const SEED: u64 = 7;

/// What the link is like, in each direction alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Share of packets lost, 0..=1.
    pub(crate) loss: f64,
    /// Least time on the way.
    pub(crate) delay: Duration,
    /// Longest time on top, drawn for each packet: this reorders.
    pub(crate) jitter: Duration,
    /// Bytes per second; more waits, up to [`QUEUE_BYTES_MAX`], beyond which it is lost.
    pub(crate) bytes_per_s: Option<f64>,
}

/// A slow link's buffer: small, or what is measured is the buffer.
const QUEUE_BYTES_MAX: f64 = 8192.0;

/// A relay that is up; dropping it ends it.
pub(crate) struct Relay {
    _runtime: Runtime,
    link: Arc<Mutex<Link>>,
}

struct Link {
    weather: Weather,
    random: StdRng,
    /// When the slow link is free again: to the brain, to the agents.
    free: [Option<Instant>; 2],
}

impl Relay {
    /// Relays from this port of the brain's address to that.
    pub(crate) fn start(lab: &Lab, from_port: u16, to_port: u16) -> Result<Self> {
        let brain = SocketAddr::from((BRAIN_ADDRESS, to_port));
        let bind = |port: u16| -> std::io::Result<StdUdpSocket> {
            let socket = StdUdpSocket::bind((BRAIN_ADDRESS, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let front = lab.in_brain_net(|| bind(from_port))?.context("taking the relay's port")?;
        // Enough for every connection that a test's agent tries: sockets can be made in the lab's network only here.
        let backs = lab.in_brain_net(|| (0..64).map(|_| bind(0)).collect::<std::io::Result<Vec<_>>>())??;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let free = [None, None];
        let link =
            Arc::new(Mutex::new(Link { weather: Weather::default(), random: StdRng::seed_from_u64(SEED), free }));
        runtime.spawn(forward(front, backs, brain, Arc::clone(&link)));
        Ok(Self { _runtime: runtime, link })
    }

    /// Changes the weather for packets that come from now on.
    pub(crate) fn set(&self, weather: Weather) {
        lock(&self.link).weather = weather;
    }
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets of the agents: each of their addresses gets a socket of its own towards the brain.
async fn forward(front: StdUdpSocket, mut backs: Vec<StdUdpSocket>, brain: SocketAddr, link: Arc<Mutex<Link>>) {
    let Ok(front) = UdpSocket::from_std(front).map(Arc::new) else { return };
    let mut known: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((bytes, agent)) = front.recv_from(&mut packet).await else { continue };
        let back = match known.get(&agent) {
            Some(back) => Arc::clone(back),
            None => {
                let Some(Ok(back)) = backs.pop().map(UdpSocket::from_std) else { continue };
                let back = Arc::new(back);
                known.insert(agent, Arc::clone(&back));
                tokio::spawn(backward(Arc::clone(&back), Arc::clone(&front), agent, Arc::clone(&link)));
                back
            }
        };
        carry(&link, 0, &packet[..bytes], back, brain);
    }
}

async fn backward(back: Arc<UdpSocket>, front: Arc<UdpSocket>, agent: SocketAddr, link: Arc<Mutex<Link>>) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((bytes, _)) = back.recv_from(&mut packet).await else { continue };
        carry(&link, 1, &packet[..bytes], Arc::clone(&front), agent);
    }
}

/// Sends a packet on when it is due, or not at all.
fn carry(link: &Mutex<Link>, direction: usize, packet: &[u8], socket: Arc<UdpSocket>, to: SocketAddr) {
    let Some(due) = lock(link).due(direction, packet.len()) else { return };
    let packet = packet.to_vec();
    tokio::spawn(async move {
        sleep_until(due).await;
        // A peer that is gone loses its packets, as on any link.
        let _ = socket.send_to(&packet, to).await;
    });
}

impl Link {
    fn due(&mut self, direction: usize, bytes: usize) -> Option<Instant> {
        let Weather { loss, delay, jitter, bytes_per_s } = self.weather;
        if self.random.random::<f64>() < loss {
            return None;
        }
        let now = Instant::now();
        let mut due = now;
        if let Some(bytes_per_s) = bytes_per_s {
            let begins = self.free[direction].map_or(now, |free| free.max(now));
            if (begins - now).as_secs_f64() * bytes_per_s > QUEUE_BYTES_MAX {
                return None;
            }
            due = begins + Duration::from_secs_f64(bytes as f64 / bytes_per_s);
            self.free[direction] = Some(due);
        }
        Some(due + delay + jitter.mul_f64(self.random.random()))
    }
}
