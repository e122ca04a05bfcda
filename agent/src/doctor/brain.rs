//! The identity of this host and the way to the brain: a real handshake, and no hello, so that a daemon that runs stays connected.

use super::Check;
use crate::command::clock::wall_clock;
use crate::config::Config;
use crate::uplink::identity::Identity;
use quinn::{ConnectionError, Endpoint, VarInt};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// A handshake is two round trips, and one more where packets are lost.
const HANDSHAKE_MAX: Duration = Duration::from_secs(4);

/// In TLS 1.3 the client is done before the server has looked at its certificate: a refusal comes a round trip later.
const REFUSAL_WITHIN: Duration = Duration::from_millis(400);

/// How long a host that is there takes to say that nobody listens.
const ICMP_MAX: Duration = Duration::from_millis(300);

/// A certificate is renewed long before its end: one this close to it was not.
const ENDING_WITHIN: Duration = Duration::from_hours(1);

pub(super) async fn examine(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut targets = Vec::new();
    for address in &config.brain.address.0 {
        let check = match resolve(address).await {
            Ok(target) => {
                targets.push(target);
                Check::ok("brain's address", address, target.to_string())
            }
            Err(why) => Check::unavailable("brain's address", address, why)
                .enable("correct brain.address, or have the name resolve (DNS, /etc/hosts)"),
        };
        checks.push(check.needed());
    }
    let files = config.identity();
    let source = files.certificate.display().to_string();
    match files.load() {
        Ok(identity) => {
            checks.push(certificate(&identity, source));
            for target in targets {
                checks.push(handshake(identity.clone(), target, config).await);
            }
        }
        Err(error) => checks.push(
            Check::unavailable("certificates", source, error.to_string())
                .needed()
                .enable("gnomon-agent join BRAIN:PORT TOKEN, with a token of `gnomon-brain token create --host NAME`"),
        ),
    }
    checks
}

async fn resolve(address: &str) -> Result<SocketAddr, String> {
    let mut found = lookup_host(address).await.map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

fn certificate(identity: &Identity, source: String) -> Check {
    let now = wall_clock();
    let signal = "certificates";
    let hours = |span: Duration| span.as_secs() / 3600;
    let rejoin = "gnomon-agent join BRAIN:PORT TOKEN gets a new one";
    if identity.valid_from > now {
        let why = format!("good only in {} s: is this host's clock right?", identity.valid_from.since(now).as_secs());
        return Check::unavailable(signal, source, why).needed().enable("set the clock (NTP)");
    }
    if identity.valid_to <= now {
        let why = format!("ended {} h ago", hours(now.since(identity.valid_to)));
        return Check::unavailable(signal, source, why).needed().enable(rejoin);
    }
    let left = identity.valid_to.since(now);
    let why = format!("good for {} h; the key is readable by its owner alone", hours(left));
    if left < ENDING_WITHIN {
        return Check::degraded(signal, source, why).needed().enable(rejoin);
    }
    Check::ok(signal, source, why).needed()
}

async fn handshake(identity: Identity, target: SocketAddr, config: &Config) -> Check {
    let (signal, source) = ("brain", format!("QUIC to {target} (UDP)"));
    let check = match connect(identity, target, &config.brain.server_name).await {
        Ok(round_trip) => Check::ok(
            signal,
            source,
            format!("answers as {}, round trip {} us", config.brain.server_name, round_trip.as_micros()),
        ),
        Err(Refusal::Other(why)) => Check::unavailable(signal, source, why)
            .enable("the brain's log has the reason; certificates of another authority need a new join"),
        Err(Refusal::Silent) if nobody_listens(target).await => {
            Check::unavailable(signal, source, "the host is there and nobody listens on this port")
                .enable("start gnomon-brain there, or correct the port in brain.address")
        }
        Err(Refusal::Silent) => {
            let why = format!("no answer within {} s", HANDSHAKE_MAX.as_secs());
            Check::unavailable(signal, source, why)
                .enable("start gnomon-brain, or let UDP to this port through every firewall on the way, and back")
        }
    };
    check.needed()
}

enum Refusal {
    Silent,
    Other(String),
}

async fn connect(identity: Identity, target: SocketAddr, name: &str) -> Result<Duration, Refusal> {
    let other = |error: &dyn std::fmt::Display| Refusal::Other(error.to_string());
    let local: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(local).map_err(|error| other(&error))?;
    let connecting = endpoint.connect_with(identity.tls, target, name).map_err(|error| other(&error))?;
    let connection = match timeout(HANDSHAKE_MAX, connecting).await {
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => return Err(Refusal::Silent),
        Ok(Err(error)) => return Err(other(&error)),
        Ok(Ok(connection)) => connection,
    };
    if let Ok(refused) = timeout(REFUSAL_WITHIN, connection.closed()).await {
        return Err(other(&refused));
    }
    let round_trip = connection.rtt();
    connection.close(VarInt::from_u32(0), b"gnomon-agent doctor: done");
    let _ = timeout(REFUSAL_WITHIN, endpoint.wait_idle()).await;
    Ok(round_trip)
}

/// Whether the host answers that the port is closed. One empty datagram: no QUIC packet, so a brain takes no notice.
async fn nobody_listens(target: SocketAddr) -> bool {
    let ask = move || {
        let any: SocketAddr =
            if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(ICMP_MAX))?;
        socket.send(&[])?;
        socket.recv(&mut [0; 16])
    };
    let answer: Result<std::io::Result<usize>, _> = tokio::task::spawn_blocking(ask).await;
    matches!(answer, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_closed_port_is_told_from_a_silent_one() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = socket.local_addr().unwrap();
        assert!(!nobody_listens(target).await, "somebody has the port and says nothing");
        drop(socket);
        assert!(nobody_listens(target).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_name_that_does_not_resolve_is_told() {
        assert!(resolve("localhost:1").await.is_ok());
        assert!(!resolve("gnomon-brain.invalid:1").await.unwrap_err().is_empty());
    }
}
