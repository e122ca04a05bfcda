//! The exits probe: why the VMs' vCPUs leave their guests, how often, and how long until they are back.
//!
//! Runs where KVM leaves a guest and where it enters one. Both happen on the vCPU's own thread, which finds its account by its id: a thread of no
//! VM that is measured costs two look-ups when it leaves and one when it enters. From an exit to the next entry the vCPU does what the exit was for, or waits: what is charged
//! to a halt is time that the guest had nothing to do, polling of the host's included.
//!
//! The reason is told by the classic tracepoint alone: its arguments, which the cheaper kinds of programs see, have only a pointer to KVM's own structures.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(all(target_arch = "bpf", bpf_target_arch = "aarch64"), feature(asm_experimental_arch))]

mod object;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use gnomon_common::abi::exits::{EXIT_REASONS_ROOM, EXIT_TGIDS_MAX, ExitReason, VCPUS_MAX, VcpuAccount};

#[unsafe(no_mangle)]
static EXIT_REASON_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static EXIT_ISA_OFFSET: Global<u32> = Global::new(0);

/// Which processes are VMs, written by the agent.
#[btf_map]
static TGID_VM: HashMap<u32, u32, EXIT_TGIDS_MAX> = HashMap::new();

/// By thread; made at its first exit, removed by the agent.
#[btf_map]
static VCPUS: HashMap<u32, VcpuAccount, VCPUS_MAX> = HashMap::new();

/// A vCPU has left its guest.
#[tracepoint]
pub fn guest_left(ctx: TracePointContext) -> u32 {
    let Some(account) = own_account() else { return 0 };
    let (Some(reason), Some(isa)) = (field(&ctx, &EXIT_REASON_OFFSET), field(&ctx, &EXIT_ISA_OFFSET)) else {
        return 0;
    };
    let reason = ExitReason::of(isa, reason) as u32;
    // SAFETY: a value of the map, which this thread alone writes.
    unsafe {
        (*account).exits[reason as usize % EXIT_REASONS_ROOM] += 1;
        (*account).reason = reason;
        (&raw mut (*account).left_ns).write_volatile(now_ns());
    }
    0
}

/// A vCPU enters its guest.
#[raw_tracepoint(tracepoint = "kvm_entry")]
pub fn guest_entered(_ctx: RawTracePointContext) -> i32 {
    let (tid, tgid) = current();
    let Some(account) = account_of(tid, tgid) else { return 0 };
    // SAFETY: as above.
    unsafe {
        let left_ns = (*account).left_ns;
        if left_ns != 0 {
            // First: whoever reads in between must not count the time twice.
            (&raw mut (*account).left_ns).write_volatile(0);
            (*account).away_ns[(*account).reason as usize % EXIT_REASONS_ROOM] += now_ns().saturating_sub(left_ns);
        }
    }
    0
}

/// The account of the running thread, made if it has none yet; `None` if it is no VM's.
#[inline(always)]
fn own_account() -> Option<*mut VcpuAccount> {
    let (tid, tgid) = current();
    if let Some(account) = account_of(tid, tgid) {
        return Some(account);
    }
    // SAFETY: copied at once; an entry that the agent removes meanwhile is still valid memory.
    let vm = *unsafe { TGID_VM.get(tgid) }?;
    let fresh = VcpuAccount {
        exits: [0; EXIT_REASONS_ROOM],
        away_ns: [0; EXIT_REASONS_ROOM],
        vm,
        tgid,
        reason: 0,
        reserved: 0,
        left_ns: 0,
    };
    // Also over one of an earlier thread of this number.
    VCPUS.insert(tid, fresh, u64::from(BPF_ANY)).ok()?;
    VCPUS.get_ptr_mut(tid)
}

#[inline(always)]
fn account_of(tid: u32, tgid: u32) -> Option<*mut VcpuAccount> {
    // SAFETY: a value of the map.
    VCPUS.get_ptr_mut(tid).filter(|&account| unsafe { (*account).tgid } == tgid)
}

/// Thread and process that run.
#[inline(always)]
fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    (both as u32, (both >> 32) as u32)
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// A field of the tracepoint's record.
#[inline(always)]
fn field(ctx: &TracePointContext, offset: &Global<u32>) -> Option<u32> {
    // SAFETY: the helper checks what it reads; the agent has taken the offset from the tracepoint's format.
    unsafe { ctx.read_at(offset.load() as usize) }.ok()
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
