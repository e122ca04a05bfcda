//! Records of the scheduler probe (`agent-ebpf/src/sched.rs`).
//!
//! The kernel is the only writer of [`ThreadAccount`]; the agent maps the array of accounts read-only and takes consistent
//! copies by [`ThreadAccount::seq`]. The transitions of an account are here and not in the probe, so that they are tested
//! where tests can run.

/// How many VMs one host can have under measurement. A slot is freed when its VM goes away. The table of who waited for whom grows with its
/// square: 3 MiB.
pub const VM_SLOTS_MAX: usize = 512;

/// How many VM threads one host can have under measurement, all VMs together (vCPU, iothread, vhost and emulator threads).
pub const THREADS_MAX: usize = 16_384;

/// How many processes one host can have under measurement: per VM the QEMU process and, on kernels before 6.4, one vhost
/// kernel thread per virtio device.
pub const TGIDS_MAX: usize = VM_SLOTS_MAX * 8;

/// Buckets of the run-queue wait histogram: bucket `b` counts waits of `2^b ..= 2^(b+1)-1` ns, the last one all longer.
pub const WAIT_BUCKETS: usize = 32;

// The bucket index is masked, not compared, so that the probe has no panic path.
const _: () = assert!(WAIT_BUCKETS.is_power_of_two());

/// The bucket that counts a wait of `wait_ns`; 0 ns counts as 1 ns.
#[inline(always)]
pub const fn wait_bucket(wait_ns: u64) -> usize {
    let log2 = (63 - (wait_ns | 1).leading_zeros()) as usize;
    if log2 < WAIT_BUCKETS { log2 } else { WAIT_BUCKETS - 1 }
}

/// Says which VM a process belongs to. Value of the map `TGID_SLOT`, keyed by tgid; written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TgidEntry {
    /// The VM's slot, below [`VM_SLOTS_MAX`].
    pub slot: u32,
    /// 0 until the first registration pass over this process is done. Only that pass counts the threads for which it finds no
    /// account: later passes meet the same threads again.
    pub settled: u32,
}

/// What task storage holds for a thread of a VM: where its account is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadRef {
    /// Index into the array of accounts.
    pub index: u32,
    /// The slot under which the thread was registered.
    pub slot: u32,
}

/// How many different commands of host tasks are told apart, all VMs together.
pub const COMMANDS_MAX: usize = 254;

/// How many commands can wait for the agent to give them a column.
pub const NEWCOMERS_MAX: usize = 64;

/// [`WaitRow`]: columns below this one are VM slots; a VM's own is what its threads waited for each other.
pub const QUOTA_COLUMN: u32 = VM_SLOTS_MAX as u32;

/// [`WaitRow`]: host tasks whose command has no column.
pub const OTHER_COMMANDS_COLUMN: u32 = QUOTA_COLUMN + 1;

/// [`WaitRow`]: the first column of a host task's command.
pub const COMMAND_COLUMN: u32 = QUOTA_COLUMN + 2;

/// Columns of a [`WaitRow`].
pub const WAIT_COLUMNS: usize = VM_SLOTS_MAX + 2 + COMMANDS_MAX;

/// What the threads of one VM waited, in nanoseconds, by whoever ran meanwhile: a row of the map `WAITS`, indexed by slot.
///
/// Only ended waits are in it. The kernel adds atomically, the agent clears the row and the column of a slot before it gives it away.
#[repr(C)]
pub struct WaitRow(pub [u64; WAIT_COLUMNS]);

/// The command of a thread group (`comm` of its leader) as two little-endian words, see [`Command::of`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct Command(pub [u64; 2]);

impl Command {
    /// From the kernel's 16 bytes, up to the end of the name or the first slash: what follows that tells a kernel's threads apart by
    /// CPU (`kworker/3:1`), and there are too many of them.
    #[inline(always)]
    pub const fn of(comm: [u64; 2]) -> Self {
        let (first, is_whole) = until_end(comm[0]);
        if is_whole { Self([first, until_end(comm[1]).0]) } else { Self([first, 0]) }
    }
}

/// The bytes of a word before its first zero or slash, and whether there is neither.
#[inline(always)]
const fn until_end(word: u64) -> (u64, bool) {
    const ONES: u64 = u64::MAX / 0xff;
    // The highest bit of the lowest zero byte, and of some above it.
    const fn zeros(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word & (ONES << 7)
    }
    let ends = zeros(word) | zeros(word ^ (ONES * b'/' as u64));
    if ends == 0 {
        return (word, true);
    }
    let lowest = ends & ends.wrapping_neg();
    (word & ((lowest >> 7).wrapping_sub(1)), false)
}

/// [`ThreadAccount::state`]: nobody's.
pub const THREAD_VACANT: u8 = 0;
/// [`ThreadAccount::state`]: a thread's, which is alive.
pub const THREAD_LIVE: u8 = 1;
/// [`ThreadAccount::state`]: the thread has left its CPU for the last time, or was released; the agent gives the index back.
pub const THREAD_GONE: u8 = 2;

/// The accumulator of one thread: three cache lines, the first of which is all that most events touch.
///
/// The counts are 32 bits wide and wrap around; the agent adds up their differences, and reads far more often than
/// they wrap. Times are `CLOCK_MONOTONIC` nanoseconds.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadAccount {
    /// Odd while the kernel is writing. 64 bits wide, because BPF has atomic operations of that width on every target.
    pub seq: u64,
    /// Time on a CPU, up to the last switch.
    pub run_ns: u64,
    /// Time runnable but not on a CPU, up to the last switch.
    pub wait_ns: u64,
    /// What of the kernel's own count of the thread's run time (`task_struct.se.sum_exec_runtime`) is in `run_ns`, or came before it.
    pub exec_ns: u64,
    /// What the thread does, and since when: see [`Stretch`].
    pub stretch: Stretch,
    /// Wake-ups (wraps around).
    pub wakeups: u32,
    /// Switches off a CPU while still runnable, as in the kernel's `nonvoluntary_ctxt_switches` (wraps around).
    pub preemptions: u32,
    /// Counts the owners of this account, from 1; 0 is "never used".
    pub generation: u32,
    /// The owner's thread id.
    pub tid: u32,
    /// The last registration pass that met the owner alive.
    pub pass: u32,
    /// The VM's slot.
    pub slot: u16,
    /// [`THREAD_VACANT`], [`THREAD_LIVE`] or [`THREAD_GONE`].
    pub state: u8,
    /// Not 0 while the thread waits because its VM's quota is used up.
    pub throttled: u8,
    /// Ended waits by length, see [`wait_bucket`] (wraps around).
    pub wait_log2: [u32; WAIT_BUCKETS],
}

const _: () = assert!(size_of::<ThreadAccount>() == 192);

/// What a thread does at present and since when, in one word: whoever reads it, whenever, sees a state that existed.
///
/// Nanoseconds, of which the lowest bit is taken for whether the thread is on a CPU (1) or waits for one (0). 0 when it sleeps.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch(u64);

impl Stretch {
    /// Neither on a CPU nor waiting for one: only then does a wake-up mean something.
    pub const ASLEEP: Self = Self(0);

    /// On a CPU since `now_ns`.
    #[inline(always)]
    pub const fn on_cpu(now_ns: u64) -> Self {
        Self(now_ns | 1)
    }

    /// Waiting since `now_ns`.
    #[inline(always)]
    pub const fn waiting(now_ns: u64) -> Self {
        Self(now_ns & !1)
    }

    /// Whether it sleeps.
    #[inline(always)]
    pub const fn is_asleep(self) -> bool {
        self.0 == 0
    }

    /// Whether it is on a CPU.
    #[inline(always)]
    pub const fn is_on_cpu(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it waits for a CPU.
    #[inline(always)]
    pub const fn is_waiting(self) -> bool {
        self.0 != 0 && self.0 & 1 == 0
    }

    /// Since when it is on a CPU or waits, to 2 ns; 0 when it sleeps.
    #[inline(always)]
    pub const fn since_ns(self) -> u64 {
        self.0 & !1
    }
}

impl ThreadAccount {
    /// The thread leaves its CPU: `runnable` when it was preempted, yielded or was woken before it slept. `exec_ns` is the kernel's count of
    /// its run time as of now.
    ///
    /// What has passed and was not run was waited: the kernel charges no thread what interrupts took from it, or, where the host is itself
    /// a VM, its hypervisor. So was what passed before a switch onto the CPU that was not reported (tracepoints do miss some).
    #[inline(always)]
    pub const fn leave_cpu(&mut self, now_ns: u64, exec_ns: u64, runnable: bool) {
        let mut ran_ns = exec_ns.saturating_sub(self.exec_ns);
        if !self.stretch.is_asleep() {
            let passed_ns = now_ns.saturating_sub(self.stretch.since_ns());
            // The two clocks are not read at the same instant. What is too much for this stretch is left for the next one.
            if ran_ns > passed_ns {
                ran_ns = passed_ns;
            }
            self.wait_ns = self.wait_ns.wrapping_add(passed_ns - ran_ns);
        }
        self.run_ns = self.run_ns.wrapping_add(ran_ns);
        self.exec_ns = self.exec_ns.wrapping_add(ran_ns);
        if runnable {
            self.stretch = Stretch::waiting(now_ns);
            self.preemptions = self.preemptions.wrapping_add(1);
        } else {
            self.stretch = Stretch::ASLEEP;
        }
    }

    /// What to tell [`Self::leave_cpu`] where the kernel's count cannot be read: all the time since the thread got its CPU.
    #[inline(always)]
    pub const fn exec_by_clock_ns(&self, now_ns: u64) -> u64 {
        if self.stretch.is_on_cpu() {
            self.exec_ns.wrapping_add(now_ns.saturating_sub(self.stretch.since_ns()))
        } else {
            self.exec_ns
        }
    }

    /// The thread gets a CPU.
    #[inline(always)]
    pub const fn enter_cpu(&mut self, now_ns: u64) {
        let before = self.stretch;
        self.stretch = Stretch::on_cpu(now_ns);
        if before.is_waiting() {
            let wait_ns = now_ns.saturating_sub(before.since_ns());
            self.wait_ns = self.wait_ns.wrapping_add(wait_ns);
            let bucket = wait_bucket(wait_ns) & (WAIT_BUCKETS - 1);
            self.wait_log2[bucket] = self.wait_log2[bucket].wrapping_add(1);
        }
    }

    /// The thread becomes runnable.
    #[inline(always)]
    pub const fn wake(&mut self, now_ns: u64) {
        self.stretch = Stretch::waiting(now_ns);
        self.wakeups = self.wakeups.wrapping_add(1);
    }
}

#[cfg(all(test, feature = "wire"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wait_is_counted_in_the_bucket_of_its_power_of_two() {
        assert_eq!(wait_bucket(0), 0);
        for bucket in 0..WAIT_BUCKETS {
            assert_eq!(wait_bucket(1 << bucket), bucket);
            assert_eq!(wait_bucket((2 << bucket) - 1), bucket);
        }
        assert_eq!(wait_bucket(u64::MAX), WAIT_BUCKETS - 1);
    }

    #[test]
    fn a_command_ends_at_its_end_or_its_first_slash() {
        let of = |text: &str| {
            let mut bytes = [0; 16];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            Command::of([word(0), word(8)])
        };
        assert_eq!(of("kworker/3:1"), of("kworker"));
        assert_eq!(of("ksoftirqd/12"), of("ksoftirqd"));
        assert_ne!(of("ksoftirqd"), of("ksoftirq"));
        assert_eq!(of("tar\0left over"), of("tar"), "older kernels do not clear what a longer name leaves behind");
        assert_ne!(of("qemu-system-x86"), of("qemu-sys"));
        assert_eq!(of("/"), Command::default());
    }

    #[test]
    fn a_preempted_thread_waits_and_a_sleeping_one_does_not() {
        let mut account = ThreadAccount::default();
        account.enter_cpu(100);
        account.leave_cpu(130, 30, true);
        account.enter_cpu(180);
        account.leave_cpu(200, 50, false);
        account.wake(1_000);
        account.enter_cpu(1_004);
        assert_eq!((account.run_ns, account.wait_ns), (50, 54));
        assert_eq!((account.preemptions, account.wakeups), (1, 1));
        assert_eq!((account.wait_log2[wait_bucket(50)], account.wait_log2[wait_bucket(4)]), (1, 1));
    }

    #[test]
    fn of_a_stretch_whose_middle_was_missed_what_was_not_run_was_waited() {
        let mut account = ThreadAccount::default();
        account.wake(100);
        account.leave_cpu(180, 30, false);
        assert_eq!((account.run_ns, account.wait_ns), (30, 50));
        assert_eq!(account.wait_log2, [0; WAIT_BUCKETS], "its length is not known");
        assert!(account.stretch.is_asleep());
        account.leave_cpu(400, 70, false);
        assert_eq!(
            (account.run_ns, account.wait_ns),
            (70, 50),
            "where all was missed, the kernel still knows what was run"
        );
    }

    #[test]
    fn what_was_stolen_from_a_thread_on_its_cpu_was_waited() {
        let mut account = ThreadAccount { exec_ns: 5_000, ..Default::default() };
        account.enter_cpu(100);
        account.leave_cpu(200, 5_070, false);
        assert_eq!((account.run_ns, account.wait_ns), (70, 30));
        account.enter_cpu(300);
        account.leave_cpu(400, 5_175, false);
        assert_eq!((account.run_ns, account.wait_ns), (170, 30), "the kernel's clock was read 5 ns late");
        account.enter_cpu(500);
        account.leave_cpu(600, 5_270, false);
        assert_eq!((account.run_ns, account.wait_ns), (270, 30), "and what was too much then is not lost");
    }

    #[test]
    fn without_the_kernels_count_all_time_on_a_cpu_was_run() {
        let mut account = ThreadAccount::default();
        account.wake(100);
        assert_eq!(account.exec_by_clock_ns(150), 0);
        account.enter_cpu(200);
        assert_eq!(account.exec_by_clock_ns(250), 50);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Enter,
        Leave(bool),
        Wake,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![Just(Event::Enter), any::<bool>().prop_map(Event::Leave), Just(Event::Wake)]
    }

    proptest! {
        /// Events are lost now and then (a kernel before 6.2 can also refuse a look-up), so any order must keep the books sane.
        #[test]
        fn no_order_of_events_books_more_time_than_has_passed(events in prop::collection::vec((event(), 0u64..1_000_000), 0..200)) {
            let mut account = ThreadAccount::default();
            let start_ns = 1_000;
            let (mut now_ns, mut exec_ns, mut is_on_cpu) = (start_ns, 0, false);
            let mut waits_before = 0;
            for (event, step_ns) in events {
                now_ns += step_ns;
                exec_ns += if is_on_cpu { step_ns - step_ns / 4 } else { 0 };
                let (run_ns, wait_ns) = (account.run_ns, account.wait_ns);
                is_on_cpu = matches!(event, Event::Enter) || is_on_cpu && matches!(event, Event::Wake);
                match event {
                    Event::Enter => account.enter_cpu(now_ns),
                    Event::Leave(runnable) => account.leave_cpu(now_ns, exec_ns, runnable),
                    Event::Wake if account.stretch.is_asleep() => account.wake(now_ns),
                    Event::Wake => {}
                }
                prop_assert!(account.run_ns >= run_ns && account.wait_ns >= wait_ns);
                prop_assert!(account.run_ns + account.wait_ns <= now_ns - start_ns);
                prop_assert!(account.run_ns <= exec_ns);
                let waits: u32 = account.wait_log2.iter().sum();
                prop_assert!(waits == waits_before || waits == waits_before + 1);
                waits_before = waits;
            }
        }
    }
}
