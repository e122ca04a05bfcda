//! A brain and hosts on this machine's loopback: the real programs with real QUIC, and no VMs.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::wait_for;
use serde_json::Value;
use xtask::env::bin_dir;

/// A busy machine starts a daemon within seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with the test.
pub(crate) struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A brain in a directory of its own.
pub(crate) struct Brain {
    dir: PathBuf,
    agents: String,
    api: String,
    _daemon: Daemon,
}

impl Brain {
    /// Makes and starts one whose agents' certificates live that long.
    pub(crate) fn start(dir: &Path, certificate_lifetime_s: u64) -> Result<Self> {
        let path = |name: &str| dir.join(name).display().to_string();
        ok(program("gnomon-brain").args(["init", "--address", "127.0.0.1", "--dir"]).arg(dir))?;
        let config = fs::read_to_string(path("brain.toml"))?
            .replace("0.0.0.0:7443", "127.0.0.1:0")
            .replace("127.0.0.1:7480", "127.0.0.1:0")
            .replace("heartbeat_ms = 5000", "heartbeat_ms = 500")
            .replace("certificate_lifetime_s = 604800", &format!("certificate_lifetime_s = {certificate_lifetime_s}"));
        fs::write(path("brain.toml"), config)?;
        let daemon = daemon(program("gnomon-brain").args(["run", "--config", &path("brain.toml")]), path("brain.log"))?;
        let mut addresses = None;
        wait_for("the brain to listen", PATIENCE, || {
            let log = fs::read_to_string(path("brain.log"))?;
            let field = |name: &str| Some(log.split_once(name)?.1.split_whitespace().next()?.to_owned());
            addresses = field(" agents=").zip(field(" api="));
            Ok(addresses.is_some())
        })?;
        let (agents, api) = addresses.context("no address")?;
        Ok(Self { dir: dir.to_owned(), agents, api, _daemon: daemon })
    }

    /// Where agents connect.
    pub(crate) fn address(&self) -> &str {
        &self.agents
    }

    /// Runs `gnomon-brain` with this brain's configuration, while it runs; returns what it prints.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<String> {
        ok(program("gnomon-brain").args(arguments).arg("--config").arg(self.dir.join("brain.toml")))
    }

    /// Makes a token.
    pub(crate) fn token(&self, host: &str, ttl: &str) -> Result<String> {
        let printed = self.command(&["token", "create", "--host", host, "--ttl", ttl])?;
        ensure!(printed.lines().count() == 1, "more than a token: {printed}");
        Ok(printed.trim().to_owned())
    }

    /// What the operator's command shows.
    pub(crate) fn gnomon(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = program("gnomon");
        command.args(["--json", "--url", &format!("http://{}", self.api), "--token-file"]);
        Ok(serde_json::from_str(&ok(command.arg(self.dir.join("tokens")).args(arguments))?)?)
    }

    /// Lines of the audit log with this verb whose detail begins so.
    pub(crate) fn audited(&self, verb: &str, detail: &str) -> Result<usize> {
        let lines = self.gnomon(&["audit"])?;
        let lines = lines.as_array().context("the audit log is no list")?;
        let begins = |line: &&Value| line["detail"].as_str().is_some_and(|text| text.starts_with(detail));
        Ok(lines.iter().filter(|line| line["verb"] == verb).filter(begins).count())
    }

    /// Whether the agent of a host is connected.
    pub(crate) fn has(&self, host: &str) -> Result<bool> {
        let hosts = self.gnomon(&["hosts"])?;
        Ok(hosts.as_array().is_some_and(|all| all.iter().any(|one| one["host"] == host && one["connected"] == true)))
    }

    /// What it logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("brain.log"))?)
    }

    /// Bytes of its database, with what is not checkpointed.
    pub(crate) fn database(&self) -> Result<Vec<u8>> {
        let mut bytes = fs::read(self.dir.join("brain.db"))?;
        bytes.extend(fs::read(self.dir.join("brain.db-wal")).unwrap_or_default());
        Ok(bytes)
    }
}

/// What becomes an agent's host.
pub(crate) struct Host {
    pub(crate) dir: PathBuf,
}

impl Host {
    /// One that has nothing.
    pub(crate) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// One that has a configuration, but no identity.
    pub(crate) fn configured(dir: PathBuf, name: &str, brain: &str) -> Result<Self> {
        let host = Self::new(dir)?;
        let config = format!("state_dir = \"state\"\n[host]\nname = {name:?}\n[brain]\naddress = {brain:?}\n");
        fs::write(host.config(), config)?;
        Ok(host)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join("state/identity").join(name)
    }

    pub(crate) fn text(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    pub(crate) fn mode(&self, name: &str) -> Result<u32> {
        Ok(fs::metadata(self.file(name))?.permissions().mode() & 0o7777)
    }

    /// Joins a brain, or tries to.
    pub(crate) fn join(&self, brain: &str, token: &str) -> Result<Output> {
        let mut join = program("gnomon-agent");
        join.args(["join", brain, token, "--config"]).arg(self.config());
        Ok(join.arg("--state-dir").arg(self.dir.join("state")).output()?)
    }

    /// The reason why this host was not let in.
    pub(crate) fn join_in_vain(&self, brain: &str, token: &str) -> Result<String> {
        let output = self.join(brain, token)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it joined: {}", String::from_utf8_lossy(&output.stdout));
        ensure!(!self.file("agent.key").exists(), "a key was left behind: {said}");
        Ok(said)
    }

    /// Joins a brain.
    pub(crate) fn join_well(&self, brain: &str, token: &str) -> Result<()> {
        let output = self.join(brain, token)?;
        ensure!(output.status.success(), "not joined: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Starts the agent, with libvirt's own make-believe driver and without metrics.
    pub(crate) fn run(&self) -> Result<Daemon> {
        let config = fs::read_to_string(self.config())?;
        if !config.contains("test:///default") {
            let config = config.replace("[host]\n", "[host]\nlibvirt_uri = \"test:///default\"\n");
            fs::write(self.config(), config + "\n[metrics]\nlisten = \"off\"\n")?;
        }
        let mut command = program("gnomon-agent");
        daemon(command.args(["run", "--config"]).arg(self.config()), self.dir.join("agent.log"))
    }

    /// What its agent logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("agent.log"))?)
    }
}

fn program(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    command.env_remove("GNOMON_LOG").env_remove("GNOMON_URL").env_remove("GNOMON_TOKEN_FILE").stdin(Stdio::null());
    command
}

fn daemon(command: &mut Command, log: impl AsRef<Path>) -> Result<Daemon> {
    let log = File::options().create(true).append(true).open(log)?;
    let child = command.stdout(log.try_clone()?).stderr(log).spawn();
    Ok(Daemon(child.with_context(|| format!("starting {command:?}"))?))
}

fn ok(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {error}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
