//! The memory probe: how often the VMs' threads had to make room before they got memory, and how long that took.
//!
//! Runs where a thread begins and ends to reclaim: because the host is short of memory (direct reclaim), or because its control group has reached its
//! limit. Whoever asked for memory does that work itself, so the running thread is the one that is held up, whose pages ever go. What `kswapd` does
//! in the background holds nobody up and is not counted. No reclaim begins within another of the same thread.
//!
//! Page faults are not counted here: the tracepoint fires on every fault of every process, and the kernel counts them by process anyway.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod atomic;
mod object;

use atomic::add;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint};
use aya_ebpf::programs::BtfTracePointContext;
use gnomon_common::abi::memory::{MEMORY_ACCOUNTS_MAX, MEMORY_TGIDS_MAX, MemoryAccount, RECLAIMS_MAX, Reclaim};

/// Which processes are VMs, written by the agent.
#[btf_map]
static TGID_VM: HashMap<u32, u32, MEMORY_TGIDS_MAX> = HashMap::new();

/// By VM; made and removed by the agent.
#[btf_map]
static MEMORY_ACCOUNTS: HashMap<u32, MemoryAccount, MEMORY_ACCOUNTS_MAX> = HashMap::new();

/// Threads of VMs that reclaim now. An entry whose end was missed is overwritten by the thread's next.
#[btf_map]
static RECLAIMS: HashMap<u32, Reclaim, RECLAIMS_MAX> = HashMap::new();

/// `mm_vmscan_direct_reclaim_begin`: the host has too little free memory.
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
pub fn direct_reclaim_begun(ctx: BtfTracePointContext) -> i32 {
    begun(&ctx)
}

/// `mm_vmscan_direct_reclaim_end`.
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
pub fn direct_reclaim_ended(ctx: BtfTracePointContext) -> i32 {
    ended(&ctx)
}

/// `mm_vmscan_memcg_reclaim_begin`: the control group has reached its limit.
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn group_reclaim_begun(ctx: BtfTracePointContext) -> i32 {
    begun(&ctx)
}

/// `mm_vmscan_memcg_reclaim_end`.
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn group_reclaim_ended(ctx: BtfTracePointContext) -> i32 {
    ended(&ctx)
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn begun(ctx: &BtfTracePointContext) -> i32 {
    // SAFETY: copied at once; an entry that the agent removes meanwhile is still valid memory.
    let Some(&vm) = (unsafe { TGID_VM.get(ctx.tgid()) }) else { return 0 };
    if let Some(account) = MEMORY_ACCOUNTS.get_ptr_mut(vm) {
        // SAFETY: a value of the map.
        unsafe { add(&raw mut (*account).reclaims, 1) };
        // Where there is no room the end finds no entry: a reclaim without its time.
        let _ = RECLAIMS.insert(ctx.pid(), Reclaim { began_ns: now_ns(), vm, reserved: 0 }, u64::from(BPF_ANY));
    }
    0
}

#[inline(always)]
fn ended(ctx: &BtfTracePointContext) -> i32 {
    // SAFETY: copied at once; no other thread has this entry.
    let Some(reclaim) = (unsafe { RECLAIMS.get(ctx.pid()) }).copied() else { return 0 };
    let _ = RECLAIMS.remove(ctx.pid());
    if let Some(account) = MEMORY_ACCOUNTS.get_ptr_mut(reclaim.vm) {
        // SAFETY: a value of the map.
        unsafe { add(&raw mut (*account).stalled_ns, now_ns().saturating_sub(reclaim.began_ns)) };
    }
    0
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
