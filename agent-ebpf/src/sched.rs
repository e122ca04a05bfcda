//! The scheduler probe: how long the threads of VMs ran, how long they waited for a CPU, and how often they were woken and
//! preempted; and who ran while they waited (`culprits.rs`).
//!
//! Runs on every context switch and wake-up of the host, so a thread of no VM costs one load per task. It never allocates on
//! those paths, never blocks, never fails an operation of the kernel, and knows nothing of VMs but the slot number that the
//! agent gave their processes. Counts leave through the array of accounts, which the agent maps; diagnostics through aya-log,
//! at most one line per second.
//!
//! Threads are registered by the fork hook (`task_newtask`, which unlike `sched_process_fork` also sees vhost and io_uring
//! workers, whose creation does not pass through `kernel_clone`) and by a pass over all tasks that the agent starts after it has
//! changed `TGID_SLOT`. First the map, then the pass: a thread that is born in between is seen by one of the two.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod accounts;
mod atomic;
mod culprits;
mod object;
mod task;
mod thread_table;

use accounts::{Unclaimed, now_ns};
use aya_ebpf::bindings::task_struct;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use core::ffi::c_void;
use gnomon_common::abi::sched::THREAD_GONE;
use task::{TASK_DEAD, TASK_RUNNING, Task};

/// `(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`: in this order since 5.18.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    on_switch(ctx.arg::<u64>(0), Task::from_arg(ctx.arg(1)), Task::from_arg(ctx.arg(2)), ctx.arg(3));
    0
}

#[inline(always)]
fn on_switch(preempt: u64, prev: Task, next: Task, prev_state: u32) {
    let mut switched_ns = 0;
    let leaving = thread_table::account_of(prev);
    let mut leaver = culprits::HOST;
    if !leaving.is_null() {
        switched_ns = now_ns();
        let preempted = preempt & 1 != 0;
        let runnable = preempted || prev_state == TASK_RUNNING;
        let throttled = runnable && prev.is_throttled();
        let exec_ns = prev.exec_ns();
        // SAFETY: `prev`'s account, under its run-queue's lock.
        unsafe {
            leaver = u32::from((*leaving).slot);
            accounts::write(leaving, |account| {
                account.leave_cpu(switched_ns, exec_ns, runnable);
                account.throttled = u8::from(throttled);
                if !preempted && prev_state & TASK_DEAD != 0 {
                    account.state = THREAD_GONE;
                }
            });
        }
    }
    let entering = thread_table::account_of(next);
    if entering.is_null() {
        if leaver != culprits::HOST {
            culprits::on_leave(leaver, switched_ns);
        }
        return;
    }
    if switched_ns == 0 {
        switched_ns = now_ns();
    }
    // SAFETY: `next`'s account, under its run-queue's lock.
    unsafe {
        let before = (*entering).stretch;
        let (victim, throttled) = (u32::from((*entering).slot), (*entering).throttled != 0);
        accounts::write(entering, |account| account.enter_cpu(switched_ns));
        if before.is_waiting() {
            culprits::on_wait_end(victim, throttled, before.since_ns(), switched_ns, leaver, prev);
        }
    }
}

/// `(struct task_struct *p)`: a thread was put on a run-queue.
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    on_wakeup(Task::from_arg(ctx.arg(0)));
    0
}

/// `(struct task_struct *p)`: the same for a thread's first time.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    on_wakeup(Task::from_arg(ctx.arg(0)));
    0
}

#[inline(always)]
fn on_wakeup(task: Task) {
    let account = thread_table::account_of(task);
    accounts::on_wakeup(account);
    if !account.is_null() && task.is_in_throttled_group() {
        // SAFETY: in bounds; a thread that was asleep and now waits, under its run-queue's lock.
        unsafe { (*account).throttled = 1 };
    }
}

/// `(struct task_struct *task, unsigned long clone_flags)`: a thread was made and has not run yet.
#[btf_tracepoint(function = "task_newtask")]
pub fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg(0));
    if let Err(why) = try_register_newborn(task) {
        accounts::report(task.tid(), task.tgid(), why);
    }
    0
}

#[inline(always)]
fn try_register_newborn(task: Task) -> Result<(), Unclaimed> {
    let tgid = task.tgid();
    let Some(entry) = accounts::entry_of(tgid) else {
        return Ok(());
    };
    if task.tid() == tgid {
        // A new process under the id of one that the agent has not yet seen end.
        accounts::forget(tgid);
        return Ok(());
    }
    thread_table::claim(task, entry.slot, thread_table::pass_number())?;
    // The agent may have let go of the process since: then its pass may have missed this thread.
    let still = accounts::entry_of(tgid).is_some_and(|now| now.slot == entry.slot);
    if !still && let Some(reference) = thread_table::registration_of(task) {
        thread_table::release(task, reference);
    }
    Ok(())
}

#[repr(C)]
struct BpfIterTask {
    meta: *const c_void,
    task: *mut task_struct,
}

/// The registration pass: makes every thread's registration agree with `TGID_SLOT`, and stamps every registered thread as seen.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn register_tasks(ctx: *mut c_void) -> i32 {
    // SAFETY: the kernel passes a `struct bpf_iter__task` to programs of this type.
    let task = unsafe { (*ctx.cast::<BpfIterTask>()).task };
    // Null once, at the end of the pass.
    if let Some(task) = Task::from_ptr(task)
        && let Err(why) = try_register(task)
    {
        accounts::report(task.tid(), task.tgid(), why);
    }
    0
}

#[inline(always)]
fn try_register(task: Task) -> Result<(), Unclaimed> {
    let entry = accounts::entry_of(task.tgid());
    let pass = thread_table::pass_number();
    if let Some(reference) = thread_table::registration_of(task) {
        if entry.is_some_and(|entry| entry.slot == reference.slot) {
            let account = accounts::account_at(reference.index);
            if !account.is_null() {
                // SAFETY: in bounds; one aligned word that no other program writes after the claim.
                unsafe { (&raw mut (*account).pass).write_volatile(pass) };
            }
            return Ok(());
        }
        thread_table::release(task, reference);
    }
    let Some(entry) = entry else {
        return Ok(());
    };
    if thread_table::is_dead(task) {
        return Ok(());
    }
    match thread_table::claim(task, entry.slot, pass) {
        Ok(account) => {
            thread_table::start_if_running(task, account);
            Ok(())
        }
        // Counted when this process was first passed over, or when the thread was born.
        Err(_) if entry.settled != 0 => Ok(()),
        Err(why) => Err(why),
    }
}

/// What a program costs that does nothing: the yardstick of the probe's benchmark, never attached otherwise.
#[btf_tracepoint(function = "sched_switch")]
pub fn empty_switch(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// As [`empty_switch`].
#[btf_tracepoint(function = "sched_wakeup")]
pub fn empty_wakeup(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
