//! Which process answers at a libvirt address.

use crate::host::process::Proc;
use rustix::net::sockopt::socket_peercred;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The daemons that serve QEMU guests, modular and monolithic, with their pid files and sockets: what libvirt's client tries, in its order.
const DAEMONS: [(&str, &str, &str); 2] = [
    ("virtqemud", "/run/virtqemud.pid", "/run/libvirt/virtqemud-sock"),
    ("libvirtd", "/run/libvirtd.pid", "/run/libvirt/libvirt-sock"),
];

/// The process that answers at `uri`, if it is on this host and can be told. A pid file is believed if its process bears the daemon's name; where
/// there is none, or the address names a socket, the socket is asked who listens.
pub fn daemon_pid(uri: &str, proc: &Proc) -> Option<u32> {
    let (before_query, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (_, place) = before_query.split_once("://")?;
    if !place.starts_with('/') {
        return None; // another host's
    }
    let socket = query.split('&').find_map(|parameter| parameter.strip_prefix("socket="));
    if let Some(socket) = socket {
        return listener(Path::new(socket), proc);
    }
    if place != "/system" {
        return None;
    }
    let by_file = |(name, pid_file, _): &(&str, &str, &str)| {
        let pid = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        (proc.stat(pid).ok()?.comm == *name).then_some(pid)
    };
    DAEMONS
        .iter()
        .find_map(by_file)
        .or_else(|| DAEMONS.iter().find_map(|(_, _, socket)| listener(Path::new(socket), proc)))
}

/// The daemon behind a socket. Where systemd listens in its place, the answer is systemd, which is none.
fn listener(socket: &Path, proc: &Proc) -> Option<u32> {
    let stream = UnixStream::connect(socket).ok()?;
    let pid = u32::try_from(socket_peercred(stream).ok()?.pid.as_raw_nonzero().get()).ok()?;
    let name = proc.stat(pid).ok()?.comm;
    DAEMONS.iter().any(|(known, ..)| name == *known).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn another_hosts_daemon_a_driver_without_one_and_an_impostor_are_none() {
        let (proc, dir) = (Proc::default(), tempfile::tempdir().unwrap());
        for uri in ["qemu+ssh://root@far/system", "qemu+tls://far/system", "test:///default", "qemu", ""] {
            assert_eq!(daemon_pid(uri, &proc), None, "{uri}");
        }
        let socket = dir.path().join("sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(daemon_pid(&format!("qemu:///system?socket={}", socket.display()), &proc), None);
    }

    /// A `/proc` in which this very process bears the daemon's name.
    #[test]
    fn a_socket_tells_who_listens() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        std::fs::create_dir(dir.path().join(pid.to_string())).unwrap();
        let stat = format!("{pid} (virtqemud) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0");
        std::fs::write(dir.path().join(format!("{pid}/stat")), stat).unwrap();
        let socket = dir.path().join("sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let uri = format!("qemu+unix:///system?mode=direct&socket={}", socket.display());
        assert_eq!(daemon_pid(&uri, &Proc::at(dir.path())), Some(pid));
    }
}
