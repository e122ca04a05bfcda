//! The domain XML of a guest.

use std::path::{Path, PathBuf};

use super::GuestOptions;
use crate::lab::image::Image;

/// CFS period of the quota; the default of kernel and libvirt.
const QUOTA_PERIOD_US: u32 = 100_000;

/// What the guest's kernel leaves out to boot quickly under emulation.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr random.trust_cpu=on \
                              audit=0 cryptomgr.notests";
/// What an emulated guest needs besides. It does not use the TSC as a clock: under TCG it is the host's, calibrated against an
/// emulated timer while other guests boot, and then runs at a wrong speed for ever. With KVM there is a clock of KVM's own.
///
/// Isolated page tables make the guest flush its TLB at each system call. QEMU before 9.0 forgets, while it migrates an emulated guest,
/// that pages in that TLB are to be marked as written to ("physmem: Fix migration dirty bitmap coherency with TCG memory access"): a guest
/// that hardly ever flushes it arrives without some of its writes, and dies of that.
const EMULATED: &str = "tsc=unstable clocksource=hpet pti=on ";

/// Where a guest's files are on its host.
pub(in crate::lab) struct Files {
    pub(in crate::lab) console: PathBuf,
    pub(in crate::lab) pacer: PathBuf,
    pub(in crate::lab) shell: PathBuf,
    pub(in crate::lab) scratch: PathBuf,
    pub(in crate::lab) disk: PathBuf,
}

impl Files {
    /// By the guest's name in a directory, but for the console.
    pub(in crate::lab) fn in_dir(dir: &Path, name: &str, console: PathBuf) -> Self {
        let file = |kind: &str| dir.join(format!("{name}.{kind}"));
        let [pacer, shell, scratch, disk] = ["pacer", "shell", "scratch", "qcow2"].map(file);
        Files { console, pacer, shell, scratch, disk }
    }
}

/// What a Debian is told besides: the serial line is for the boot's log alone.
const DEBIAN_OPTIONS: &str = "systemd.show_status=yes systemd.getty_auto=no";

/// A port; the guest finds it by its name.
fn channel(name: &str, socket: &Path) -> String {
    format!(
        "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='{name}'/></channel>",
        path(socket)
    )
}

/// The guest's only disk.
fn disk(driver: &str, file: &Path) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' {driver}/><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        path(file)
    )
}

pub(in crate::lab) fn xml(options: &GuestOptions, image: &Image, files: &Files) -> String {
    let GuestOptions { name, uuid, vcpus, vcpus_max, memory_mib, memory_mib_max, schedule, quota_cores, cpus, .. } =
        options;
    let mut devices = String::new();
    if options.pacer {
        devices += &channel("org.gnomon.pacer.0", &files.pacer);
    }
    if options.pacer || options.debian {
        devices += &channel("org.gnomon.lab.0", &files.shell);
    }
    if options.debian {
        devices += &disk("type='qcow2'", &files.disk);
    } else if options.pacer {
        devices += &disk("type='raw' cache='none'", &files.scratch);
    }
    if let Some(bridge) = &options.bridge {
        devices += &format!(
            "<interface type='bridge'><source bridge='{}'/><model type='virtio'/></interface>",
            escape(bridge)
        );
    }
    let pacer = if options.pacer { "gnomon.pacer " } else { "" };
    let (kind, emulated) = if options.kvm { ("kvm", "") } else { ("qemu", EMULATED) };
    let mut tuning = String::new();
    if let Some(cpus) = cpus {
        for vcpu in 0..*vcpus_max {
            tuning += &format!("<vcpupin vcpu='{vcpu}' cpuset='{}'/>", escape(cpus));
        }
    }
    if let Some(cores) = quota_cores {
        let quota_us = (cores * f64::from(QUOTA_PERIOD_US)).round();
        tuning += &format!("<global_period>{QUOTA_PERIOD_US}</global_period><global_quota>{quota_us}</global_quota>");
    }
    let (kernel, initrd, console) = (path(&image.kernel), path(&image.initrd), path(&files.console));
    let program = if options.debian { DEBIAN_OPTIONS.to_owned() } else { format!("{pacer}gnomon.load={schedule}") };
    let command_line = escape(&format!("{KERNEL_OPTIONS} {emulated}{program}"));
    format!(
        "\
<domain type='{kind}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib_max}</memory>
  <currentMemory unit='MiB'>{memory_mib}</currentMemory>
  <vcpu placement='static' current='{vcpus}'>{vcpus_max}</vcpu>
  <cputune>{tuning}</cputune>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <clock offset='utc'><timer name='hpet' present='yes'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    <serial type='file'><source path='{console}' append='on'/><target port='0'/></serial>
    <memballoon model='virtio' freePageReporting='on'><stats period='1'/></memballoon>
    {devices}
  </devices>
</domain>
"
    )
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(console: &str) -> Files {
        Files::in_dir(Path::new("/run"), "g1", console.into())
    }

    #[test]
    fn a_pacer_comes_with_ports_a_disk_and_a_word_for_init() {
        let mut options = GuestOptions::new("g1", "constant:0".parse().unwrap());
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        let without = xml(&options, &image, &files("/c"));
        assert!(!without.contains("<channel") && !without.contains("<interface") && !without.contains("gnomon.pacer"));
        (options.pacer, options.bridge) = (true, Some("net0".to_owned()));
        let with = xml(&options, &image, &files("/c"));
        assert!(with.contains("path='/run/g1.pacer'/><target type='virtio' name='org.gnomon.pacer.0'/>"));
        assert!(with.contains("<source file='/run/g1.scratch'/>") && with.contains("<source bridge='net0'/>"));
        assert!(with.contains("gnomon.pacer gnomon.load="));
    }

    #[test]
    fn a_debian_has_a_disk_and_a_shell_and_the_pacers_port_only_where_it_is_asked_for() {
        let mut options = GuestOptions::new("g1", "constant:0".parse().unwrap());
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        options.debian = true;
        let production = xml(&options, &image, &files("/c"));
        assert!(
            production.contains("type='qcow2'/><source file='/run/g1.qcow2'/>")
                && production.contains("org.gnomon.lab.0")
        );
        assert!(!production.contains("org.gnomon.pacer.0") && !production.contains("gnomon.load"));
        options.pacer = true;
        let shadow = xml(&options, &image, &files("/c"));
        assert!(
            shadow.contains("org.gnomon.pacer.0")
                && !shadow.contains("g1.scratch")
                && !shadow.contains("gnomon.pacer ")
        );
    }

    #[test]
    fn a_path_cannot_break_out_of_its_attribute() {
        let options = GuestOptions::new("g1", "constant:0.5".parse().unwrap());
        let image = Image { kernel: "/a&b/vmlinuz".into(), initrd: "/it's/initrd".into() };
        let xml = xml(&options, &image, &files("/x'/><evil/>"));
        assert!(xml.contains("<kernel>/a&amp;b/vmlinuz</kernel>") && xml.contains("/it&apos;s/initrd"));
        assert!(!xml.contains("<evil/>") && xml.contains("gnomon.load=constant:0.5</cmdline>"));
    }

    #[test]
    fn a_guest_under_kvm_uses_the_clock_that_kvm_has() {
        let mut options = GuestOptions::new("g1", "constant:0.5".parse().unwrap());
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        let emulated = xml(&options, &image, &files("/c"));
        assert!(emulated.contains("<domain type='qemu'>") && emulated.contains("clocksource=hpet pti=on gnomon.load="));
        options.kvm = true;
        let accelerated = xml(&options, &image, &files("/c"));
        assert!(
            accelerated.contains("<domain type='kvm'>")
                && !accelerated.contains("clocksource")
                && !accelerated.contains("pti")
        );
    }

    #[test]
    fn pins_and_quota_are_there_when_asked_for() {
        let mut options = GuestOptions::new("g1", "constant:0.5".parse().unwrap());
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        assert!(xml(&options, &image, &files("/c")).contains("<cputune></cputune>"));
        options.quota_cores = Some(0.25);
        options.cpus = Some("1".into());
        let xml = xml(&options, &image, &files("/c"));
        assert!(xml.contains("<global_quota>25000</global_quota>"));
        assert!(xml.contains("<vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='1'/>"));
    }
}
