//! The network of a lab: one bridge in a namespace of its own, without uplink, where also the brain lives.
//!
//! Programs outside reach it in two ways: a closure run by a thread inside the namespace, or a port published on the
//! loopback address of the caller's own namespace. The caller's network is never changed.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The brain's address: that of the bridge itself.
pub const BRAIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// More hosts than addresses fit under the bridge's own; far more than a machine can carry.
pub const HOSTS_MAX: usize = 100;

/// Makes the bridge; runs as the anchor of the network. No forwarding delay: there is no second bridge to loop with.
pub(crate) const BRIDGE: &str = "\
ip link set lo up
ip link add lab0 type bridge forward_delay 0
ip addr add 10.77.0.254/24 dev lab0
ip link set lab0 up";

/// Address of the host with this index, counted from 0.
pub(crate) fn host_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, index as u8 + 1)
}

/// Runs `work` on a thread of its own inside the network namespace. Sockets that it opens stay there for life, so it
/// may return them.
pub(crate) fn inside<T: Send>(net: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    let inside = || -> io::Result<T> {
        move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    let result = thread::scope(|scope| scope.spawn(inside).join());
    match result {
        Ok(done) => done.context("entering the network namespace (needs root)"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A TCP port of the lab's network, reachable on the loopback address of the caller's. Dropping it closes the door;
/// connections that are open stay open until either side ends them.
#[derive(Debug)]
pub struct Published {
    address: SocketAddr,
    closed: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Published {
    pub(crate) fn open(net: File, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on the loopback address")?;
        let address = listener.local_addr()?;
        let closed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&closed);
        let acceptor = thread::Builder::new().name("lab-publish".into()).spawn(move || {
            for outside in listener.incoming() {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                // A connection that cannot be made inside is closed outside: the client sees what it would see there.
                let Ok(outside) = outside else { continue };
                if let Ok(Ok(inside)) = inside(&net, || TcpStream::connect(target)) {
                    relay(outside, inside);
                }
            }
        })?;
        Ok(Published { address, closed, acceptor: Some(acceptor) })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        // Wakes the acceptor; when that fails, it is not in accept and has ended.
        if TcpStream::connect(self.address).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            let _ = acceptor.join();
        }
    }
}

/// Copies both ways, each until its end, on two threads.
fn relay(outside: TcpStream, inside: TcpStream) {
    let copy = |from: &TcpStream, to: &TcpStream| -> io::Result<()> {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::Builder::new().name("lab-relay".into()).spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })?;
        Ok(())
    };
    if copy(&outside, &inside).and_then(|()| copy(&inside, &outside)).is_err() {
        let _ = outside.shutdown(Shutdown::Both);
    }
}
