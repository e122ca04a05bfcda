//! Records of the drop probe (`agent-ebpf/src/drops.rs`).

/// How many network devices can be watched: sixteen of each VM that a host can have.
pub const TAPS_MAX: usize = super::sched::VM_SLOTS_MAX * 16;

/// How many pairs of device and reason are counted apart.
pub const DROPS_MAX: usize = 4096;

/// What was dropped where. Key of the map `DROPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropKey {
    /// The device's number in its network namespace.
    pub ifindex: u32,
    /// The kernel's `enum skb_drop_reason`, or the number of a subsystem in the upper half and a reason of its own below.
    pub reason: u32,
}
