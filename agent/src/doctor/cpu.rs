//! Every rung of the ladder of CPU readings, each made to count this very process.

use super::{Check, State};
use crate::cpu_source::{Choice, Host, Rungs};
use gnomon_common::wire::CpuSource;

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
    // To stand there is to have counted a thread of this process.
    Host.stand(rung).map(drop).map_err(|error| error.to_string())
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
