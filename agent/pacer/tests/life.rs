//! The program itself, on a pseudo-terminal in place of a virtio-serial port.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gnomon_pacer::protocol::{Lines, Said, Status};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

const PATIENCE: Duration = Duration::from_secs(20);

/// A pacer and the host's end of its port.
struct Life {
    host: File,
    lines: Lines,
    pacer: Child,
    scratch: tempfile::TempDir,
}

impl Life {
    fn begin() -> Self {
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        fcntl_setfl(&host, OFlags::NONBLOCK).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let mut raw = tcgetattr(&host).unwrap();
        raw.make_raw();
        tcsetattr(&host, OptionalActions::Now, &raw).unwrap();
        let port = ptsname(&host, Vec::new()).unwrap().into_string().unwrap();
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon-pacer"));
        command.args(["--port", &port, "--interface", "none-such", "--scratch"]).arg(scratch.path());
        let pacer = command.stderr(Stdio::null()).spawn().unwrap();
        Life { host: host.into(), lines: Lines::default(), pacer, scratch }
    }

    fn say(&mut self, line: &str) {
        self.host.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next things it says, until one is taken.
    fn hear<T>(&mut self, mut take: impl FnMut(Said) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 4096];
        while Instant::now() < deadline {
            match self.host.read(&mut bytes) {
                Ok(count) => {
                    let said =
                        self.lines.push(&bytes[..count]).into_iter().map(|line| Said::parse(&line.unwrap()).unwrap());
                    if let Some(taken) = said.into_iter().find_map(&mut take) {
                        return taken;
                    }
                }
                // A terminal of which the other end is not open yet says so by an error.
                Err(error) if error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(5) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it has not said that");
    }

    fn status(&mut self, take: impl Fn(&Status) -> bool) -> Status {
        self.hear(|said| match said {
            Said::Status(status) => Some(status).filter(&take),
            Said::Refused { .. } => None,
        })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.pacer.kill();
        let _ = self.pacer.wait();
    }
}

#[test]
fn it_makes_what_is_wanted_until_its_profile_ends_and_leaves_nothing_behind() {
    let mut life = Life::begin();
    assert_eq!(life.status(|_| true).wanted.cpu_cores, 0.0);
    life.say("gnomon-pacer/1 profile valid_ms=8000 after_ms=0 cpu_cores=0.3 memory_bytes=33554432 disk_read_bytes_per_s=400000 disk_write_bytes_per_s=800000 network_bytes_per_s=1000");
    life.status(|status| status.wanted.disk_write_bytes_per_s > 0);
    let made = life.status(|status| status.left_ms < 5000).made;
    assert!((0.27..0.33).contains(&made.cpu_cores), "{made:?}");
    assert!((30 << 20..36 << 20).contains(&made.memory_bytes), "{made:?}");
    assert!((600_000..1_000_000).contains(&made.disk_write_bytes_per_s), "{made:?}");
    assert!((300_000..500_000).contains(&made.disk_read_bytes_per_s), "{made:?}");
    assert_eq!(made.network_bytes_per_s, 0, "there is no such interface");

    life.say("rm -rf /");
    let refused = life.hear(|said| match said {
        Said::Refused { refused, .. } => Some(refused),
        Said::Status(_) => None,
    });
    assert_eq!(refused, 1);
    assert!(life.status(|status| status.refused == 1).left_ms > 0, "garbage changes nothing");
    life.status(|status| status.left_ms == 0 && status.wanted.cpu_cores == 0.0);
    let idle = life.status(|_| true).made;
    assert!(idle.cpu_cores < 0.01 && idle.memory_bytes == 0 && idle.disk_write_bytes_per_s == 0, "{idle:?}");

    life.say("gnomon-pacer/1 profile valid_ms=60000 after_ms=0 disk_write_bytes_per_s=800000");
    life.status(|status| status.made.disk_write_bytes_per_s > 0);
    kill_process(Pid::from_child(&life.pacer), Signal::TERM).unwrap();
    assert_eq!(life.pacer.wait().unwrap().signal(), Some(15));
    assert_eq!(fs::read_dir(life.scratch.path()).unwrap().count(), 0);
}
