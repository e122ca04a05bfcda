//! What takes turns on a lab host: the agent and its peers, started there as an operator would, each at an interval of one second.
//!
//! The peers are not installed, because their packages would run them as services of this machine. They end with the value, and if this program is
//! killed, with the lab.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use xtask::lab::{self, BRAIN_ADDRESS, Host, Lab};
use xtask::stack::{AgentSettings, Stack};

/// The agent's own intervals, by default.
const SAMPLE_MS: u64 = 1000;
const WINDOW_MS: u64 = 10_000;
const EXPORTER_PORT: u16 = 9177;
const COLLECTD_PORT: u16 = 25826;
/// A peer that has not begun by then has failed.
const START_MAX: Duration = Duration::from_secs(20);
/// A scrape that takes longer is a failure of the peer.
const SCRAPE_MAX: Duration = Duration::from_secs(5);

/// Who takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Kind {
    /// As it is by default: a sample each second, a report every ten.
    Agent,
    /// Told to report each second as well.
    AgentEachSecond,
    Exporter,
    Collectd,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Agent, Self::AgentEachSecond, Self::Exporter, Self::Collectd];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Agent => "gnomon-agent",
            Self::AgentEachSecond => "  reporting each second",
            Self::Exporter => "prometheus-libvirt-exporter",
            Self::Collectd => "collectd virt",
        }
    }
}

/// The programs of the peers that can be had here.
pub(super) struct Peers {
    exporter: Option<PathBuf>,
    collectd: Option<PathBuf>,
}

impl Peers {
    /// Fetches them; says which cannot be had.
    pub(super) fn fetch() -> Self {
        let fetch = |package| {
            let told = |error: &anyhow::Error| println!("{package} is not measured: {error:#}");
            lab::unpacked(package).inspect_err(told).ok()
        };
        Self { exporter: fetch("prometheus-libvirt-exporter"), collectd: fetch("collectd-core") }
    }
}

/// A running one.
pub(super) enum Monitor<'a> {
    Agent { stack: &'a mut Stack, host: String },
    Exporter { peer: Peer, lab: &'a Lab, address: Ipv4Addr },
    Collectd { peer: Peer, sink: UdpSocket },
}

impl<'a> Monitor<'a> {
    /// Starts one and waits until it works. `None` where it cannot be had.
    pub(super) fn start(kind: Kind, peers: &Peers, stack: &'a mut Stack) -> Result<Option<Self>> {
        let host = stack.lab.hosts().first().context("no host")?.clone();
        Ok(match kind {
            Kind::Agent | Kind::AgentEachSecond => {
                let window_ms = if kind == Kind::Agent { WINDOW_MS } else { SAMPLE_MS };
                let settings = AgentSettings { sample_ms: SAMPLE_MS, window_ms, ..AgentSettings::default() };
                stack.configure_agent(host.name(), &settings)?;
                stack.start_agent(host.name())?;
                Some(Self::Agent { host: host.name().to_owned(), stack })
            }
            Kind::Exporter => {
                let Some(tree) = &peers.exporter else { return Ok(None) };
                let peer = Peer::start(&host, &tree.join("usr/bin/prometheus-libvirt-exporter"), &[], "exporter")?;
                let monitor = Self::Exporter { peer, lab: &stack.lab, address: host.address() };
                let deadline = Instant::now() + START_MAX;
                while let Err(error) = monitor.each_second() {
                    ensure!(Instant::now() < deadline, "{error:#}; {}", log(&host, "exporter"));
                    sleep(Duration::from_millis(100));
                }
                Some(monitor)
            }
            Kind::Collectd => {
                let Some(tree) = &peers.collectd else { return Ok(None) };
                let sink = stack.lab.in_brain_net(|| UdpSocket::bind((BRAIN_ADDRESS, COLLECTD_PORT)))??;
                sink.set_read_timeout(Some(START_MAX))?;
                let config = host.dir().join("collectd.conf");
                fs::write(&config, collectd_conf(tree, &host))?;
                let arguments = ["-f", "-C", config.to_str().context("a path beyond UTF-8")?];
                let peer = Peer::start(&host, &tree.join("usr/sbin/collectd"), &arguments, "collectd")?;
                sink.recv(&mut [0; 2048])
                    .with_context(|| format!("collectd sends nothing: {}", log(&host, "collectd")))?;
                Some(Self::Collectd { peer, sink })
            }
        })
    }

    pub(super) fn pid(&self) -> Result<u32> {
        match self {
            Self::Agent { stack, host } => stack.agent_pid(host),
            Self::Exporter { peer, .. } | Self::Collectd { peer, .. } => Ok(peer.0.id()),
        }
    }

    /// What is done to it once a second. What was sent to the socket is read, so that the kernel takes what comes next.
    pub(super) fn each_second(&self) -> Result<()> {
        match self {
            Self::Agent { .. } => Ok(()),
            Self::Exporter { lab, address, .. } => lab.in_brain_net(|| scrape(*address))?,
            Self::Collectd { sink, .. } => {
                sink.set_nonblocking(true)?;
                while sink.recv(&mut [0; 2048]).is_ok() {}
                Ok(())
            }
        }
    }

    /// Ends it and waits until it is gone.
    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Agent { stack, host } => stack.stop_agent(&host),
            Self::Exporter { peer, .. } | Self::Collectd { peer, .. } => {
                drop(peer);
                Ok(())
            }
        }
    }
}

/// A peer's process.
pub(super) struct Peer(Child);

impl Peer {
    fn start(host: &Host, program: &Path, arguments: &[&str], name: &str) -> Result<Self> {
        let log = File::create(host.dir().join(format!("{name}.log")))?;
        let mut command = host.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().with_context(|| format!("starting {}", program.display()))?))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Our own child; if it has ended already there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log(host: &Host, name: &str) -> String {
    fs::read_to_string(host.dir().join(format!("{name}.log"))).unwrap_or_default()
}

/// Asks the exporter for its metrics, which it then fetches from libvirt.
fn scrape(address: Ipv4Addr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, EXPORTER_PORT)), SCRAPE_MAX)?;
    stream.set_read_timeout(Some(SCRAPE_MAX))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.contains("libvirt_up 1"), "the exporter does not reach libvirt: {text}");
    Ok(())
}

/// What collectd's virt plugin does by default, each second.
fn collectd_conf(tree: &Path, host: &Host) -> String {
    let (tree, base) = (tree.display(), host.dir().display());
    format!(
        "Interval 1\nFQDNLookup false\nBaseDir \"{base}\"\nPIDFile \"{base}/collectd.pid\"\n\
         PluginDir \"{tree}/usr/lib/collectd\"\nTypesDB \"{tree}/usr/share/collectd/types.db\"\n\
         LoadPlugin virt\nLoadPlugin network\n\
         <Plugin virt>\n  Connection \"qemu:///system\"\n</Plugin>\n\
         <Plugin network>\n  Server \"{BRAIN_ADDRESS}\" \"{COLLECTD_PORT}\"\n</Plugin>\n"
    )
}
