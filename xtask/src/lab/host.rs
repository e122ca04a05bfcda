//! A lab host: namespaces and cgroups of its own, and in them a libvirtd that believes it is alone on a machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::cgroup::{CONTROLLERS, DAEMONS, GUESTS, Group, Hierarchy};
use super::place::{Namespace, Place, output, tail};
use super::state::HostState;

/// A host's libvirtd probes QEMU at its first start: 9 s on two idle cores, several times that on busy ones.
const LIBVIRTD_DEADLINE: Duration = Duration::from_secs(90);
/// No command of the lab waits longer for libvirt; virsh itself would wait for ever.
const VIRSH_DEADLINE_S: &str = "60";
const SCRIPT: &str = include_str!("host.sh");

/// What a host is made of.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// CPUs of this host, as a list for cpuset (`0-1`); all of this process where unset.
    pub cpus: Option<String>,
    /// Ceiling for all guests of this host together, in cores. Agent and libvirtd are not under it.
    pub capacity_cores: Option<f64>,
    /// The libvirtd to start.
    pub libvirtd: PathBuf,
}

impl Default for HostOptions {
    fn default() -> Self {
        HostOptions { cpus: None, capacity_cores: None, libvirtd: "libvirtd".into() }
    }
}

/// A host that is up. Cheap to clone; the lab that it belongs to decides how long it lives.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    dir: PathBuf,
    group: Group,
    place: Place,
}

impl Host {
    /// The handle; [`Host::up`] makes the host itself.
    pub(crate) fn new(name: &str, address: Ipv4Addr, dir: &Path, group: Group) -> Self {
        use Namespace::{Cgroup, Ipc, Mount, Net, Uts};
        let place = Place::new(&group, DAEMONS, &[Cgroup, Ipc, Mount, Net, Uts]);
        Host { name: name.to_owned(), address, dir: dir.to_owned(), group, place }
    }

    /// Brings the host up on the bridge in `net`. The processes to be reaped, anchor and libvirtd, are in `children` also
    /// after an error.
    pub(crate) fn up(
        &self,
        state: &HostState,
        libvirtd: &Path,
        hosts: &str,
        capabilities: &Path,
        net: &Place,
        children: &mut Vec<Child>,
    ) -> Result<()> {
        self.group.create(&[GUESTS, DAEMONS], state.cpus.as_deref(), state.capacity_cores)?;
        self.write_files(state, hosts)?;
        seed_capabilities(capabilities, &self.dir.join("cache/qemu/capabilities"))?;
        children.push(self.start_anchor()?);
        self.group.hand_down(state.cpus.as_deref(), state.capacity_cores)?;
        self.connect(net).context("connecting the host to the bridge")?;
        children.push(self.start_libvirtd(libvirtd)?);
        if let Some(daemon) = children.last_mut() {
            self.await_libvirtd(daemon)?;
        }
        seed_capabilities(&self.dir.join("cache/qemu/capabilities"), capabilities)
    }

    fn write_files(&self, state: &HostState, hosts: &str) -> Result<()> {
        for dir in ["cache", "log", "console"] {
            fs::create_dir_all(self.dir.join(dir)).with_context(|| format!("making {}", self.dir.display()))?;
        }
        let (libvirtd, qemu) = (libvirtd_conf(self.address, state.uuid), qemu_conf(self.address));
        for (file, text) in [("libvirtd.conf", libvirtd.as_str()), ("qemu.conf", &qemu), ("hosts", hosts)] {
            fs::write(self.dir.join(file), text).with_context(|| format!("writing {file} of {}", self.name))?;
        }
        Ok(())
    }

    fn start_anchor(&self) -> Result<Child> {
        let mounts: Vec<String> = self.group.hierarchies().map(Hierarchy::mount).collect();
        let mut arguments: Vec<&OsStr> = vec![self.dir.as_os_str(), self.name.as_ref()];
        arguments.extend(mounts.iter().map(AsRef::<OsStr>::as_ref));
        self.place.anchor(&self.group, SCRIPT, &arguments, &self.dir.join("log/anchor.log"))
    }

    fn connect(&self, net: &Place) -> Result<()> {
        let (name, address, pid) = (&self.name, self.address, self.place.anchor_pid()?);
        let bridge =
            format!("ip link add v-{name} type veth peer name eth0 netns {pid}\nip link set v-{name} master lab0 up");
        output(net.command("sh").args(["-euc", &bridge]))?;
        let own = format!("ip addr add {address}/24 dev eth0\nip link set eth0 up");
        output(self.place.command("sh").args(["-euc", &own]))?;
        Ok(())
    }

    fn start_libvirtd(&self, libvirtd: &Path) -> Result<Child> {
        let log = File::create(self.dir.join("log/libvirtd.out"))?;
        let mut command = self.command(libvirtd);
        command.arg("--listen").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {}", libvirtd.display()))
    }

    fn await_libvirtd(&self, daemon: &mut Child) -> Result<()> {
        let deadline = Instant::now() + LIBVIRTD_DEADLINE;
        loop {
            let Err(error) = self.virsh(["version"]) else { return Ok(()) };
            if let Some(status) = daemon.try_wait()? {
                bail!("libvirtd ended at once ({status}):\n{}", tail(&self.dir.join("log/libvirtd.out")));
            }
            if Instant::now() > deadline {
                let log = tail(&self.dir.join("log/libvirtd.log"));
                return Err(error).with_context(|| format!("libvirtd does not answer:\n{log}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Name inside the lab: `h1`, `h2`, …; also the host's hostname, and it resolves on every host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address on the lab's bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A directory of the host's own, the same inside and outside: for configuration, state and logs. Gone after the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where other hosts of the lab reach this libvirtd, for migrations.
    pub fn migration_uri(&self) -> String {
        format!("qemu+tcp://{}/system", self.address)
    }

    /// A program on this host: in its namespaces and in the cgroup of its daemons, where no guest's limit holds. There
    /// `qemu:///system` is this host's libvirt and `/sys/fs/cgroup` this host's groups. The working directory becomes `/`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.place.command(program);
        // A group of its own: an interrupt from the terminal must reach the owner alone, who then stops what it started.
        command.process_group(0);
        command
    }

    /// As [`Host::command`], in the caller's process group, so that it may own the terminal.
    pub(crate) fn interactive(&self, program: impl AsRef<OsStr>) -> Command {
        self.place.command(program)
    }

    /// Runs virsh against this host's libvirt and returns what it printed.
    pub fn virsh(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
        let mut command = self.command("timeout");
        command.args(["--kill-after=1", VIRSH_DEADLINE_S, "virsh", "--quiet", "--connect", "qemu:///system"]);
        let arguments: Vec<_> = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        let what = arguments.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ");
        output(command.args(arguments)).with_context(|| format!("virsh {what} on {}", self.name))
    }

    /// The host's top group in the hierarchy of `controller`, as seen from outside.
    pub fn cgroup_dir(&self, controller: &str) -> Result<PathBuf> {
        let dir =
            self.group.dir(controller).with_context(|| format!("no hierarchy has the controller {controller}"))?;
        Ok(dir.to_owned())
    }

    /// The group of all guests of this host in the hierarchy of `controller`, as seen from outside.
    pub fn guests_cgroup_dir(&self, controller: &str) -> Result<PathBuf> {
        Ok(self.cgroup_dir(controller)?.join(GUESTS))
    }

    /// The top of this host's groups as a program on the host sees it, in the hierarchy that counts CPU time.
    pub fn own_cgroup_root(&self) -> Result<&Path> {
        self.group.mount_point("cpuacct").context("no hierarchy counts CPU time")
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    pub(crate) fn anchor_pid(&self) -> Result<u32> {
        self.place.anchor_pid()
    }
}

/// libvirtd.conf of a host. Two libvirtds with one `host_uuid` refuse to migrate "to the same host".
pub(crate) fn libvirtd_conf(address: Ipv4Addr, host_uuid: Uuid) -> String {
    format!(
        "listen_tls = 0\nlisten_tcp = 1\nlisten_addr = \"{address}\"\nauth_tcp = \"none\"\nauth_unix_rw = \"none\"\n\
         auth_unix_ro = \"none\"\nhost_uuid = \"{host_uuid}\"\nlog_outputs = \"2:file:/var/log/libvirt/libvirtd.log\"\n"
    )
}

/// qemu.conf of a host. `stdio_handler`: there is no virtlogd. `namespaces`: QEMU sees the host's own mounts, consoles included.
pub(crate) fn qemu_conf(address: Ipv4Addr) -> String {
    let controllers = CONTROLLERS.map(|controller| format!("{controller:?}")).join(", ");
    format!(
        "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n\
         namespaces = []\ncgroup_controllers = [ {controllers} ]\nstdio_handler = \"file\"\n\
         migration_host = \"{address}\"\nmigration_address = \"0.0.0.0\"\n"
    )
}

/// Copies libvirt's cached probes of QEMU. libvirt checks them against its own and QEMU's build and drops what is stale.
fn seed_capabilities(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|kind| kind == "xml")) {
        let mut copy = tempfile::NamedTempFile::new_in(to)?;
        std::io::copy(&mut File::open(entry.path())?, &mut copy)?;
        copy.persist(to.join(entry.file_name())).context("keeping the capabilities of QEMU")?;
    }
    Ok(())
}
