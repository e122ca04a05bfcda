//! What real VMs need: first what no installation can bring, then what setup brings, then what the lab finds.

use std::path::Path;

use crate::lab;
use crate::setup::{self, items::Purpose};

/// What is missing for real VMs, each with what to do about it; empty means they are possible. Installs what can be installed, if
/// `install` allows, and only where nothing else is in the way.
pub(super) fn prepare(install: bool) -> Vec<String> {
    let mut missing = missing_of_the_machine();
    if missing.is_empty()
        && install
        && let Err(error) = setup::ensure(&[Purpose::Build, Purpose::Lab])
    {
        missing.push(format!("what `cargo xtask setup` installs: {error:#}"));
    }
    if missing.is_empty()
        && let Err(error) = lab::check_machine()
    {
        missing.push(format!("{error:#}"));
    }
    missing
}

fn missing_of_the_machine() -> Vec<String> {
    let checks = [
        (
            rustix::process::geteuid().is_root(),
            "root: eBPF, cgroups and network namespaces need it; run `sudo cargo xtask demo`",
        ),
        (
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "kernel type information (/sys/kernel/btf/vmlinux): a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
        (Path::new("/proc/self/ns/net").exists(), "network namespaces: a kernel built with CONFIG_NET_NS"),
        (Path::new("/proc/self/ns/cgroup").exists(), "cgroup namespaces: a kernel built with CONFIG_CGROUPS"),
    ];
    checks.into_iter().filter(|(there, _)| !there).map(|(_, lack)| lack.to_owned()).collect()
}
