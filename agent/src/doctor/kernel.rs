//! What the kernel and the rights of this process give.

use super::Check;
use crate::host::kernel_file::read_text;
use crate::host::process::Proc;
use crate::probe::{self, Tracefs};
use rustix::process::geteuid;
use std::fs;
use std::path::Path;
use std::time::Instant;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
const PRESSURE: &str = "/proc/pressure/memory";

/// A clock that takes longer than this to read is not read by the CPU but over a bus: each context switch of a VM reads it.
const CLOCK_NS_MAX: u128 = 300;
const CLOCK_READINGS: u32 = 1_000;

/// Capabilities that matter here, with their numbers (`linux/capability.h`) and what each is for.
const CAPABILITIES: [(&str, u32, &str); 4] = [
    ("CAP_BPF", 39, "loads eBPF programs"),
    ("CAP_PERFMON", 38, "attaches them"),
    ("CAP_DAC_READ_SEARCH", 2, "reads tracefs where there is no BTF"),
    ("CAP_SYS_ADMIN", 21, "shows what the programs cost"),
];

pub(super) fn examine() -> Vec<Check> {
    vec![capabilities(&Proc::default()), btf(), tracefs(), ring_buffer(), clock(), pressure(), cgroups(), kvm()]
}

fn capabilities(proc: &Proc) -> Check {
    let (signal, source) = ("capabilities", "/proc/self/status");
    let held = read_text(&proc.path("self/status")).ok().and_then(|text| {
        let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim();
        u64::from_str_radix(mask, 16).ok()
    });
    let user = if geteuid().is_root() { "root" } else { "an ordinary user" };
    let Some(held) = held else {
        return Check::degraded(signal, source, "cannot be read").enable("mount /proc");
    };
    let has = |number: u32| held >> number & 1 != 0;
    let list = |wanted: bool| {
        let found = CAPABILITIES.iter().filter(|(_, number, _)| has(*number) == wanted);
        found
            .map(|(name, _, what)| if wanted { (*name).to_owned() } else { format!("{name} ({what})") })
            .collect::<Vec<_>>()
    };
    let names = match list(true).as_slice() {
        [] => "none of those that matter here".to_owned(),
        held => held.join(", "),
    };
    let why = format!("{user} with {names}");
    if has(39) && has(38) {
        Check::ok(signal, source, why)
    } else {
        Check::degraded(signal, source, why).enable(format!("root, or: {}", list(false).join(", ")))
    }
}

fn btf() -> Check {
    match fs::metadata(BTF).and_then(|_| fs::read(BTF)) {
        Ok(blob) => Check::ok("BTF", BTF, format!("{} KiB of type information", blob.len() / 1024)),
        Err(error) => {
            Check::unavailable("BTF", BTF, error.to_string()).enable("a kernel built with CONFIG_DEBUG_INFO_BTF=y")
        }
    }
}

fn tracefs() -> Check {
    let found = Tracefs::find().and_then(|tracefs| {
        let offset = tracefs.field_offset("sched", "sched_switch", "next_pid")?;
        Ok((tracefs.root().display().to_string(), offset))
    });
    match found {
        Ok((root, offset)) => Check::ok("tracefs", root, format!("sched_switch tells next_pid at byte {offset}")),
        Err(error) => Check::unavailable("tracefs", "/sys/kernel/tracing", error.to_string())
            .enable("needed only where there is no BTF: mount -t tracefs nodev /sys/kernel/tracing, and CAP_DAC_READ_SEARCH or root"),
    }
}

fn ring_buffer() -> Check {
    let (signal, source) = ("eBPF ring buffer", "bpf(2)");
    match probe::has_ring_buffer() {
        Ok(true) => Check::ok(signal, source, "carries the programs' log"),
        Ok(false) => Check::unavailable(signal, source, "the kernel has no such map")
            .enable("a kernel with BPF_MAP_TYPE_RINGBUF"),
        Err(error) => Check::unavailable(signal, source, error.to_string()).enable("CAP_BPF, or root"),
    }
}

fn clock() -> Check {
    let source = read_text(Path::new(CLOCK_SOURCE)).unwrap_or_else(|_| "unknown".to_owned());
    let start = Instant::now();
    for _ in 0..CLOCK_READINGS {
        std::hint::black_box(Instant::now());
    }
    let reading_ns = start.elapsed().as_nanos() / u128::from(CLOCK_READINGS);
    let why = format!("{reading_ns} ns a reading");
    if reading_ns <= CLOCK_NS_MAX {
        Check::ok("clock", source.trim(), why)
    } else {
        Check::degraded("clock", source.trim(), format!("{why}: each context switch of a VM takes one")).enable(
            "a fast clock source (tsc, kvm-clock): see current_clocksource and the kernel's log for why it is not used",
        )
    }
}

fn pressure() -> Check {
    match fs::read_to_string(PRESSURE) {
        Ok(text) => Check::ok("pressure (PSI)", PRESSURE, text.lines().next().unwrap_or("empty").to_owned()),
        Err(error) => Check::unavailable("pressure (PSI)", PRESSURE, error.to_string())
            .enable("a kernel with CONFIG_PSI, started with psi=1 where it is off by default"),
    }
}

fn cgroups() -> Check {
    let (signal, source) = ("cgroups", "/proc/self/mountinfo");
    let text = fs::read_to_string(source).unwrap_or_default();
    let (version_1, version_2) = cgroup_mounts(&text);
    match (version_1.is_empty(), version_2) {
        (true, true) => Check::ok(signal, source, "version 2"),
        (false, false) => Check::ok(signal, source, format!("version 1: {}", version_1.join(" "))),
        (false, true) => Check::ok(signal, source, format!("version 1 beside version 2: {}", version_1.join(" "))),
        (true, false) => Check::unavailable(signal, source, "no hierarchy is mounted: no usage, throttling or limits")
            .enable("mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// Controllers of version 1 that are mounted, and whether version 2 is.
fn cgroup_mounts(mountinfo: &str) -> (Vec<String>, bool) {
    const OF_INTEREST: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "blkio"];
    let filesystems = || mountinfo.lines().filter_map(|line| Some(line.split_once(" - ")?.1));
    let mut controllers: Vec<String> = filesystems()
        .filter_map(|filesystem| filesystem.strip_prefix("cgroup ")?.rsplit(' ').next())
        .flat_map(|options| options.split(','))
        .filter(|option| OF_INTEREST.contains(option))
        .map(str::to_owned)
        .collect();
    controllers.sort();
    controllers.dedup();
    (controllers, filesystems().any(|filesystem| filesystem.starts_with("cgroup2 ")))
}

fn kvm() -> Check {
    match fs::metadata("/dev/kvm") {
        Ok(_) => Check::ok("KVM", "/dev/kvm", "is there; whether guests use it is below"),
        Err(error) => {
            Check::degraded("KVM", "/dev/kvm", format!("{error}: guests are emulated (TCG), many times slower"))
                .enable("virtualisation enabled in the firmware, and the module kvm_intel or kvm_amd loaded")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use proptest::prelude::*;

    #[test]
    fn hierarchies_of_both_versions_are_told_apart() {
        let v1 = "31 23 0:28 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        let v2 = "32 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(cgroup_mounts(v1), (vec!["cpu".to_owned(), "cpuacct".to_owned()], false));
        assert_eq!(cgroup_mounts(v2), (Vec::new(), true));
        assert!(cgroup_mounts(&format!("{v1}{v2}")).1);
        assert_eq!(cgroup_mounts("what\n"), (Vec::new(), false));
    }

    #[test]
    fn what_is_not_held_is_named_with_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("self")).unwrap();
        let with = |mask: u64| {
            fs::write(dir.path().join("self/status"), format!("Name:\tx\nCapEff:\t{mask:016x}\n")).unwrap();
            capabilities(&Proc::at(dir.path()))
        };
        let check = with(1 << 39);
        assert_eq!(check.state, State::Degraded);
        assert!(check.why.ends_with("with CAP_BPF") && check.enable.unwrap().contains("CAP_PERFMON (attaches them)"));
        assert_eq!(with(1 << 39 | 1 << 38).state, State::Ok);
    }

    proptest! {
        #[test]
        fn no_mountinfo_makes_the_parser_panic(text in "[ -~\\n]{0,80}") {
            let _ = cgroup_mounts(&text);
        }
    }
}
