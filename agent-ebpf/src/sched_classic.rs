//! The scheduler probe for kernels without BTF or task storage: the same accounts as `sched.rs`, from classic tracepoints.
//!
//! Threads are known by their id, in a hash table, so that a switch between threads of no VM costs two look-ups. What a tracepoint
//! tells lies where its `format` file says, which the agent reads before it loads these programs. The kernel shows
//! classic tracepoints no `task_struct`, so threads that live already are registered by the agent from `/proc`, and whether one
//! of them is on a CPU just now is found out by [`see_running`].
//!
//! The kernel leaves a tracepoint's programs out while another one of theirs runs on the same CPU, or a map is changed there by a
//! system call. A switch or wake-up that is missed so costs at most the stretch it began or ended.
// For the host this compiles to an empty program, so that the workspace's checks reach these sources.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(all(target_arch = "bpf", bpf_target_arch = "aarch64"), feature(asm_experimental_arch))]

mod accounts;
mod object;
mod tid_table;

use accounts::{Unclaimed, now_ns};
use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{perf_event, tracepoint};
use aya_ebpf::programs::{PerfEventContext, TracePointContext};
use gnomon_common::abi::sched::{THREAD_GONE, THREAD_LIVE};

#[unsafe(no_mangle)]
static SWITCH_PREV_STATE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SWITCH_NEXT_PID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static WAKEUP_PID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static WAKEUP_NEW_PID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NEWTASK_PID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NEWTASK_CLONE_FLAGS_OFFSET: Global<u32> = Global::new(0);

/// The states that `sched_switch` reports in `prev_state` for a thread that does not want to run (`TASK_REPORT` and
/// `TASK_REPORT_IDLE` of `include/linux/sched.h`, these values since 4.14). A preempted thread has a higher bit, or none.
const NOT_RUNNABLE: u32 = 0xff;

/// `EXIT_DEAD | EXIT_ZOMBIE` of `include/linux/sched.h`: what `prev_state` is when a thread leaves its CPU for ever.
const EXITED: u32 = 0x10 | 0x20;

/// `CLONE_THREAD` of `include/uapi/linux/sched.h`: a thread is born, not a process.
const CLONE_THREAD: u32 = 0x1_0000;

/// A thread gives its CPU to another one; it is still the current one when this runs.
#[tracepoint]
pub fn sched_switch(ctx: TracePointContext) -> u32 {
    let mut switched_ns = 0;
    let prev = current().tid;
    let leaving = tid_table::account_of(prev);
    if !leaving.is_null() {
        switched_ns = now_ns();
        let state = field(&ctx, &SWITCH_PREV_STATE_OFFSET).unwrap_or(0);
        let exited = state & EXITED != 0;
        // SAFETY: `prev`'s account, under its run-queue's lock.
        unsafe {
            accounts::write(leaving, |account| {
                let exec_ns = account.exec_by_clock_ns(switched_ns);
                account.leave_cpu(switched_ns, exec_ns, state & NOT_RUNNABLE == 0);
                if exited {
                    account.state = THREAD_GONE;
                }
            });
        }
        if exited {
            tid_table::forget(prev);
        }
    }
    let Some(next) = field(&ctx, &SWITCH_NEXT_PID_OFFSET) else {
        return 0;
    };
    let entering = tid_table::account_of(next);
    if !entering.is_null() {
        if switched_ns == 0 {
            switched_ns = now_ns();
        }
        // SAFETY: `next`'s account, under its run-queue's lock.
        unsafe { accounts::write(entering, |account| account.enter_cpu(switched_ns)) };
    }
    0
}

/// A thread was put on a run-queue.
#[tracepoint]
pub fn sched_wakeup(ctx: TracePointContext) -> u32 {
    if let Some(tid) = field(&ctx, &WAKEUP_PID_OFFSET) {
        accounts::on_wakeup(tid_table::account_of(tid));
    }
    0
}

/// The same for a thread's first time.
#[tracepoint]
pub fn sched_wakeup_new(ctx: TracePointContext) -> u32 {
    if let Some(tid) = field(&ctx, &WAKEUP_NEW_PID_OFFSET) {
        accounts::on_wakeup(tid_table::account_of(tid));
    }
    0
}

/// A thread was made by the current one and has not run yet.
#[tracepoint]
pub fn task_newtask(ctx: TracePointContext) -> u32 {
    let (Some(tid), Some(flags)) = (field(&ctx, &NEWTASK_PID_OFFSET), field(&ctx, &NEWTASK_CLONE_FLAGS_OFFSET)) else {
        return 0;
    };
    let creator = current().tgid;
    if let Err(why) = try_register_newborn(tid, flags & CLONE_THREAD != 0, creator) {
        accounts::report(tid, creator, why);
    }
    0
}

#[inline(always)]
fn try_register_newborn(tid: u32, is_thread: bool, creator: u32) -> Result<(), Unclaimed> {
    let slot = if is_thread { slot_of(creator) } else { NO_SLOT };
    if let Some(known) = tid_table::registration_of(tid) {
        if known.slot == slot {
            // The agent saw it in `/proc` first.
            return Ok(());
        }
        // Left behind by a thread whose end was missed.
        tid_table::release(tid, known);
    }
    if !is_thread {
        // A new process under the id of one that the agent has not yet seen end.
        accounts::forget(tid);
    }
    if slot == NO_SLOT {
        return Ok(());
    }
    tid_table::claim(tid, slot)?;
    // The agent may have let go of the process since: then its walk may have missed this thread.
    if slot_of(creator) != slot
        && let Some(reference) = tid_table::registration_of(tid)
    {
        tid_table::release(tid, reference);
    }
    Ok(())
}

/// The slot of a process of no VM. A number rather than an `Option`, whose comparison the compiler turns into one that reads
/// what was never written, which the verifier refuses.
const NO_SLOT: u32 = u32::MAX;

#[inline(always)]
fn slot_of(tgid: u32) -> u32 {
    match accounts::entry_of(tgid) {
        Some(entry) => entry.slot,
        None => NO_SLOT,
    }
}

/// Looks, a few times per second and CPU, at who is running: starts the clock of a thread that was on its CPU already when
/// it was registered (alone there, it might not be switched for minutes), or whose switch was missed.
#[perf_event]
pub fn see_running(_ctx: PerfEventContext) -> u32 {
    let account = tid_table::account_of(current().tid);
    // SAFETY: not null, so in bounds. This interrupts the thread itself, and a switch is never interrupted; only a late wake-up on
    // another CPU may write at the same time, and it leaves at worst an open wait, which the next switch closes.
    unsafe {
        if !account.is_null() && !(*account).stretch.is_on_cpu() && (*account).state == THREAD_LIVE {
            let seen_ns = now_ns();
            accounts::write(account, |account| account.enter_cpu(seen_ns));
        }
    }
    0
}

/// A thread and its thread group.
struct Current {
    tid: u32,
    tgid: u32,
}

/// The thread this program runs on, by its ids in the initial PID namespace.
#[inline(always)]
fn current() -> Current {
    let both = bpf_get_current_pid_tgid();
    Current { tid: both as u32, tgid: (both >> 32) as u32 }
}

/// The low half of a field, on machines that are all little-endian: ids, flags and states have no more.
#[inline(always)]
fn field(ctx: &TracePointContext, offset: &Global<u32>) -> Option<u32> {
    // SAFETY: the helper checks what it reads; the agent has taken the offset from the tracepoint's format.
    unsafe { ctx.read_at(offset.load() as usize) }.ok()
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
