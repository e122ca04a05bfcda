//! The programs for kernels without BTF or task storage: classic tracepoints, from object to kernel.

use super::ProbeError;
use super::load::{object_error, program, program_error};
use super::tracefs::{Tracefs, TracefsError};
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::{PerfEvent, TracePoint};
use aya::util::online_cpus;
use aya::{Ebpf, EbpfLoader};

/// Programs with the tracepoints they are for. Registration before measurement: threads born while the rest is being attached are
/// known from the start.
const PROGRAMS: [(&str, &str); 4] =
    [("task_newtask", "task"), ("sched_switch", "sched"), ("sched_wakeup", "sched"), ("sched_wakeup_new", "sched")];

/// The names of [`PROGRAMS`] and the program of the clock.
pub(super) const PROGRAM_NAMES: [&str; 5] =
    ["task_newtask", "sched_switch", "sched_wakeup", "sched_wakeup_new", CLOCK_PROGRAM];

/// Sees which thread is on a CPU.
const CLOCK_PROGRAM: &str = "see_running";

/// How often it looks, per CPU: a thread on a CPU of its own may go uncounted for so long after its registration. The program takes
/// well under a microsecond.
const CLOCK_PERIOD_NS: u64 = 100_000_000;

/// Globals of the object, and the field whose offset each wants.
const FIELDS: [(&str, &str, &str, &str); 6] = [
    ("SWITCH_PREV_STATE_OFFSET", "sched", "sched_switch", "prev_state"),
    ("SWITCH_NEXT_PID_OFFSET", "sched", "sched_switch", "next_pid"),
    ("WAKEUP_PID_OFFSET", "sched", "sched_wakeup", "pid"),
    ("WAKEUP_NEW_PID_OFFSET", "sched", "sched_wakeup_new", "pid"),
    ("NEWTASK_PID_OFFSET", "task", "task_newtask", "pid"),
    ("NEWTASK_CLONE_FLAGS_OFFSET", "task", "task_newtask", "clone_flags"),
];

/// Makes the maps, with room for `threads_max` threads; the programs are not yet loaded.
pub(super) fn open(threads_max: u32) -> Result<Ebpf, ProbeError> {
    let tracefs = Tracefs::find()?;
    let offsets = FIELDS.map(|(_, category, event, field)| tracefs.field_offset(category, event, field));
    let offsets = offsets.into_iter().collect::<Result<Vec<u32>, TracefsError>>()?;
    let mut loader = EbpfLoader::new();
    // Nothing of the kernel's own types is used.
    loader.btf(None);
    for map in ["ACCOUNTS", "FREE_INDEXES", "THREADS"] {
        loader.map_max_entries(map, threads_max);
    }
    for ((global, ..), offset) in FIELDS.iter().zip(&offsets) {
        loader.override_global(global, offset, true);
    }
    loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sched_classic"))).map_err(object_error)
}

/// Loads and attaches the programs.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    for (name, _) in PROGRAMS {
        program::<TracePoint>(ebpf, name)?.load().map_err(|e| program_error(name, e))?;
    }
    for (name, category) in PROGRAMS {
        program::<TracePoint>(ebpf, name)?.attach(category, name).map_err(|e| program_error(name, e))?;
    }
    if let Err(error) = attach_clock(ebpf) {
        tracing::warn!(
            %error,
            "no timer on the CPUs: a thread that never leaves its CPU is counted only from its first switch"
        );
    }
    Ok(())
}

/// A timer on every CPU that is online now. One that comes later has none, and needs none but for threads that are on it already
/// when they are registered.
fn attach_clock(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let cpus = online_cpus().map_err(|(what, source)| ProbeError::System { what, source })?;
    let program: &mut PerfEvent = program(ebpf, CLOCK_PROGRAM)?;
    program.load().map_err(|e| program_error(CLOCK_PROGRAM, e))?;
    for cpu in cpus {
        let (clock, scope) =
            (PerfEventConfig::Software(SoftwareEvent::CpuClock), PerfEventScope::AllProcessesOneCpu { cpu });
        program
            .attach(clock, scope, SamplePolicy::Period(CLOCK_PERIOD_NS), false)
            .map_err(|e| program_error(CLOCK_PROGRAM, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_its_cost_read() {
        for (name, _) in PROGRAMS {
            assert!(PROGRAM_NAMES.contains(&name), "{name}");
        }
        assert!(FIELDS.iter().all(|(_, _, event, _)| PROGRAMS.iter().any(|(name, _)| name == event)));
    }
}
