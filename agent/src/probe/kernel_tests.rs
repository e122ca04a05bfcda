//! The scheduler probe on the running kernel, by each of its mechanisms. Each test says so and passes where it may not load eBPF
//! programs.

mod culprits;

use super::{Mechanism, ProbeError, Scheduler, SchedulerOptions, TracefsError};
use crate::reading::{SchedCounters, SchedEvents, SchedReading};
use gnomon_common::wire::VmId;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::time::{Duration, Instant};
use uuid::Uuid;

const MS: u64 = 1_000_000;

/// The probe, or `None` where it cannot be: no BTF, no rights.
fn load(options: SchedulerOptions) -> Option<Scheduler> {
    if options.mechanism == Mechanism::Tracepoints {
        see_tracefs();
    }
    match Scheduler::load(options) {
        Ok(scheduler) => Some(scheduler),
        Err(
            error @ (ProbeError::NoBtf { .. }
            | ProbeError::NotPermitted { .. }
            | ProbeError::Tracefs(TracefsError::NotMounted | TracefsError::NotPermitted { .. })),
        ) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Mounts tracefs where nobody has, for this thread alone and as long as it lives.
fn see_tracefs() {
    use super::Tracefs;
    if !matches!(Tracefs::find(), Err(TracefsError::NotMounted)) {
        return;
    }
    // SAFETY: plain system calls with constant strings. The new mount namespace is this thread's, and private before anything is
    // mounted in it. Where they fail there is no tracefs, and the test says so.
    unsafe {
        let root = c"/".as_ptr();
        if libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(root, root, std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
        {
            let (kind, place) = (c"tracefs".as_ptr(), c"/sys/kernel/tracing".as_ptr());
            libc::mount(kind, place, kind, 0, std::ptr::null());
        }
    }
}

/// Makes a test of each function for each mechanism, in a module of the mechanism's name.
macro_rules! by_each_mechanism {
    ($($test:ident),+ $(,)?) => {
        mod task_storage {
            $(#[test] fn $test() { super::$test(super::SchedulerOptions::default()); })+
        }
        mod tracepoints {
            $(#[test] fn $test() {
                let mechanism = super::Mechanism::Tracepoints;
                super::$test(super::SchedulerOptions { mechanism, ..super::SchedulerOptions::default() });
            })+
        }
    };
}

by_each_mechanism!(
    two_vms_on_one_cpu_run_and_wait_as_the_kernel_says,
    threads_started_after_tracking_are_counted_and_their_time_outlives_them,
    a_thread_on_a_cpu_is_counted_from_its_registration,
    what_is_no_vm_is_never_counted,
    a_sleepers_wakeups_are_counted,
    a_full_table_is_counted_once_per_thread_and_fills_again_when_there_is_room,
    a_vm_no_longer_tracked_is_forgotten_and_starts_from_zero,
    a_process_no_longer_named_leaves_its_counts_with_the_vm,
);

fn events(counters: &SchedCounters) -> SchedEvents {
    counters.events.expect("eBPF counts events")
}

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn counters(reading: &SchedReading, vm: VmId) -> SchedCounters {
    reading.vms[&vm]
}

/// A child process and the pipes to talk to it; killed with its parent, or when dropped.
struct Child {
    pid: i32,
    go: PipeWriter,
    done: PipeReader,
}

impl Child {
    /// Forks a child that runs `body` and then sleeps.
    fn start(body: impl FnOnce(&mut PipeReader, &mut PipeWriter)) -> Self {
        let (mut go_reader, go) = pipe().unwrap();
        let (done, mut done_writer) = pipe().unwrap();
        // SAFETY: the child touches only what is its own after the fork: the pipes, its stack and the allocator, which glibc
        // keeps usable across a fork.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            // SAFETY: plain system calls.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            body(&mut go_reader, &mut done_writer);
            loop {
                std::thread::sleep(Duration::from_secs(1_000));
            }
        }
        Self { pid, go, done }
    }

    fn tgid(&self) -> u32 {
        self.pid as u32
    }

    fn go(&mut self) {
        self.go.write_all(&[1]).unwrap();
    }

    fn wait_done(&mut self) {
        self.done.read_exact(&mut [0]).unwrap();
    }

    /// Run time, wait time and switches onto a CPU by the kernel's own count, of the main thread.
    fn schedstat(&self) -> [u64; 3] {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid)).unwrap();
        let fields: Vec<u64> = text.split_whitespace().map(|field| field.parse().unwrap()).collect();
        fields.try_into().unwrap()
    }

    /// Waits until the main thread has just got a CPU: the kernel counts a wait only when it is over.
    fn wait_for_cpu(&self) {
        let before = self.schedstat()[2];
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.schedstat()[2] == before {
            assert!(Instant::now() < deadline, "no CPU for 10 s");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until the kernel has just charged the main thread with more time: it has a CPU, and charges at each tick.
    fn wait_for_tick(&self) {
        let before = self.schedstat()[0];
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.schedstat()[0] == before {
            assert!(Instant::now() < deadline, "no CPU for 10 s");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// How often the main thread has left a CPU.
    fn switches(&self) -> u64 {
        self.status("voluntary_ctxt_switches:") + self.status("nonvoluntary_ctxt_switches:")
    }

    /// A count of `/proc/PID/status`.
    fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for, so the id is still its.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn wait_go(go: &mut PipeReader) {
    go.read_exact(&mut [0]).unwrap();
}

fn say_done(done: &mut PipeWriter) {
    done.write_all(&[1]).unwrap();
}

/// Has the calling thread run before all that is not real-time, where it may; it must not do so for long.
fn take_turns_with_nobody() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a plain system call with a structure of its own.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

fn pin_to_first_cpu() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap();
    let mut only = CpuSet::new();
    only.set(first);
    sched_setaffinity(None, &only).unwrap();
}

/// Uses this much CPU time on the calling thread, however long that takes.
fn spin_for(cpu_ms: i64) {
    use rustix::time::{ClockId, clock_gettime};
    let used_ns = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    };
    let start = used_ns();
    while used_ns() - start < cpu_ms * MS as i64 {
        std::hint::spin_loop();
    }
}

fn assert_close(what: &str, ours: u64, kernels: u64) {
    let share = ours.abs_diff(kernels) as f64 / kernels as f64;
    assert!(share <= 0.05, "{what}: {ours} here, {kernels} by the kernel's own count: {:.1} % apart", share * 100.0);
}

#[test]
fn the_probe_may_live_on_a_thread_of_its_own() {
    fn is_send<T: Send>() {}
    is_send::<Scheduler>();
}

/// A process that wants the first CPU all the time.
fn pinned_hog(name: &'static std::ffi::CStr) -> Child {
    Child::start(|_, _| {
        pin_to_first_cpu();
        // SAFETY: a plain system call with a constant string.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        loop {
            std::hint::spin_loop();
        }
    })
}

fn two_vms_on_one_cpu_run_and_wait_as_the_kernel_says(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let hogs = [pinned_hog(c"one"), pinned_hog(c"other")];
    for (number, hog) in hogs.iter().enumerate() {
        scheduler.track(vm(number as u128), &[hog.tgid()]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let mut look = || {
        [0, 1].map(|number| {
            hogs[number].wait_for_cpu();
            let switches = hogs[number].status("nonvoluntary_ctxt_switches:");
            (counters(&scheduler.drain(), vm(number as u128)), hogs[number].schedstat(), switches)
        })
    };
    let before = look();
    std::thread::sleep(Duration::from_secs(4));
    let after = look();
    for (before, after) in before.iter().zip(&after) {
        println!("from {before:?}\nto {after:?}");
        assert_close("run", after.0.run_ns - before.0.run_ns, after.1[0] - before.1[0]);
        assert_close("wait", after.0.wait_ns - before.0.wait_ns, after.1[1] - before.1[1]);
        let preemptions = events(&after.0).preemptions - events(&before.0).preemptions;
        assert_close("preemptions", preemptions, after.2 - before.2);
        let waits = |counters: &SchedCounters| events(counters).wait_log2.iter().sum::<u64>();
        // Each preemption ends in a switch back, but for those whose tracepoint the kernel did not fire.
        assert_close("waits that ended", waits(&after.0) - waits(&before.0), preemptions);
        assert_eq!(after.0.threads, 1);
    }
}

fn threads_started_after_tracking_are_counted_and_their_time_outlives_them(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let mut child = Child::start(|go, done| {
        wait_go(go);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| spin_for(200));
            }
        });
        say_done(done);
    });
    scheduler.track(vm(1), &[child.tgid()]).unwrap();
    assert_eq!(counters(&scheduler.drain(), vm(1)).threads, 1);
    child.go();
    let mut most_threads = 0;
    let mut last = SchedCounters::default();
    let deadline = Instant::now() + Duration::from_secs(20);
    while last.run_ns < 390 * MS {
        last = counters(&scheduler.drain(), vm(1));
        most_threads = most_threads.max(last.threads);
        assert!(Instant::now() < deadline, "only {} ns of about 400 ms were counted", last.run_ns);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(most_threads, 3);
    child.wait_done();
    // Long enough for the indexes to be used again.
    std::thread::sleep(Duration::from_millis(1_200));
    for _ in 0..2 {
        let now = counters(&scheduler.drain(), vm(1));
        assert_eq!(now.threads, 1);
        assert!((last.run_ns..430 * MS).contains(&now.run_ns), "{} ns after {}", now.run_ns, last.run_ns);
    }
}

fn a_thread_on_a_cpu_is_counted_from_its_registration(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    // Without BTF a timer finds the thread, ten times a second.
    let (watched, found_after) = match options.mechanism {
        Mechanism::TaskStorage => (Duration::from_millis(20), Duration::ZERO),
        Mechanism::Tracepoints => (Duration::from_millis(200), Duration::from_millis(100)),
    };
    let hog = Child::start(|_, _| {
        take_turns_with_nobody();
        loop {
            std::hint::spin_loop();
        }
    });
    // Only a thread that keeps its CPU from before its registration until it is asked shows that: what a switch begins is counted in any case.
    let undisturbed = (1..=50).find_map(|number| {
        hog.wait_for_tick();
        let (before, switches) = (hog.schedstat(), hog.switches());
        let tracked = Instant::now();
        scheduler.track(vm(number), &[hog.tgid()]).unwrap();
        std::thread::sleep(watched);
        let counted = counters(&scheduler.drain(), vm(number));
        let passed = tracked.elapsed();
        let (after, switched) = (hog.schedstat(), hog.switches() != switches);
        scheduler.untrack(vm(number)).unwrap();
        let known = Duration::from_nanos(counted.run_ns + counted.wait_ns);
        assert!(known <= passed, "{known:?} counted in {passed:?}");
        // By the kernel's own count it ran: else it may have waited all the time.
        (!switched && after[0] > before[0]).then_some((Duration::from_nanos(counted.run_ns), passed))
    });
    let Some((run, passed)) = undisturbed else { panic!("a thread that never kept a CPU for {watched:?}") };
    assert!(
        run + found_after + Duration::from_millis(15) >= passed,
        "only {run:?} were counted of {passed:?} on a CPU"
    );
}

fn what_is_no_vm_is_never_counted(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let mut child = Child::start(|go, done| {
        wait_go(go);
        // A process of its own, although a VM's process started it.
        // SAFETY: the child only spins and leaves.
        let grandchild = unsafe { libc::fork() };
        if grandchild == 0 {
            spin_for(200);
            // SAFETY: ends this process and runs nothing of the parent's.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: waits for the child just made.
        unsafe { libc::waitpid(grandchild, std::ptr::null_mut(), 0) };
        say_done(done);
    });
    let _stranger = Child::start(|_, _| spin_for(10_000));
    scheduler.track(vm(1), &[child.tgid()]).unwrap();
    child.go();
    child.wait_done();
    let reading = scheduler.drain();
    assert_eq!(reading.vms.len(), 1);
    let counters = counters(&reading, vm(1));
    assert!(counters.run_ns < 50 * MS, "{} ns were counted for a process that only waited", counters.run_ns);
    assert_eq!((counters.threads, reading.threads_unmeasured), (1, 0));
}

fn a_sleepers_wakeups_are_counted(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let mut child = Child::start(|go, done| {
        wait_go(go);
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(1));
        }
        say_done(done);
    });
    scheduler.track(vm(1), &[child.tgid()]).unwrap();
    let sleeps_before = child.status("voluntary_ctxt_switches:");
    child.go();
    child.wait_done();
    let wakeups = events(&counters(&scheduler.drain(), vm(1))).wakeups;
    // A timer that fires before the thread has gone to sleep saves it the sleep: the kernel's count tells how many it was.
    let sleeps = child.status("voluntary_ctxt_switches:") - sleeps_before;
    assert!(sleeps > 50, "only {sleeps} sleeps");
    assert_close("wake-ups", wakeups, sleeps);
}

fn a_full_table_is_counted_once_per_thread_and_fills_again_when_there_is_room(options: SchedulerOptions) {
    let Some(mut scheduler) = load(SchedulerOptions { threads_max: 4, ..options }) else { return };
    let nine_threads = || {
        let mut child = Child::start(|_, done| {
            for _ in 0..8 {
                std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1_000)));
            }
            say_done(done);
        });
        child.wait_done();
        child
    };
    let (first, second) = (nine_threads(), nine_threads());
    scheduler.track(vm(1), &[first.tgid()]).unwrap();
    scheduler.track(vm(2), &[second.tgid()]).unwrap();
    // A pass over the same threads again.
    scheduler.track(vm(3), &[std::process::id()]).unwrap();
    scheduler.untrack(vm(3)).unwrap();
    let own_threads = fs::read_dir("/proc/self/task").unwrap().count() as u64;
    let reading = scheduler.drain();
    assert_eq!((counters(&reading, vm(1)).threads, counters(&reading, vm(2)).threads), (4, 0));
    assert_eq!(reading.threads_unmeasured, 5 + 9 + own_threads);
    drop(first);
    // Its threads end one after the other, and their accounts rest before they are used again.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let reading = scheduler.drain();
        let threads = (counters(&reading, vm(1)).threads, counters(&reading, vm(2)).threads);
        if threads == (0, 4) {
            break;
        }
        assert!(Instant::now() < deadline, "the VMs have {threads:?} threads under measurement, not 0 and 4");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn a_vm_no_longer_tracked_is_forgotten_and_starts_from_zero(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let hog = Child::start(|_, _| {
        loop {
            std::hint::spin_loop();
        }
    });
    let run_until = |scheduler: &mut Scheduler, vm: VmId, run_ns: u64| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while counters(&scheduler.drain(), vm).run_ns < run_ns {
            assert!(Instant::now() < deadline, "{run_ns} ns were not reached in 20 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    scheduler.track(vm(1), &[hog.tgid()]).unwrap();
    run_until(&mut scheduler, vm(1), 500 * MS);
    scheduler.untrack(vm(1)).unwrap();
    assert!(scheduler.drain().vms.is_empty());
    scheduler.track(vm(2), &[hog.tgid()]).unwrap();
    let inherited_ns = counters(&scheduler.drain(), vm(2)).run_ns;
    assert!(inherited_ns < 250 * MS, "{inherited_ns} ns were inherited");
    run_until(&mut scheduler, vm(2), 300 * MS);
}

fn a_process_no_longer_named_leaves_its_counts_with_the_vm(options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let spinner = || {
        let mut child = Child::start(|_, done| {
            say_done(done);
            spin_for(300);
            say_done(done);
        });
        child.wait_done();
        child
    };
    let mut first = spinner();
    scheduler.track(vm(1), &[first.tgid()]).unwrap();
    first.wait_done();
    let before = counters(&scheduler.drain(), vm(1));
    let mut second = spinner();
    scheduler.track(vm(1), &[second.tgid()]).unwrap();
    second.wait_done();
    let after = counters(&scheduler.drain(), vm(1));
    assert_eq!(after.threads, 1);
    assert!(before.run_ns > 100 * MS, "{} ns", before.run_ns);
    assert!(after.run_ns > before.run_ns + 100 * MS, "{} ns after {}", after.run_ns, before.run_ns);
}
