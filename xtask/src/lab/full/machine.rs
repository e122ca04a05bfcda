//! One host of a full lab: a QEMU process outside, a Debian inside.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use uuid::Uuid;

use super::control::Control;
use super::disk::LAB_DIR;
use crate::lab::GuestOptions;
use crate::lab::debian::Boot;
use crate::lab::guest::{check, console::Console, domain};
use crate::lab::host::{libvirtd_conf, qemu_conf};
use crate::lab::image::Image;
use crate::lab::place::tail;

/// Memory of a host: Debian takes 150 MB, libvirtd and agent 100 MB, a guest 200 MB; the rest is for a lab within.
pub(super) const MEMORY_BYTES: u64 = 1536 << 20;
/// The emulated CPUs are threads of QEMU; more than the machine has would only fight each other.
const CPUS: u32 = 2;
/// Socket of the segment between two hosts, in the lab's directory.
pub(super) const SEGMENT: &str = "segment";
/// A kernel under emulation is up in 6 s on two idle cores, many times that on busy ones.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// Any script that does not say otherwise.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(60);
/// libvirtd probes QEMU twice, with KVM and without, before it can define a guest: 10 s on two idle cores.
const LIBVIRTD_PATIENCE: Duration = Duration::from_secs(180);
/// A guest boots under KVM in an emulated machine in 30 s, on busy cores several times that.
const GUEST_BOOT_PATIENCE: Duration = Duration::from_secs(120);
/// Starts of a guest. Some never come up: the emulated SVM (seen with QEMU 7.2) interrupts a guest that has interrupts disabled, mostly with nested
/// paging, and its kernel then waits for ever for a lock of a run-queue that it holds itself.
const GUEST_BOOTS_MAX: u32 = 4;
const POLL: Duration = Duration::from_millis(500);

/// Under TCG the TSC is that of the machine below, calibrated against an emulated timer: it would run at a wrong speed.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off nokaslr \
                              random.trust_cpu=on audit=0 tsc=unstable clocksource=hpet \
                              init=/usr/sbin/gnomon-host";

/// What a machine is started with.
pub(super) struct Settings<'a> {
    pub(super) boot: &'a Boot,
    pub(super) programs: &'a Path,
    /// There is no segment.
    pub(super) alone: bool,
}

/// A host.
#[derive(Debug)]
pub struct Machine {
    name: String,
    index: usize,
    lab_dir: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
    control: Mutex<Option<Control>>,
}

impl Machine {
    /// The handle; [`Machine::start`] makes the machine itself.
    pub(super) fn new(index: usize, lab_dir: &Path, logs: &Path) -> Self {
        let name = format!("h{}", index + 1);
        let dir = lab_dir.join(&name);
        Machine { name, index, lab_dir: lab_dir.to_owned(), dir, logs: logs.to_owned(), control: Mutex::new(None) }
    }

    /// Starts QEMU; `command` is the one to complete.
    pub(super) fn start(&self, mut command: Command, settings: &Settings<'_>) -> Result<Child> {
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        let Settings { boot, programs, alone } = settings;
        let mut kernel_line = format!("{KERNEL_OPTIONS} gnomon.name={}", self.name);
        // SVM is what makes /dev/kvm inside; TCG emulates AMD's, not Intel's.
        let machine = ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm"];
        command.args(machine).args(["-smp", &CPUS.to_string(), "-m", &format!("{}M", MEMORY_BYTES >> 20)]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
        // The disk is shared by all hosts: what each writes is in a file without a name, beside the socket.
        drive(&mut command, &boot.disk, "snapshot=on");
        drive(&mut command, programs, "readonly=on");
        command.env("TMPDIR", &self.dir);
        command.arg("-serial").arg(format!("file:{}", escape(&self.log("console"))));
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=gnomon.control"]);
        let socket = escape(&self.dir.join("control"));
        command.args(["-chardev", &format!("socket,id=control,path={socket},server=on,wait=off")]);
        command.args(["-netdev", "user,id=outside,ipv6=off", "-device", &self.network_card("outside", 0)]);
        if !alone {
            let role = if self.index == 0 { "server=on" } else { "server=off" };
            let socket = escape(&self.lab_dir.join(SEGMENT));
            let segment = format!("stream,id=segment,{role},addr.type=unix,addr.path={socket}");
            command.args(["-netdev", &segment, "-device", &self.network_card("segment", 1)]);
            kernel_line += &format!(" gnomon.address={}", self.address());
        }
        command.args(["-append", &kernel_line]);
        let log = File::create(self.log("qemu")).context("making the log of QEMU")?;
        // A group of its own: an interrupt from the terminal must reach the owner alone.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("starting qemu-system-x86_64")
    }

    fn network_card(&self, netdev: &str, number: usize) -> String {
        format!("virtio-net-pci,netdev={netdev},romfile=,mac=52:54:00:67:{number:02x}:{:02x}", self.index + 1)
    }

    /// Waits for the host to take scripts, sets its clock and starts its libvirtd.
    pub(super) fn prepare(&self, guest: &Image) -> Result<()> {
        self.run_within("true", BOOT_PATIENCE).context("booting")?;
        let address = self.address();
        let uuid = Uuid::new_v4();
        self.write("/etc/libvirt/libvirtd.conf", &libvirtd_conf(self.libvirt_address(), uuid))?;
        self.write("/etc/libvirt/qemu.conf", &qemu_conf(address))?;
        self.write("/etc/hosts", "127.0.0.1 localhost\n10.78.0.1 h1\n10.78.0.2 h2\n")?;
        self.write("/lab/guest-kernel", &guest.kernel.to_string_lossy())?;
        self.write("/lab/guest-initrd", &guest.initrd.to_string_lossy())?;
        self.set_clock()?;
        let start = "mkdir -p /var/log/libvirt /var/log/console
            echo $$ > /sys/fs/cgroup/system/cgroup.procs
            setsid libvirtd --listen > /var/log/libvirtd.out 2>&1 &";
        self.run(start)?;
        let wait = "until virsh --quiet --connect qemu:///system version > /run/virsh.log 2>&1; do sleep 0.5; done";
        self.run_within(wait, LIBVIRTD_PATIENCE).with_context(|| {
            format!(
                "libvirtd:\n{}",
                self.run("tail /run/virsh.log /var/log/libvirtd.out /var/log/libvirt/*.log").unwrap_or_default()
            )
        })?;
        Ok(())
    }

    /// A booting machine takes its time from a clock of whole seconds, and an emulated one is slow to do so.
    fn set_clock(&self) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        self.run(&format!("date --utc --set=@{}.{:03}", now.as_secs(), now.subsec_millis())).map(|_| ())
    }

    /// Name inside the lab: `h1` or `h2`; also its hostname.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address on the segment between the hosts.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.index as u8 + 1)
    }

    fn libvirt_address(&self) -> Ipv4Addr {
        // A host without a segment has no such address to listen on.
        if self.lab_dir.join(SEGMENT).exists() { self.address() } else { Ipv4Addr::LOCALHOST }
    }

    /// What the machine, or QEMU, has written: `console` or `qemu`.
    pub fn log(&self, of: &str) -> PathBuf {
        self.logs.join(format!("{}.{of}.log", self.name))
    }

    /// Runs a bash script on the host, with `-eu`, as root; returns what it wrote. Its failure carries what it said and the
    /// end of the machine's console.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, SCRIPT_PATIENCE)
    }

    /// The same for scripts that may take longer.
    pub fn run_within(&self, script: &str, patience: Duration) -> Result<String> {
        // What a panic elsewhere left of a connection is still in step: answers carry ids.
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match &mut *control {
            Some(control) => control.run(script, patience),
            none => self.connect().and_then(|new| none.insert(new).run(script, patience)),
        };
        answer.with_context(|| {
            let first = script.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
            format!(
                "on {}: {first}\nend of {}:\n{}",
                self.name,
                self.log("console").display(),
                tail(&self.log("console"))
            )
        })
    }

    fn connect(&self) -> Result<Control> {
        let socket = self.dir.join("control");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Control::connect(&socket) {
                Ok(control) => return Ok(control),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("QEMU says:\n{}", tail(&self.log("qemu")))));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Writes a text file on the host.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        // No text of the lab has such a line.
        const END: &str = "END-OF-A-FILE-OF-THE-LAB";
        ensure!(!text.contains(END), "{path} cannot be sent");
        let text = text.strip_suffix('\n').unwrap_or(text);
        self.run(&format!("mkdir -p \"$(dirname {path})\"\ncat > {path} <<'{END}'\n{text}\n{END}\n")).map(|_| ())
    }

    /// Runs virsh against the host's libvirt.
    pub fn virsh(&self, arguments: &str) -> Result<String> {
        self.run(&format!("virsh --quiet --connect qemu:///system {arguments}"))
    }

    /// Starts one of our programs on the host, in the cgroup of its daemons; its output is appended to `/var/log/NAME.log`.
    pub fn spawn(&self, program: &str, arguments: &str) -> Result<()> {
        let script = format!(
            "echo $$ > /sys/fs/cgroup/system/cgroup.procs
            setsid {LAB_DIR}/bin/{program} {arguments} >> /var/log/{program}.log 2>&1 &
            echo $! > /run/{program}.pid"
        );
        self.run(&script).map(|_| ())
    }

    /// Defines and boots a guest; returns once its program has started.
    pub fn boot(&self, options: &GuestOptions) -> Result<Guest<'_>> {
        self.boot_changed(options, |xml| xml)
    }

    /// The same for a guest whose definition is changed first.
    pub fn boot_changed(&self, options: &GuestOptions, change: impl FnOnce(String) -> String) -> Result<Guest<'_>> {
        check(options)?;
        ensure!(
            !options.pacer && !options.debian,
            "{}: guests of a full lab run the lab's own program alone",
            options.name
        );
        let name = options.name.clone();
        let file = |name: &str| -> Result<PathBuf> { Ok(self.run(&format!("cat {LAB_DIR}/{name}"))?.trim().into()) };
        let image = Image { kernel: file("guest-kernel")?, initrd: file("guest-initrd")? };
        let console = format!("/var/log/console/{name}.log");
        self.write(
            &format!("/run/{name}.xml"),
            &change(domain::xml(options, &image, &domain::Files::in_dir(Path::new("/run"), &name, console.into()))),
        )?;
        self.virsh(&format!("define /run/{name}.xml"))?;
        let guest = Guest::of(&name, self);
        for attempt in 1..=GUEST_BOOTS_MAX {
            self.run_within(&format!("virsh --quiet --connect qemu:///system start {name}"), LIBVIRTD_PATIENCE)?;
            if guest.starts(GUEST_BOOT_PATIENCE)? {
                return Ok(guest);
            }
            println!("{name} hangs, as emulated ones do at times: start {attempt} of {GUEST_BOOTS_MAX} is given up");
            self.virsh(&format!("destroy {name}"))?;
        }
        bail!("{name} does not boot:\n{}", guest.console()?);
    }
}

/// KVM's own statistics of a guest, all vCPUs together.
#[derive(Debug, Clone, Copy)]
pub struct KvmCounts {
    /// Exits.
    pub exits: u64,
    /// Those for a halt.
    pub halts: u64,
    /// How long vCPUs were halted, in seconds.
    pub halted_s: f64,
}

/// What a guest's control group has counted of its memory.
#[derive(Debug, Clone, Copy)]
pub struct MemoryEvents {
    /// How often it was above its limit when memory was charged to it, and something was reclaimed for that.
    pub above_limit: u64,
    /// Faults that needed I/O.
    pub major_faults: u64,
}

/// A guest that runs on a host of a full lab.
#[derive(Debug, Clone)]
pub struct Guest<'a> {
    name: String,
    host: &'a Machine,
}

impl<'a> Guest<'a> {
    /// The guest of this name, which runs on `host`.
    pub fn of(name: &str, host: &'a Machine) -> Guest<'a> {
        Guest { name: name.to_owned(), host }
    }

    /// Name of the domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its program to start; `false` if it has not by then.
    fn starts(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let text = self.console()?;
            let console = Console::parse(&text);
            if let Some(failure) = console.failure {
                bail!("{} does not boot: {failure}", self.name);
            }
            if console.started {
                return Ok(true);
            }
            thread::sleep(POLL);
        }
        Ok(false)
    }

    /// Its console so far.
    pub fn console(&self) -> Result<String> {
        self.host.run(&format!("cat /var/log/console/{}.log || true", self.name))
    }

    /// Its cgroup, as a pattern for a shell on the host: libvirt numbers its domains.
    fn cgroup(&self) -> String {
        format!("/sys/fs/cgroup/machine/qemu-*-{}.libvirt-qemu", self.name)
    }

    /// CPU time charged to its cgroup, in seconds, and when that was, by the host's clock, in milliseconds since the epoch.
    pub fn cpu_time(&self) -> Result<(f64, u64)> {
        let text = self.host.run(&format!("cat {}/cpu.stat\ndate +%s%3N", self.cgroup()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let usage_us: u64 = usage.and_then(|text| text.parse().ok()).with_context(|| format!("no usage in {text}"))?;
        let now_ms = text.lines().last().and_then(|text| text.parse().ok()).context("no time")?;
        Ok((usage_us as f64 / 1e6, now_ms))
    }

    /// How long some thread of its cgroup has waited for memory, in seconds: the kernel's total (PSI).
    pub fn memory_stalled_s(&self) -> Result<f64> {
        let text = self.host.run(&format!("cat {}/memory.pressure", self.cgroup()))?;
        let total = text.lines().find(|line| line.starts_with("some")).and_then(|line| line.split_once("total="));
        let total_us: f64 =
            total.and_then(|(_, us)| us.trim().parse().ok()).with_context(|| format!("no total in {text}"))?;
        Ok(total_us / 1e6)
    }

    /// What its cgroup has counted of its memory.
    pub fn memory_events(&self) -> Result<MemoryEvents> {
        let text = self.host.run(&format!("cd {}; cat memory.events memory.stat", self.cgroup()))?;
        let count = |key: &str| -> Result<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            value.and_then(|text| text.parse().ok()).with_context(|| format!("no {key} in {text}"))
        };
        Ok(MemoryEvents { above_limit: count("high")?, major_faults: count("pgmajfault")? })
    }

    /// Has its cgroup reclaim what it holds above this share of the present (`memory.high`); without one there is no limit.
    pub fn limit_memory(&self, share: Option<f64>) -> Result<()> {
        let percent =
            share.map_or("max".to_owned(), |share| format!("$(($(cat memory.current) / 100 * {:.0}))", share * 100.0));
        self.host.run(&format!("cd {}; echo {percent} > memory.high", self.cgroup())).map(|_| ())
    }

    /// What KVM itself has counted since the guest's start; it must be the only one on its host.
    pub fn kvm_counts(&self) -> Result<KvmCounts> {
        let text = self.host.run(
            "mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
            cd /sys/kernel/debug/kvm/[0-9]*/
            cat exits halt_exits halt_wait_ns halt_poll_success_ns halt_poll_fail_ns",
        )?;
        let counts: Vec<u64> = text.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        let [exits, halts, waited_ns, polled_ns, polled_in_vain_ns] = counts[..] else { bail!("KVM counts {text:?}") };
        Ok(KvmCounts { exits, halts, halted_s: (waited_ns + polled_ns + polled_in_vain_ns) as f64 / 1e9 })
    }

    /// The quota in force, in cores; `None` is unlimited.
    pub fn quota_cores(&self) -> Result<Option<f64>> {
        let text = self.host.run(&format!("cat {}/cpu.max", self.cgroup()))?;
        let (quota, period) = text.trim().split_once(' ').with_context(|| format!("{text:?} in cpu.max"))?;
        let period: f64 = period.parse()?;
        Ok(if quota == "max" { None } else { Some(quota.parse::<f64>()? / period) })
    }
}

fn drive(command: &mut Command, file: &Path, option: &str) {
    command.args(["-drive", &format!("file={},if=virtio,format=raw,{option}", escape(file))]);
}

/// QEMU's option parser takes a comma for the end of a value.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
