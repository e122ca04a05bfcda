//! What a thread of a VM is for.

use std::fmt;

/// One thread of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmThread {
    /// Its thread id.
    pub tid: u32,
    /// What it does.
    pub role: ThreadRole,
}

/// What a VM's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadRole {
    /// Executes the guest's CPU of this number.
    Vcpu(u32),
    /// Serves disks apart from the main loop.
    IoThread,
    /// Moves network packets in the kernel, on the VM's account.
    Vhost,
    /// QEMU's main loop.
    Emulator,
    /// Anything else: asynchronous I/O, migration, display.
    Worker,
}

/// The name of QEMU's thread that reads its monitor's questions and writes the answers.
pub(super) const MONITOR: &str = "IO mon_iothread";

impl ThreadRole {
    /// The role's name without the vCPU's number: a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu(_) => "vcpu",
            Self::IoThread => "iothread",
            Self::Vhost => "vhost",
            Self::Emulator => "emulator",
            Self::Worker => "worker",
        }
    }

    /// The role that a thread's name tells. QEMU names its threads because libvirt starts it with `debug-threads=on`; a name
    /// that tells nothing (inherited from the process, as without that option) is `None`.
    pub(super) fn from_name(name: &str, process_name: &str) -> Option<Self> {
        if let Some(number) = name.strip_prefix("CPU ").and_then(|rest| rest.split('/').next()) {
            return number.parse().ok().map(Self::Vcpu);
        }
        if name.starts_with("ALL CPUs/") {
            // Single-threaded TCG: one thread takes turns for all vCPUs.
            return Some(Self::Vcpu(0));
        }
        if vhost_owner(name).is_some() {
            return Some(Self::Vhost);
        }
        if name == MONITOR {
            // QEMU's own: no disk hangs on it.
            return Some(Self::Worker);
        }
        if name.starts_with("IO ") {
            return Some(Self::IoThread);
        }
        (name != process_name).then_some(Self::Worker)
    }

    /// The role that the name of libvirt's cgroup for the thread tells (`vcpu3`, `iothread1`, `emulator`).
    pub(super) fn from_group(group: &str) -> Option<Self> {
        if let Some(number) = group.strip_prefix("vcpu") {
            return number.parse().ok().map(Self::Vcpu);
        }
        let number = group.strip_prefix("iothread")?;
        number.parse::<u32>().ok().map(|_| Self::IoThread)
    }
}

impl fmt::Display for ThreadRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(number) => write!(f, "vcpu{number}"),
            other => f.write_str(other.name()),
        }
    }
}

/// The owner's thread id in a vhost worker's name (`vhost-1234`).
pub(super) fn vhost_owner(name: &str) -> Option<u32> {
    name.strip_prefix("vhost-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ThreadRole::*;

    #[test]
    fn names_tell_roles() {
        let role = |name| ThreadRole::from_name(name, "qemu-system-x86");
        assert_eq!(role("CPU 0/KVM"), Some(Vcpu(0)));
        assert_eq!(role("CPU 17/TCG"), Some(Vcpu(17)));
        assert_eq!(role("ALL CPUs/TCG"), Some(Vcpu(0)));
        assert_eq!(role("IO iothread1"), Some(IoThread));
        assert_eq!(role("IO mon_iothread"), Some(Worker));
        assert_eq!(role("vhost-4711"), Some(Vhost));
        assert_eq!(role("worker"), Some(Worker));
        assert_eq!(role("live_migration"), Some(Worker));
        assert_eq!(role("qemu-system-x86"), None);
        assert_eq!(role("CPU x/KVM"), None);
    }

    #[test]
    fn groups_tell_roles_where_names_do_not() {
        assert_eq!(ThreadRole::from_group("vcpu12"), Some(Vcpu(12)));
        assert_eq!(ThreadRole::from_group("iothread1"), Some(IoThread));
        assert_eq!(ThreadRole::from_group("emulator"), None);
        assert_eq!(ThreadRole::from_group("vcpu"), None);
    }
}
