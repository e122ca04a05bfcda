//! The domain XML of a guest.

use std::path::Path;

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

pub(in crate::lab) fn xml(options: &GuestOptions, image: &Image, console: &Path) -> String {
    let GuestOptions { name, uuid, vcpus, vcpus_max, memory_mib, memory_mib_max, schedule, quota_cores, cpus, kvm } =
        options;
    let (kind, emulated) = if *kvm { ("kvm", "") } else { ("qemu", EMULATED) };
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
    let (kernel, initrd, console) = (path(&image.kernel), path(&image.initrd), path(console));
    let command_line = escape(&format!("{KERNEL_OPTIONS} {emulated}gnomon.load={schedule}"));
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

    #[test]
    fn a_path_cannot_break_out_of_its_attribute() {
        let options = GuestOptions::new("g1", "constant:0.5".parse().unwrap());
        let image = Image { kernel: "/a&b/vmlinuz".into(), initrd: "/it's/initrd".into() };
        let xml = xml(&options, &image, Path::new("/x'/><evil/>"));
        assert!(xml.contains("<kernel>/a&amp;b/vmlinuz</kernel>") && xml.contains("/it&apos;s/initrd"));
        assert!(!xml.contains("<evil/>") && xml.contains("gnomon.load=constant:0.5</cmdline>"));
    }

    #[test]
    fn a_guest_under_kvm_uses_the_clock_that_kvm_has() {
        let mut options = GuestOptions::new("g1", "constant:0.5".parse().unwrap());
        let image = Image { kernel: "/k".into(), initrd: "/i".into() };
        let emulated = xml(&options, &image, Path::new("/c"));
        assert!(emulated.contains("<domain type='qemu'>") && emulated.contains("clocksource=hpet pti=on gnomon.load="));
        options.kvm = true;
        let accelerated = xml(&options, &image, Path::new("/c"));
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
        assert!(xml(&options, &image, Path::new("/c")).contains("<cputune></cputune>"));
        options.quota_cores = Some(0.25);
        options.cpus = Some("1".into());
        let xml = xml(&options, &image, Path::new("/c"));
        assert!(xml.contains("<global_quota>25000</global_quota>"));
        assert!(xml.contains("<vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='1'/>"));
    }
}
