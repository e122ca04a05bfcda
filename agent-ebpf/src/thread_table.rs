//! Which threads belong to VMs, and where their accounts are.
//!
//! `TGID_SLOT` (written by the agent) says which processes are VMs. A thread of such a process owns an entry in `ACCOUNTS`,
//! whose index its task storage holds; free indexes lie in `FREE_INDEXES`. An index is taken from there by [`claim`], only in
//! the kernel, and put back by the agent once it has read the last counts. When there is none left the thread goes unmeasured and
//! is counted: nothing fails.

use crate::task::{TASK_DEAD, TASK_RUNNING, Task};
use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE,
};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, Stack};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_task_storage_delete, bpf_task_storage_get};
use aya_ebpf::macros::btf_map;
use core::ptr::{null, null_mut};
use core::sync::atomic::{Ordering, compiler_fence};
use gnomon_common::abi::sched::{
    TGIDS_MAX, THREAD_GONE, THREAD_LIVE, THREAD_VACANT, THREADS_MAX, TgidEntry, ThreadAccount, ThreadRef, WAIT_BUCKETS,
};

/// Which processes are VMs.
#[btf_map]
static TGID_SLOT: HashMap<u32, TgidEntry, TGIDS_MAX> = HashMap::new();

/// The accounts, mapped read-only by the agent.
#[btf_map]
static ACCOUNTS: Array<ThreadAccount, THREADS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Indexes into `ACCOUNTS` that nobody owns. Last in, first out: the used part of the array stays short.
#[btf_map]
static FREE_INDEXES: Stack<u32, THREADS_MAX> = Stack::new();

/// Threads of VMs that found no free index.
#[btf_map]
static THREADS_UNMEASURED: PerCpuArray<u64, 1> = PerCpuArray::new();

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

/// Why a thread got no account.
pub enum Unclaimed {
    /// Every index is in use.
    TableFull,
    /// The kernel gave no task storage: out of memory, or busy on this CPU (kernels before 6.2).
    NoStorage,
    /// It had one already: the fork hook and a pass met.
    AlreadyOwned,
}

/// The clock of every account.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// The VM a process belongs to.
#[inline(always)]
pub fn entry_of(tgid: u32) -> Option<TgidEntry> {
    // SAFETY: copied at once. An entry that the agent removes meanwhile is still valid memory, and whoever acts on it looks again.
    unsafe { TGID_SLOT.get(tgid) }.copied()
}

/// Forgets a process that cannot be a VM's (its id was used again).
#[inline(always)]
pub fn forget(tgid: u32) {
    // It may already be gone, and that is what is wanted.
    let _ = TGID_SLOT.remove(tgid);
}

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
        Some(reference) => account_at(reference.index),
        None => null_mut(),
    }
}

/// The account at an index, null if there is none.
#[inline(always)]
pub fn account_at(index: u32) -> *mut ThreadAccount {
    ACCOUNTS.get_ptr_mut(index).unwrap_or(null_mut())
}

/// Changes an account such that readers can tell.
///
/// # Safety
/// `account` points into `ACCOUNTS`, and the caller is the only writer: it holds the run-queue lock of the owner (as scheduler
/// tracepoints do), or nobody knows the account yet.
#[inline(always)]
pub unsafe fn write(account: *mut ThreadAccount, change: impl FnOnce(&mut ThreadAccount)) {
    // SAFETY: by the contract above.
    unsafe {
        step_seq(account);
        compiler_fence(Ordering::SeqCst);
        change(&mut *account);
        compiler_fence(Ordering::SeqCst);
        step_seq(account);
    }
}

/// On x86-64 stores become visible in program order, so a plain one will do.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
unsafe fn step_seq(account: *mut ThreadAccount) {
    // SAFETY: the caller's.
    unsafe {
        let seq = &raw mut (*account).seq;
        seq.write_volatile(seq.read_volatile().wrapping_add(1));
    }
}

/// Elsewhere the order needs a barrier, and BPF's only full barrier is an atomic operation that fetches.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
unsafe fn step_seq(account: *mut ThreadAccount) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) account, v = inout(reg) 1u64 => _);
    }
}

/// Gives a thread an account under `slot`.
///
/// # Errors
/// Why it has none; nothing is left behind then.
#[inline(always)]
pub fn claim(task: Task, slot: u32, pass: u32) -> Result<*mut ThreadAccount, Unclaimed> {
    let Ok(Some(index)) = FREE_INDEXES.pop() else {
        return Err(Unclaimed::TableFull);
    };
    let account = account_at(index);
    if account.is_null() {
        return Err(Unclaimed::TableFull);
    }
    // SAFETY: the index came from the stack of free ones, so nobody else knows it.
    unsafe {
        write(account, |account| {
            account.run_ns = 0;
            account.wait_ns = 0;
            account.on_cpu_since_ns = 0;
            account.waiting_since_ns = 0;
            account.wakeups = 0;
            account.preemptions = 0;
            account.generation = account.generation.wrapping_add(1);
            account.tid = task.tid();
            account.pass = pass;
            account.slot = slot as u16;
            account.state = THREAD_LIVE;
            account.wait_log2 = [0; WAIT_BUCKETS];
        });
    }
    let mut reference = ThreadRef { index, slot };
    let stored = storage(task, &raw mut reference, u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE));
    // SAFETY: not null means a valid value; the account is still unknown to others.
    let outcome = if stored.is_null() {
        Err(Unclaimed::NoStorage)
    } else if unsafe { (*stored).index } != index {
        Err(Unclaimed::AlreadyOwned)
    } else {
        Ok(account)
    };
    if outcome.is_err() {
        // SAFETY: no thread refers to the account.
        unsafe { write(account, |account| account.state = THREAD_VACANT) };
        // Cannot be full: this index was on it.
        let _ = FREE_INDEXES.push(index, u64::from(BPF_ANY));
    }
    outcome
}

/// Takes a thread's account away; the agent reads the last counts and gives the index back.
#[inline(always)]
pub fn release(task: Task, reference: ThreadRef) {
    // SAFETY: the task is alive and the map is a task storage.
    unsafe { bpf_task_storage_delete((&raw const THREADS).cast_mut().cast(), task.as_ptr()) };
    let account = account_at(reference.index);
    if !account.is_null() {
        // SAFETY: in bounds. A single store, because a switch on another CPU may be writing its last counts just now.
        unsafe { (&raw mut (*account).state).write_volatile(THREAD_GONE) };
    }
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
        let since = &raw mut (*account).on_cpu_since_ns;
        if since.read_volatile() != 0 {
            return;
        }
        let now_ns = now_ns();
        since.write_volatile(now_ns);
        // An atomic addition is the full barrier that makes the store visible before `seq` is read again.
        #[cfg(target_arch = "bpf")]
        core::arch::asm!("lock *(u64 *)({p} + 0) += {zero}", p = in(reg) account, zero = in(reg) 0u64);
        if (&raw const (*account).seq).read_volatile() != seq && since.read_volatile() == now_ns {
            since.write_volatile(0);
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

/// Counts a thread that goes unmeasured.
#[inline(always)]
pub fn count_unmeasured() {
    if let Some(count) = THREADS_UNMEASURED.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter. A preemption between load and store can lose one count of many, no more.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn storage(task: Task, initial: *mut ThreadRef, flags: u64) -> *mut ThreadRef {
    // SAFETY: the task is alive, the map is a task storage of `ThreadRef`, `initial` is null or points to one.
    unsafe { bpf_task_storage_get((&raw const THREADS).cast_mut().cast(), task.as_ptr(), initial.cast(), flags) }.cast()
}
