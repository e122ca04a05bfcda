//! The accounts of VM threads, whichever way threads are found: what both scheduler probes share.
//!
//! `TGID_SLOT` (written by the agent) says which processes are VMs. A thread of such a process owns an entry in `ACCOUNTS`; free
//! indexes lie in `FREE_INDEXES`. An index is put back only after the agent has read the last counts, or when it never came
//! into use. When there is none left the thread goes unmeasured and is counted: nothing fails.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, Stack};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_log_ebpf::warn;
use core::ptr::null_mut;
use core::sync::atomic::{Ordering, compiler_fence};
use gnomon_common::abi::sched::{
    Stretch, TGIDS_MAX, THREAD_GONE, THREAD_LIVE, THREAD_VACANT, THREADS_MAX, TgidEntry, ThreadAccount, WAIT_BUCKETS,
};

/// At most one diagnostic line in this time: a full table is reported, not suffered for every new thread.
const LOG_INTERVAL_NS: u64 = 1_000_000_000;

/// Which processes are VMs.
#[btf_map]
static TGID_SLOT: HashMap<u32, TgidEntry, TGIDS_MAX> = HashMap::new();

/// The accounts, mapped read-only by the agent.
#[btf_map]
static ACCOUNTS: Array<ThreadAccount, THREADS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Indexes into `ACCOUNTS` that nobody owns. Last in, first out: the used part of the array stays short.
#[btf_map]
static FREE_INDEXES: Stack<u32, THREADS_MAX> = Stack::new();

/// Threads of VMs that got no account.
#[btf_map]
static THREADS_UNMEASURED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// When the last diagnostic line was written.
#[btf_map]
static LOGGED_NS: Array<u64, 1> = Array::new();

/// Why a thread got no account.
pub enum Unclaimed {
    /// Every index is in use.
    TableFull,
    /// The kernel would not remember the thread: out of memory, or busy on this CPU (kernels before 6.2).
    NotRemembered,
    /// It had one already: it was met from two sides at once.
    AlreadyOwned,
}

/// The clock of every account, as fine as a [`Stretch`] holds it.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: takes no argument.
    Stretch::waiting(unsafe { bpf_ktime_get_ns() }).since_ns()
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

/// The account at an index, null if there is none.
#[inline(always)]
pub fn account_at(index: u32) -> *mut ThreadAccount {
    ACCOUNTS.get_ptr_mut(index).unwrap_or(null_mut())
}

/// Changes an account such that readers can tell.
///
/// # Safety
/// `account` points into `ACCOUNTS`, and the caller is the only writer: it holds the run-queue lock of the owner (as scheduler
/// tracepoints do), or interrupts the owner, or nobody knows the account yet.
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

/// Takes a free account and opens it for a thread that has run for `exec_ns` by the kernel's count; nobody else knows it yet.
#[inline(always)]
pub fn open(tid: u32, slot: u32, pass: u32, exec_ns: u64) -> Option<(u32, *mut ThreadAccount)> {
    let Ok(Some(index)) = FREE_INDEXES.pop() else {
        return None;
    };
    let account = account_at(index);
    if account.is_null() {
        return None;
    }
    // SAFETY: the index came from the stack of free ones, so nobody else knows it.
    unsafe {
        write(account, |account| {
            account.run_ns = 0;
            account.wait_ns = 0;
            account.exec_ns = exec_ns;
            account.stretch = Stretch::ASLEEP;
            account.wakeups = 0;
            account.preemptions = 0;
            account.generation = account.generation.wrapping_add(1);
            account.tid = tid;
            account.pass = pass;
            account.slot = slot as u16;
            account.state = THREAD_LIVE;
            account.throttled = 0;
            account.wait_log2 = [0; WAIT_BUCKETS];
        });
    }
    Some((index, account))
}

/// Puts an account back that [`open`] gave and that no thread came to own.
#[inline(always)]
pub fn put_back(index: u32, account: *mut ThreadAccount) {
    // SAFETY: no thread refers to the account.
    unsafe { write(account, |account| account.state = THREAD_VACANT) };
    // Cannot be full: this index was on it.
    let _ = FREE_INDEXES.push(index, u64::from(BPF_ANY));
}

/// Marks an account whose thread is no longer measured; the agent reads the last counts and gives the index back.
#[inline(always)]
pub fn close(index: u32) {
    let account = account_at(index);
    if !account.is_null() {
        // SAFETY: in bounds. A single store, because a switch on another CPU may be writing its last counts just now.
        unsafe { (&raw mut (*account).state).write_volatile(THREAD_GONE) };
    }
}

/// Books a wake-up.
#[inline(always)]
pub fn on_wakeup(account: *mut ThreadAccount) {
    if account.is_null() {
        return;
    }
    // SAFETY: an account of a thread that is being woken, under its run-queue's lock. Written without `seq`: a reader that sees
    // one of the two words without the other still sees a state that existed.
    unsafe {
        if (*account).stretch.is_asleep() {
            (*account).wake(now_ns());
        }
    }
}

/// Counts a thread that goes unmeasured, and says so once in a while.
#[inline(always)]
pub fn report(tid: u32, tgid: u32, why: Unclaimed) {
    let reason = match why {
        Unclaimed::AlreadyOwned => return,
        Unclaimed::TableFull => "the table of threads is full",
        Unclaimed::NotRemembered => "the kernel would not remember it",
    };
    if let Some(count) = THREADS_UNMEASURED.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter. A preemption between load and store can lose one count of many, no more.
        unsafe { *count += 1 };
    }
    let Some(logged_ns) = LOGGED_NS.get_ptr_mut(0) else {
        return;
    };
    let now_ns = now_ns();
    // SAFETY: in bounds. Two CPUs at once may write two lines instead of one.
    unsafe {
        if *logged_ns != 0 && now_ns.saturating_sub(*logged_ns) < LOG_INTERVAL_NS {
            return;
        }
        *logged_ns = now_ns;
    }
    warn!(&(), "thread {} of process {} goes unmeasured: {}", tid, tgid, reason);
}
