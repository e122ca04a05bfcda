//! The guest's end of the virtio-serial port.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::protocol::{LineError, Lines, PORT};

/// What is read at a time, and how often at most in a row: a host that floods it costs the guest no more than that a tick.
const READ_BYTES: usize = 4096;
const READS_MAX: usize = 32;

/// An open port. Nothing here waits: a host that does not read loses lines.
#[derive(Debug)]
pub struct Port {
    file: File,
    lines: Lines,
    /// What the host has not taken yet of a line that has begun.
    pending: Vec<u8>,
}

/// What a look at the port came to.
#[derive(Debug, Default)]
pub struct Heard {
    /// Lines that have ended.
    pub lines: Vec<Result<String, LineError>>,
    /// Nobody has the host's end open.
    pub closed: bool,
}

impl Port {
    /// Opens a port, without waiting for the host.
    ///
    /// # Errors
    /// Where it is not there, or another program has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Port { file, lines: Lines::default(), pending: Vec::new() })
    }

    /// What the host has said since the last look.
    ///
    /// # Errors
    /// Where the port is gone.
    pub fn hear(&mut self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        let mut bytes = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            match self.file.read(&mut bytes) {
                Ok(0) => {
                    self.lines.clear();
                    heard.closed = true;
                    break;
                }
                Ok(count) => heard.lines.extend(self.lines.push(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(heard)
    }

    /// Says a line, or what is left of the one before: a line that finds no room is lost, but never cut in two.
    ///
    /// # Errors
    /// Where the port is gone.
    pub fn say(&mut self, line: &impl std::fmt::Display) -> io::Result<()> {
        if self.pending.is_empty() {
            self.pending = format!("{line}\n").into_bytes();
        }
        match self.file.write(&self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Where the pacer's port is: by udev's name, or else by the kernel's.
pub fn find() -> Option<PathBuf> {
    let named = Path::new("/dev/virtio-ports").join(PORT);
    if named.exists() { Some(named) } else { find_in(Path::new("/sys/class/virtio-ports")) }
}

fn find_in(class: &Path) -> Option<PathBuf> {
    let is_ours = |dir: &Path| fs::read_to_string(dir.join("name")).is_ok_and(|name| name.trim() == PORT);
    let mut ports = fs::read_dir(class).ok()?.flatten().filter(|entry| is_ours(&entry.path()));
    ports.next().map(|entry| Path::new("/dev").join(entry.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_the_name_that_its_host_gave_it() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.qemu.guest_agent.0\n"), ("vport1p2", "org.gnomon.pacer.0\n")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(class.path().join("vport1p0")).unwrap();
        assert_eq!(find_in(class.path()), Some("/dev/vport1p2".into()));
        assert_eq!(find_in(&class.path().join("vport1p0")), None);
    }
}
