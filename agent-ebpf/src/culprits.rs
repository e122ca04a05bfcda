//! Who ran while a VM's thread waited for a CPU.
//!
//! When a thread of a VM gets a CPU after a wait, what it waited is charged to whoever had that CPU until now: another VM, or the
//! command of a host task. Two refinements cost nothing where only VMs meet. A host task is charged no more than has passed since a
//! VM's thread last left this CPU, and that VM is charged the rest: a kernel thread that runs for microseconds between two VMs is not
//! the one who starved the second. A wait that began because the VM's own quota was used up is charged to that, until the
//! thread runs again. What was waited in front of an idle CPU (the thread came from another one) is charged to nobody.
//!
//! The agent names commands: an unknown one is counted among the others until it has got a column of its own.

use crate::atomic::{add, element};
use crate::task::Task;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use gnomon_common::abi::sched::{
    COMMANDS_MAX, Command, NEWCOMERS_MAX, OTHER_COMMANDS_COLUMN, QUOTA_COLUMN, VM_SLOTS_MAX, WAIT_COLUMNS, WaitRow,
};

/// Not a slot: a task of no VM.
pub const HOST: u32 = u32::MAX;

/// What VMs waited, by who ran; mapped by the agent.
#[btf_map]
static WAITS: Array<WaitRow, VM_SLOTS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The columns of host tasks' commands, written by the agent.
#[btf_map]
static COMMANDS: HashMap<Command, u32, COMMANDS_MAX> = HashMap::new();

/// Commands that have no column, for the agent to take.
#[btf_map]
static NEWCOMERS: HashMap<Command, u32, NEWCOMERS_MAX> = HashMap::new();

/// The VM whose thread last left a CPU to a host task or to idleness, and when.
#[repr(C)]
#[derive(Clone, Copy)]
struct Last {
    left_ns: u64,
    slot: u32,
    reserved: u32,
}

#[btf_map]
static LAST: PerCpuArray<Last, 1> = PerCpuArray::new();

/// A VM's thread leaves this CPU to a task of no VM.
#[inline(always)]
pub fn on_leave(slot: u32, now_ns: u64) {
    if let Some(last) = LAST.get_ptr_mut(0) {
        // SAFETY: this CPU's own, and switches do not interrupt each other.
        unsafe { *last = Last { left_ns: now_ns, slot, reserved: 0 } };
    }
}

/// A thread of `victim` gets this CPU, for which it has waited since `since_ns`. `leaver` is the slot of `prev`, or [`HOST`].
#[inline(always)]
pub fn on_wait_end(victim: u32, throttled: bool, since_ns: u64, now_ns: u64, leaver: u32, prev: Task) {
    let Some(row) = WAITS.get_ptr_mut(victim) else {
        return;
    };
    let wait_ns = now_ns.saturating_sub(since_ns);
    if throttled {
        return charge(row, QUOTA_COLUMN, wait_ns);
    }
    if leaver != HOST {
        return charge(row, leaver, wait_ns);
    }
    let mut host_ns = wait_ns;
    if let Some(last) = LAST.get_ptr_mut(0) {
        // SAFETY: as in `on_leave`.
        let last = unsafe { *last };
        if last.left_ns > since_ns {
            host_ns = now_ns.saturating_sub(last.left_ns);
            charge(row, last.slot, last.left_ns - since_ns);
        }
    }
    if !prev.is_idle() {
        charge(row, column_of(prev.command()), host_ns);
    }
}

/// The column of a command; the agent is told of those that have none.
#[inline(always)]
fn column_of(command: Command) -> u32 {
    // SAFETY: copied at once.
    if let Some(column) = unsafe { COMMANDS.get(command) } {
        return *column;
    }
    // There already, or full: the agent will make room.
    let _ = NEWCOMERS.insert(command, 0, u64::from(BPF_NOEXIST));
    OTHER_COMMANDS_COLUMN
}

/// Two CPUs may charge the same pair at once.
#[inline(always)]
fn charge(row: *mut WaitRow, column: u32, ns: u64) {
    if column as usize >= WAIT_COLUMNS {
        return;
    }
    // SAFETY: within the row, by the check above.
    unsafe { add(element::<WAIT_COLUMNS>(row.cast::<u64>(), column), ns) };
}
