//! What real VMs need, checked one by one.

use std::path::Path;

/// Whether `setup` may install what is missing: root on a Debian.
pub(super) fn can_install() -> bool {
    is_root() && Path::new("/etc/debian_version").exists() && program("apt-get")
}

/// What is missing for real VMs, each with what to do about it; empty means they are possible.
pub(super) fn missing() -> Vec<String> {
    let checks = [
        (is_root(), "root: eBPF, cgroups and network namespaces need it; run `sudo cargo xtask demo`"),
        (
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "kernel type information (/sys/kernel/btf/vmlinux): a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
        (cgroup_controller("cpu"), "the cgroup cpu controller: CONFIG_CFS_BANDWIDTH and a mounted cgroup hierarchy"),
        (Path::new("/proc/self/ns/net").exists(), "network namespaces: CONFIG_NET_NS"),
        (
            program("libvirtd"),
            "libvirtd: on Debian `cargo xtask setup` installs it; elsewhere install libvirt with its QEMU driver",
        ),
        (
            program("qemu-system-x86_64"),
            "qemu-system-x86_64: on Debian `cargo xtask setup` installs it; elsewhere install QEMU",
        ),
        (
            program("bpf-linker") || cargo_program("bpf-linker"),
            "bpf-linker: `cargo xtask setup`, or `cargo install bpf-linker`",
        ),
    ];
    checks.into_iter().filter(|(there, _)| !there).map(|(_, lack)| lack.to_owned()).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(name).is_file())
}

fn cargo_program(name: &str) -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".cargo/bin").join(name).is_file())
}

fn cgroup_controller(name: &str) -> bool {
    let v1 = Path::new("/sys/fs/cgroup").join(name).join("cpu.cfs_quota_us");
    let v1_root = Path::new("/sys/fs/cgroup").join(name).join("cgroup.procs");
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    v1.exists() || v1_root.exists() || v2.split_whitespace().any(|controller| controller == name)
}
