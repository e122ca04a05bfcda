//! Reads members of the kernel's `struct task_struct` by plain loads.
//!
//! The compiler emits no CO-RE relocations for Rust, so each member's offset is a global that the agent fills in from the
//! running kernel's BTF before the programs are loaded. The verifier knows such a global as a constant and checks the load
//! against the same BTF: a wrong offset is refused, not read.

use aya_ebpf::Global;
use aya_ebpf::bindings::task_struct;
use gnomon_common::abi::sched::Command;

#[unsafe(no_mangle)]
static TASK_PID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_TGID_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_STATE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_ON_CPU_OFFSET: Global<u32> = Global::new(0);
/// Of `se.sum_exec_runtime`.
#[unsafe(no_mangle)]
static TASK_EXEC_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_BPF_STORAGE_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_GROUP_LEADER_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_COMM_OFFSET: Global<u32> = Global::new(0);
/// Since 6.18; 0 where there is no such member.
#[unsafe(no_mangle)]
static TASK_THROTTLED_OFFSET: Global<u32> = Global::new(0);
/// Of `se.cfs_rq`; 0 where it is not needed, or not there.
#[unsafe(no_mangle)]
static TASK_CFS_RQ_OFFSET: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CFS_RQ_THROTTLE_COUNT_OFFSET: Global<u32> = Global::new(0);

/// `TASK_RUNNING` of `include/linux/sched.h`.
pub const TASK_RUNNING: u32 = 0;

/// `TASK_DEAD` of `include/linux/sched.h` (this value since 4.14): set just before a thread leaves its CPU for ever.
pub const TASK_DEAD: u32 = 0x80;

/// A thread that the kernel handed to the running program; valid for as long as that program runs.
#[derive(Clone, Copy)]
pub struct Task(*mut task_struct);

impl Task {
    /// Wraps a pointer that the verifier knows as a `struct task_struct`, or null.
    #[inline(always)]
    pub fn from_ptr(task: *mut task_struct) -> Option<Self> {
        if task.is_null() { None } else { Some(Self(task)) }
    }

    /// Wraps an argument of a BTF tracepoint, which is never null.
    #[inline(always)]
    pub fn from_arg(task: *mut task_struct) -> Self {
        Self(task)
    }

    /// The pointer, for helper functions.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut task_struct {
        self.0
    }

    /// Thread id, in the initial PID namespace.
    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.read(&TASK_PID_OFFSET)
    }

    /// Thread group id: what user space calls the process id.
    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.read(&TASK_TGID_OFFSET)
    }

    /// `__state`: [`TASK_RUNNING`], or why it sleeps.
    #[inline(always)]
    pub fn state(self) -> u32 {
        self.read(&TASK_STATE_OFFSET)
    }

    /// Whether it is on a CPU now. Still true for about a microsecond after it has been switched away from.
    #[inline(always)]
    pub fn is_on_cpu(self) -> bool {
        self.read::<u32>(&TASK_ON_CPU_OFFSET) != 0
    }

    /// How long it has run, by the kernel's own count, in nanoseconds: as of now where it has just left its CPU, as of the last tick
    /// where it is on one. Time that interrupts took, or a hypervisor below this kernel, is not in it.
    #[inline(always)]
    pub fn exec_ns(self) -> u64 {
        self.read(&TASK_EXEC_OFFSET)
    }

    /// Whether any BPF program keeps task storage on it: one load, where asking the storage itself is a helper call.
    #[inline(always)]
    pub fn has_storage(self) -> bool {
        !self.read::<*const u8>(&TASK_BPF_STORAGE_OFFSET).is_null()
    }

    /// Whether this is the idle task of its CPU.
    #[inline(always)]
    pub fn is_idle(self) -> bool {
        self.tid() == 0
    }

    /// The command of its thread group.
    #[inline(always)]
    pub fn command(self) -> Command {
        let leader = Self(self.read::<*mut task_struct>(&TASK_GROUP_LEADER_OFFSET));
        Command::of(leader.read::<[u64; 2]>(&TASK_COMM_OFFSET))
    }

    /// Whether a thread that leaves its CPU does so because the quota of a group it is in is used up. The kernel
    /// says so of the thread itself, which it takes off its run-queue (since 6.18).
    #[inline(always)]
    pub fn is_throttled(self) -> bool {
        if TASK_THROTTLED_OFFSET.load() != 0 {
            return self.read::<u8>(&TASK_THROTTLED_OFFSET) != 0;
        }
        self.is_in_throttled_group()
    }

    /// Whether its group's run-queue is held back as a whole, as kernels before 6.18 do it: then a thread that wakes up is, too.
    #[inline(always)]
    pub fn is_in_throttled_group(self) -> bool {
        if TASK_CFS_RQ_OFFSET.load() == 0 {
            return false;
        }
        let run_queue = self.read::<*const u8>(&TASK_CFS_RQ_OFFSET);
        // SAFETY: as in `read`; the kernel handles a fault as a read of 0.
        unsafe { run_queue.byte_add(CFS_RQ_THROTTLE_COUNT_OFFSET.load() as usize).cast::<i32>().read() != 0 }
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: the pointer is a live task's, and the verifier has checked that a member of this size lies at the offset.
        unsafe { self.0.byte_add(offset.load() as usize).cast::<T>().read() }
    }
}
