//! Every rung of the ladder of CPU readings, each made to count this very process.

use super::{Check, State};
use crate::cpu_source::{Choice, Host, Rungs, Source};
use crate::sample::SourceError;
use gnomon_common::wire::{CpuSource, VmId};
use rustix::time::{ClockId, clock_gettime};
use std::thread;
use std::time::Duration;
use uuid::Uuid;

/// How much CPU time the trial uses: the kernel's own counts are as coarse as a tick.
const TRIAL_NS: u64 = 40_000_000;

/// It is used in so many parts. A thread that nobody interrupts shows in no context switch, and a switch that the kernel loses costs one part.
const TRIAL_PARTS: u64 = 4;

/// Between the parts the process sleeps: it leaves its CPU, and comes back.
const TRIAL_PAUSE: Duration = Duration::from_millis(1);

/// How much of it must be counted: ticks, and what the trial shares its CPU with, may take some.
const COUNTED_NS_MIN: u64 = TRIAL_NS / 2;

/// What a rung turned out to be.
struct Trial {
    rung: CpuSource,
    failure: Option<String>,
}

pub(super) fn examine(choice: Choice) -> Vec<Check> {
    let trials = CpuSource::ALL.map(|rung| Trial { rung, failure: attempt(rung).err() });
    let mut checks: Vec<Check> =
        trials.iter().filter(|trial| trial.rung != CpuSource::Cgroup).map(rung_check).collect();
    let allowed = |rung: CpuSource| matches!(choice, Choice::Auto) || choice == Choice::Only(rung);
    let taken = trials.iter().find(|trial| allowed(trial.rung) && trial.failure.is_none()).map(|trial| trial.rung);
    checks.extend(signals(taken, choice));
    checks
}

/// What the daemon would have of it.
fn signals(taken: Option<CpuSource>, choice: Choice) -> [Check; 2] {
    let (demand, histogram) = ("CPU run and wait", "CPU wait histogram");
    let demanded = match choice {
        Choice::Auto => String::new(),
        Choice::Only(only) => format!(", as probe.source demands {only}"),
    };
    let enable = "see the eBPF signals above";
    let Some(rung) = taken else {
        let why = format!("no source works{demanded}: the daemon does not start");
        return [
            Check::unavailable(demand, "none", why.clone()).needed().enable("probe.source = \"auto\""),
            Check::unavailable(histogram, "none", why).enable("probe.source = \"auto\""),
        ];
    };
    let (state, told) = match rung {
        CpuSource::TaskStorage => (State::Ok, "counted by eBPF"),
        CpuSource::Tracepoints => (State::Ok, "counted by eBPF, at two to three times the cost of task storage"),
        CpuSource::Schedstat => {
            (State::Degraded, "a wait is seen when it ends; threads that end between samples are not")
        }
        CpuSource::Cgroup => {
            (State::Degraded, "usage only: demand above it is unknown, so no VM is shrunk on its word")
        }
    };
    let mut first = Check::new(demand, state, rung.name(), format!("{told}{demanded}")).needed();
    if state != State::Ok {
        first = first.enable(enable);
    }
    let second = if rung.counts_events() {
        Check::ok(histogram, rung.name(), "and wake-ups and preemptions")
    } else {
        let why = format!("{rung} does not tell; wake-ups and preemptions neither{demanded}");
        Check::unavailable(histogram, "none", why).enable(enable)
    };
    [first, second]
}

fn rung_check(trial: &Trial) -> Check {
    let (signal, source, enable) = match trial.rung {
        CpuSource::TaskStorage => {
            ("eBPF, task storage", "BTF tracepoints", "a kernel with BTF, and CAP_BPF and CAP_PERFMON, or root")
        }
        CpuSource::Tracepoints => (
            "eBPF, tracepoints",
            "tracefs",
            "tracefs mounted, and CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH (tracefs is root's alone), or root",
        ),
        CpuSource::Schedstat | CpuSource::Cgroup => (
            "schedstat",
            "/proc/PID/task/TID/schedstat",
            "a kernel with CONFIG_SCHED_INFO; before 5.14 started with `delayacct`",
        ),
    };
    match &trial.failure {
        None => Check::ok(signal, source, "counted this process"),
        Some(why) => Check::unavailable(signal, source, why.clone()).enable(enable),
    }
}

fn attempt(rung: CpuSource) -> Result<(), String> {
    let source = Host.stand(rung).map_err(|error| error.to_string())?;
    if matches!(source, Source::UsageOnly(_)) {
        return Ok(());
    }
    match counted_ns(source) {
        Ok(counted) if counted >= COUNTED_NS_MIN => Ok(()),
        Ok(counted) => Err(format!(
            "it counted {} of the {} ms that this process ran: is this the host's own PID namespace?",
            counted / 1_000_000,
            TRIAL_NS / 1_000_000
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// What a source counts of this process while it uses [`TRIAL_NS`].
fn counted_ns(source: Source) -> Result<u64, SourceError> {
    let (mut source, own) = (source.boxed(), VmId(Uuid::nil()));
    source.track(own, &[std::process::id()])?;
    let before = source.drain()?;
    for _ in 0..TRIAL_PARTS {
        thread::sleep(TRIAL_PAUSE);
        let start_ns = used_ns();
        while used_ns() - start_ns < TRIAL_NS / TRIAL_PARTS {
            std::hint::spin_loop();
        }
    }
    thread::sleep(TRIAL_PAUSE);
    let after = source.drain()?;
    let run_ns =
        |vms: &std::collections::BTreeMap<VmId, crate::reading::SchedCounters>| vms.get(&own).map_or(0, |c| c.run_ns);
    Ok(run_ns(&after.vms).saturating_sub(run_ns(&before.vms)))
}

/// CPU time of this thread.
fn used_ns() -> u64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rung_does_not_tell_is_said() {
        let [demand, histogram] = signals(Some(CpuSource::Schedstat), Choice::Auto);
        assert_eq!((demand.state, histogram.state), (State::Degraded, State::Unavailable));
        let [demand, histogram] = signals(Some(CpuSource::Tracepoints), Choice::Only(CpuSource::Tracepoints));
        assert_eq!((demand.state, histogram.state), (State::Ok, State::Ok));
        assert!(demand.why.contains("as probe.source demands tracepoints"), "{}", demand.why);
        let [demand, _] = signals(None, Choice::Only(CpuSource::TaskStorage));
        assert_eq!((demand.state, demand.needed), (State::Unavailable, true));
    }
}
