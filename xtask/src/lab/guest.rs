//! Guests: small real Linux machines under TCG, each with one program that makes CPU load by a schedule.

pub(super) mod console;
pub(super) mod domain;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use gnomon_lab_load::{DayRange, Report, Schedule};
use uuid::Uuid;

use super::image::{self, Image};
use super::place::output;
use super::state::GuestState;
use super::{Host, Lab, debian};
use console::Console;
use domain::Files;

/// A guest boots in 3 s on an idle core; a dozen at once on two busy cores take a minute.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// How often the console is looked at for the start line; half of it is the mean error of time zero.
const CONSOLE_POLL: Duration = Duration::from_millis(10);

/// Size of a pacer's scratch disk: a page more than what it uses of one.
const SCRATCH_BYTES: u64 = (64 << 20) + 4096;

/// Where cgroup v2 keeps quota and period; v1 has a file for each.
const CPU_MAX: &str = "cpu.max";
const CFS_QUOTA: &str = "cpu.cfs_quota_us";
const CFS_PERIOD: &str = "cpu.cfs_period_us";

/// What a guest is to be.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Lower-case letters, digits and hyphens; unique in the lab.
    pub name: String,
    /// Kept over a migration; drawn by default.
    pub uuid: Uuid,
    /// vCPUs at boot.
    pub vcpus: u32,
    /// vCPUs that can be plugged in while it runs.
    pub vcpus_max: u32,
    /// Memory at boot, in MiB. Below 128 this kernel does not boot.
    pub memory_mib: u32,
    /// Memory that the balloon can give back, in MiB.
    pub memory_mib_max: u32,
    /// CPU demand inside the guest.
    pub schedule: Schedule,
    /// Ceiling for the whole guest, in cores, as the domain's `global_quota`; none by default.
    pub quota_cores: Option<f64>,
    /// CPUs that every vCPU is pinned to, as a list (`0-1`).
    pub cpus: Option<String>,
    /// Run by /dev/kvm instead of emulated; off by default, because not every hypervisor that a lab runs in offers one that a
    /// stock kernel boots with.
    pub kvm: bool,
    /// The pacer of a shadow beside the load program, with its port, a scratch disk that nothing else uses (`vda`), and a port with a shell on
    /// it; off by default.
    pub pacer: bool,
    /// A bridge on its host for a network interface; none by default.
    pub bridge: Option<String>,
    /// Debian with systemd and udev, from a disk (`vda`), in place of the lab's own program, whose schedule nobody follows then, and for which
    /// [`Lab::boot`] would wait in vain: [`Guest::start`]. A port with a shell on it. Gnomon's unit for the pacer is enabled on the disk; the
    /// pacer's port is there where `pacer` says so, and no scratch disk. Off by default; 256 MiB will do.
    pub debian: bool,
}

impl GuestOptions {
    /// One vCPU of at most two, 128 MiB of at most 192.
    pub fn new(name: &str, schedule: Schedule) -> Self {
        GuestOptions {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            vcpus: 1,
            vcpus_max: 2,
            memory_mib: 128,
            memory_mib_max: 192,
            schedule,
            quota_cores: None,
            cpus: None,
            kvm: false,
            pacer: false,
            bridge: None,
            debian: false,
        }
    }
}

/// A guest that is defined on a host.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    uuid: Uuid,
    host: Host,
}

impl Guest {
    /// Name of the domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// UUID of the domain.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The host that it was defined on; a migration does not change it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it. [`Lab::boot`] does so for several and waits for their programs.
    pub fn start(&self) -> Result<()> {
        // QEMU appends, because a migration's target opens the same file; a new life starts with an empty one.
        match fs::remove_file(self.console_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", self.console_path().display()));
            }
            _ => {}
        }
        self.host.virsh(["start", &self.name]).map(|_| ())
    }

    /// Pulls the plug.
    pub fn destroy(&self) -> Result<()> {
        self.host.virsh(["destroy", &self.name]).map(|_| ())
    }

    /// What the guest has said so far about its own load, one report a second.
    pub fn reports(&self) -> Result<Vec<Report>> {
        Ok(Console::read(&self.console_path())?.reports)
    }

    /// Everything on its serial console, for error messages.
    pub fn console_path(&self) -> PathBuf {
        self.host.dir().join("console").join(format!("{}.log", self.name))
    }

    /// The host's end of the pacer's port, where the guest has one, while it runs.
    pub fn pacer_socket(&self) -> PathBuf {
        self.files().pacer
    }

    /// The host's end of a port with a shell in the guest on it, where the guest has a pacer or is a Debian, while it runs. One connection at a time.
    pub fn shell_socket(&self) -> PathBuf {
        self.files().shell
    }

    fn files(&self) -> Files {
        Files::in_dir(self.host.dir(), &self.name, self.console_path())
    }

    /// The guest's own group in the hierarchy of `controller`, as seen from outside, while it runs on its host.
    pub fn cgroup_dir(&self, controller: &str) -> Result<PathBuf> {
        let guests = self.host.guests_cgroup_dir(controller)?;
        let end = format!("-{}.libvirt-qemu", self.name);
        let dirs = fs::read_dir(&guests).with_context(|| format!("reading {}", guests.display()))?;
        let mut dirs = dirs.flatten().map(|entry| entry.path());
        // qemu-ID-NAME.libvirt-qemu, and a name may be the end of another: the part before it is the id alone.
        let own = |dir: &PathBuf| {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let id = name.strip_suffix(&end).and_then(|rest| rest.strip_prefix("qemu-"));
            id.is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_digit()))
        };
        dirs.find(own).with_context(|| format!("{} has no group in {}: does it run?", self.name, guests.display()))
    }

    /// CPU time that the host gave to the guest so far, emulator included, in seconds.
    pub fn cpu_time_s(&self) -> Result<f64> {
        cpu_time_s(&self.cgroup_dir("cpuacct")?)
    }

    /// CPU time of QEMU's own threads so far, those that execute the guest's vCPUs left out, in seconds.
    pub fn emulator_time_s(&self) -> Result<f64> {
        cpu_time_s(&self.cgroup_dir("cpuacct")?.join("emulator"))
    }

    /// The quota that the guest's group enforces, in cores; `None` is unlimited.
    pub fn cpu_quota_cores(&self) -> Result<Option<f64>> {
        let dir = self.cgroup_dir("cpu")?;
        let read = |file: &str| {
            let file = dir.join(file);
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
        };
        let version_2 = dir.join(CPU_MAX).exists();
        let text = if version_2 { read(CPU_MAX)? } else { read(CFS_QUOTA)? + &read(CFS_PERIOD)? };
        let mut words = text.split_whitespace();
        let quota_us: i64 = match words.next() {
            Some("max") => -1,
            Some(word) => word.parse().with_context(|| format!("{text:?} is no quota"))?,
            None => bail!("{} tells no quota", dir.display()),
        };
        let period_us: i64 =
            words.next().and_then(|word| word.parse().ok()).with_context(|| format!("{text:?} has no period"))?;
        Ok((quota_us > 0).then(|| quota_us as f64 / period_us as f64))
    }

    /// Takes the quota away in the guest's group, past libvirt, as a careless script or a systemd that was reloaded does.
    pub fn unlimit_cpu_behind_libvirt(&self) -> Result<()> {
        let dir = self.cgroup_dir("cpu")?;
        let (file, unlimited) = if dir.join(CPU_MAX).exists() { (CPU_MAX, "max") } else { (CFS_QUOTA, "-1") };
        fs::write(dir.join(file), unlimited).with_context(|| format!("writing {}", dir.join(file).display()))
    }

    /// The threads in the guest's group and below.
    pub fn threads(&self) -> Result<Vec<u32>> {
        let dir = self.cgroup_dir("cpuacct")?;
        // Version 2 lets only threaded groups list their processes, and every group its threads.
        let file = if dir.join("cgroup.threads").exists() { "cgroup.threads" } else { "tasks" };
        threads_below(&dir, file)
    }
}

/// CPU time of a group and those below it, in seconds.
fn cpu_time_s(dir: &Path) -> Result<f64> {
    let parse = |file: &str, unit_s: f64| -> Result<f64> {
        let file = dir.join(file);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let count = text.lines().next().and_then(|line| line.trim_start_matches("usage_usec ").trim().parse().ok());
        let count: u64 = count.with_context(|| format!("{text:?} in {}", file.display()))?;
        Ok(count as f64 * unit_s)
    };
    if dir.join("cpuacct.usage").exists() { parse("cpuacct.usage", 1e-9) } else { parse("cpu.stat", 1e-6) }
}

fn threads_below(dir: &Path, file: &str) -> Result<Vec<u32>> {
    let text = fs::read_to_string(dir.join(file)).with_context(|| format!("reading {}", dir.display()))?;
    let mut threads: Vec<u32> = text.lines().filter_map(|tid| tid.parse().ok()).collect();
    for entry in fs::read_dir(dir)?.flatten().filter(|entry| entry.path().is_dir()) {
        threads.extend(threads_below(&entry.path(), file)?);
    }
    Ok(threads)
}

/// What a guest really wants, known to the lab alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// Demand over the time since `started_at`.
    pub schedule: Schedule,
    /// Time zero of the schedule, by the clock of the machine. Late by at most one poll of the console and the delay of
    /// the serial line: 15 ms on an idle machine.
    pub started_at: SystemTime,
}

impl Truth {
    /// Demand in cores at `time`; zero before the guest's program started.
    pub fn level_at(&self, time: SystemTime) -> f64 {
        match time.duration_since(self.started_at) {
            Ok(since) => self.schedule.level(since.as_secs_f64()),
            Err(_) => 0.0,
        }
    }
}

impl Lab {
    /// Defines a guest on a host, with the kernel and what else it boots (made at the first call).
    pub fn define(&self, host: &Host, options: &GuestOptions) -> Result<Guest> {
        check(options)?;
        ensure!(
            !self.state().guests.iter().any(|guest| guest.name == options.name),
            "there is a guest {} in this lab",
            options.name
        );
        let guest = Guest { name: options.name.clone(), uuid: options.uuid, host: host.clone() };
        let image = if options.debian { self.debian(&guest)? } else { image::ensure(&self.progress)? };
        if options.pacer && !options.debian {
            let scratch = guest.files().scratch;
            let made = File::create(&scratch).and_then(|file| file.set_len(SCRATCH_BYTES));
            made.with_context(|| format!("making {}", scratch.display()))?;
        }
        let xml = domain::xml(options, &image, &guest.files());
        self.define_xml(&guest, &xml)?;
        self.state().guests.push(GuestState {
            name: options.name.clone(),
            uuid: options.uuid,
            host: host.name().to_owned(),
            schedule: options.schedule.to_string(),
            started_at: None,
        });
        self.save()?;
        Ok(guest)
    }

    /// Gives the guest a disk, a layer on the one for all.
    fn debian(&self, guest: &Guest) -> Result<Image> {
        let boot = debian::guest::made(&self.progress)?;
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&boot.disk).arg(guest.files().disk);
        output(&mut command).with_context(|| format!("making the disk of {}", guest.name))?;
        Ok(Image { kernel: boot.kernel, initrd: boot.initrd })
    }

    fn define_xml(&self, guest: &Guest, xml: &str) -> Result<()> {
        let file = guest.host.dir().join(format!("{}.xml", guest.name));
        fs::write(&file, xml).with_context(|| format!("writing {}", file.display()))?;
        guest.host.virsh(["define".as_ref(), file.as_os_str()]).map(|_| ())
    }

    /// Starts guests and returns when the program of each has started, which is time zero of its schedule.
    pub fn boot(&self, guests: &[Guest]) -> Result<()> {
        for guest in guests {
            guest.start()?;
            self.progress.tell(format_args!("{} boots on {}", guest.name, guest.host.name()));
        }
        let deadline = Instant::now() + BOOT_DEADLINE;
        let mut waiting: Vec<&Guest> = guests.iter().collect();
        while !waiting.is_empty() {
            thread::sleep(CONSOLE_POLL);
            let mut still = Vec::new();
            for guest in waiting {
                let console = Console::read(&guest.console_path())?;
                let seen_at = SystemTime::now();
                if let Some(failure) = console.failure {
                    bail!("{} does not boot: {failure} ({})", guest.name, guest.console_path().display());
                }
                if !console.started {
                    still.push(guest);
                    continue;
                }
                self.started(&guest.name, seen_at)?;
                self.progress.tell(format_args!("{} is up", guest.name));
            }
            waiting = still;
            if Instant::now() > deadline {
                let names: Vec<_> = waiting.iter().map(|guest| guest.name()).collect();
                bail!("not booted after {} s: {}", BOOT_DEADLINE.as_secs(), names.join(", "));
            }
        }
        Ok(())
    }

    fn started(&self, name: &str, at: SystemTime) -> Result<()> {
        if let Some(guest) = self.state().guests.iter_mut().find(|guest| guest.name == name) {
            guest.started_at = Some(at);
        }
        self.save()
    }

    /// The guests that have been defined in this lab.
    pub fn guests(&self) -> Result<Vec<Guest>> {
        let guests = self.state().guests.clone();
        let guest =
            |guest: GuestState| Ok(Guest { host: self.host(&guest.host)?.clone(), name: guest.name, uuid: guest.uuid });
        guests.into_iter().map(guest).collect()
    }

    /// What a guest wants at any time. Never to be shown to anything that is judged by it.
    pub fn truth(&self, name: &str) -> Result<Truth> {
        let state = self.state();
        let guest = state.guests.iter().find(|guest| guest.name == name);
        let guest = guest.with_context(|| format!("no guest {name} in this lab"))?;
        let started_at = guest.started_at.with_context(|| format!("{name} has not booted yet"))?;
        Ok(Truth { schedule: guest.schedule.parse()?, started_at })
    }

    /// A compressed day for the guest of this name, drawn from `range` by the lab's seed.
    pub fn draw_day(&self, name: &str, range: &DayRange) -> Schedule {
        // FNV-1a: guests of one lab draw apart, and alike in each run with the same seed.
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Schedule::draw_day(name.bytes().fold(self.seed() ^ 0xcbf2_9ce4_8422_2325, mix), range)
    }
}

pub(super) fn check(options: &GuestOptions) -> Result<()> {
    let name = &options.name;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // libvirt shortens the names of groups of domains with more than 20 characters.
    ensure!(
        (1..=20).contains(&name.len()) && name.bytes().all(allowed),
        "{name:?} cannot name a guest: 1 to 20 lower-case letters, digits and hyphens"
    );
    ensure!(
        (1..=options.vcpus_max).contains(&options.vcpus)
            && (128..=options.memory_mib_max).contains(&options.memory_mib),
        "{name}: vCPUs and memory at boot are within 1..=vcpus_max and 128..=memory_mib_max MiB"
    );
    Ok(())
}
