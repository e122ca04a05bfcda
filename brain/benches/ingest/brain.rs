//! The brain under load: a real process of the release build, as an operator starts it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gnomon_brain::ca::Ca;
use gnomon_brain::config::EXAMPLE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_gnomon-brain");
/// An empty brain starts within a second; on busy cores it may take some.
const START_MAX: Duration = Duration::from_secs(30);

/// A running brain with a directory of its own.
pub(crate) struct Brain {
    child: Child,
    dir: PathBuf,
    pub(crate) agents: SocketAddr,
    api: SocketAddr,
}

impl Brain {
    /// Makes a brain's directory at `dir`, which must not be there yet, and starts the brain.
    pub(crate) fn start(dir: &Path, agents_max: usize) -> Result<Self> {
        let init = Command::new(PROGRAM).arg("init").arg("--dir").arg(dir).stdout(Stdio::null()).status()?;
        ensure!(init.success(), "gnomon-brain init failed ({init})");
        let agents = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut text = EXAMPLE.to_owned();
        for (from, to) in [
            ("0.0.0.0:7443", agents.to_string()),
            ("127.0.0.1:7480", api.to_string()),
            ("agents_max = 1024", format!("agents_max = {agents_max}")),
            ("mode = \"observe\"", "mode = \"auto\"".to_owned()),
        ] {
            ensure!(text.contains(from), "the example configuration has no {from}");
            text = text.replace(from, &to);
        }
        fs::write(dir.join("brain.toml"), text)?;
        let log = File::create(dir.join("brain.log"))?;
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config"]).arg(dir.join("brain.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let mut brain = Self { child: command.spawn()?, dir: dir.to_owned(), agents, api };
        let deadline = Instant::now() + START_MAX;
        while brain.get("/healthz").is_err() {
            if let Some(status) = brain.child.try_wait()? {
                bail!("the brain ended with {status}; see {}", dir.join("brain.log").display());
            }
            ensure!(Instant::now() < deadline, "the brain does not answer; see {}", dir.join("brain.log").display());
            sleep(Duration::from_millis(50));
        }
        Ok(brain)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The brain's CA, to issue the agents' certificates from.
    pub(crate) fn ca(&self) -> Result<Ca> {
        Ok(Ca::open(&self.dir)?)
    }

    /// Fails if the brain is no more.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the brain ended with {status}; see {}", self.dir.join("brain.log").display()),
            None => Ok(()),
        }
    }

    /// Bytes of the database and its write-ahead log.
    pub(crate) fn store_bytes(&self) -> u64 {
        let size = |name: &str| fs::metadata(self.dir.join(name)).map_or(0, |metadata| metadata.len());
        size("brain.db") + size("brain.db-wal")
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no metric {name}"))?.parse()?)
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(ureq::get(format!("http://{}{path}", self.api)).call()?.body_mut().read_to_string()?)
    }
}

impl Drop for Brain {
    fn drop(&mut self) {
        // Our own child: there is nothing in its store that anybody wants.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
