//! Which threads belong to VMs: BPF task storage, read from the thread itself.

use crate::accounts::{self, Unclaimed, now_ns};
use crate::task::{TASK_DEAD, TASK_RUNNING, Task};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_task_storage_delete, bpf_task_storage_get};
use aya_ebpf::macros::btf_map;
use core::ptr::{null, null_mut};
use gnomon_common::abi::sched::{Stretch, ThreadAccount, ThreadRef};

/// The number of the registration pass in progress or last done, set by the agent.
#[btf_map]
static PASS: Array<u32, 1> = Array::new();

/// The map type that aya-ebpf does not declare: a value per thread, freed with the thread.
#[repr(C)]
struct TaskStorage<V> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const V,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers only carry types into BTF and are never followed.
unsafe impl<V> Sync for TaskStorage<V> {}

/// Where a VM thread's account is.
#[btf_map]
static THREADS: TaskStorage<ThreadRef> =
    TaskStorage { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() };

/// What is registered for a thread, if anything.
#[inline(always)]
pub fn registration_of(task: Task) -> Option<ThreadRef> {
    if !task.has_storage() {
        return None;
    }
    let reference = storage(task, null_mut(), 0);
    // SAFETY: not null, so it points to this thread's value, which lives as long as the thread.
    if reference.is_null() { None } else { Some(unsafe { *reference }) }
}

/// A thread's account, null for a thread of no VM.
///
/// A raw pointer, because two of them are in use at a switch and the verifier wants each null check by itself.
#[inline(always)]
pub fn account_of(task: Task) -> *mut ThreadAccount {
    match registration_of(task) {
        Some(reference) => accounts::account_at(reference.index),
        None => null_mut(),
    }
}

/// Gives a thread an account under `slot`.
///
/// # Errors
/// Why it has none; nothing is left behind then.
#[inline(always)]
pub fn claim(task: Task, slot: u32, pass: u32) -> Result<*mut ThreadAccount, Unclaimed> {
    let Some((index, account)) = accounts::open(task.tid(), slot, pass, task.exec_ns()) else {
        return Err(Unclaimed::TableFull);
    };
    let mut reference = ThreadRef { index, slot };
    let stored = storage(task, &raw mut reference, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE));
    // SAFETY: not null means a valid value; the account is still unknown to others.
    let outcome = if stored.is_null() {
        Err(Unclaimed::NotRemembered)
    } else if unsafe { (*stored).index } != index {
        Err(Unclaimed::AlreadyOwned)
    } else {
        Ok(account)
    };
    if outcome.is_err() {
        accounts::put_back(index, account);
    }
    outcome
}

/// Takes a thread's account away.
#[inline(always)]
pub fn release(task: Task, reference: ThreadRef) {
    // SAFETY: the task is alive and the map is a task storage.
    unsafe { bpf_task_storage_delete((&raw const THREADS).cast_mut().cast(), task.as_ptr()) };
    accounts::close(reference.index);
}

/// Starts the clock of a thread that is already on a CPU: alone there, it might not be switched for minutes.
///
/// Nothing stops the thread from being switched meanwhile, and a thread that sleeps must not be left with a running clock.
/// Its switch changes `seq`: seen here, it is left to the switches; not seen here, it comes later and sees the clock.
/// A switch just before the thread was registered shows in its state.
#[inline(always)]
pub fn start_if_running(task: Task, account: *mut ThreadAccount) {
    // SAFETY: `account` is this thread's; only single, aligned words are written.
    unsafe {
        let seq = (&raw const (*account).seq).read_volatile();
        if !task.is_on_cpu() || task.state() != TASK_RUNNING {
            return;
        }
        let stretch = &raw mut (*account).stretch;
        if !stretch.read_volatile().is_asleep() {
            return;
        }
        let running = Stretch::on_cpu(now_ns());
        stretch.write_volatile(running);
        // An atomic addition is the full barrier that makes the store visible before `seq` is read again.
        #[cfg(target_arch = "bpf")]
        core::arch::asm!("lock *(u64 *)({p} + 0) += {zero}", p = in(reg) account, zero = in(reg) 0u64);
        if (&raw const (*account).seq).read_volatile() != seq && stretch.read_volatile() == running {
            stretch.write_volatile(Stretch::ASLEEP);
        }
    }
}

/// Whether a thread will never run again.
#[inline(always)]
pub fn is_dead(task: Task) -> bool {
    task.state() & TASK_DEAD != 0
}

/// The number of the pass in progress.
#[inline(always)]
pub fn pass_number() -> u32 {
    PASS.get(0).copied().unwrap_or(0)
}

#[inline(always)]
fn storage(task: Task, initial: *mut ThreadRef, flags: u64) -> *mut ThreadRef {
    // SAFETY: the task is alive, the map is a task storage of `ThreadRef`, `initial` is null or points to one.
    unsafe { bpf_task_storage_get((&raw const THREADS).cast_mut().cast(), task.as_ptr(), initial.cast(), flags) }.cast()
}
