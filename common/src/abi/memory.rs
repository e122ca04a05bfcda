//! Records of the memory probe (`agent-ebpf/src/memory.rs`).
//!
//! The agent makes a VM's [`MemoryAccount`] and the kernel adds to it, on any CPU, by atomic additions. Each count is exact by itself; two counts of
//! one account may be read a reclaim apart.

/// How many processes one host can have under measurement.
pub const MEMORY_TGIDS_MAX: usize = super::sched::TGIDS_MAX;

/// How many VMs one host can have under measurement.
pub const MEMORY_ACCOUNTS_MAX: usize = super::sched::VM_SLOTS_MAX;

/// How many threads of VMs can reclaim at once: far more than a host has CPUs, since few of them sleep meanwhile. The time of one that finds no room
/// is not counted; the reclaim itself is.
pub const RECLAIMS_MAX: usize = 8_192;

/// A reclaim under way. Value of the map `RECLAIMS`, keyed by the thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaim {
    /// When it began, on `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// The number that the agent gave the thread's VM.
    pub vm: u32,
    /// Fills the record: the kernel refuses one with bytes that are not set.
    pub reserved: u32,
}

/// What the threads of one VM did to get memory. Value of the map `MEMORY_ACCOUNTS`, keyed by the VM's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccount {
    /// Times a thread began to reclaim memory for itself.
    pub reclaims: u64,
    /// How long those took that have ended, in nanoseconds.
    pub stalled_ns: u64,
}

const _: () = assert!(size_of::<Reclaim>() == 16 && size_of::<MemoryAccount>() == 16);
