//! What a context switch and a wake-up cost.
//!
//! Two threads on one CPU pass a byte to and fro through pipes: the worst case, where nearly all that happens is switches and wake-ups. A round
//! trip is two of each. One candidate has the second thread in a process of its own that is no VM's: its switches charge what the VM waited to
//! a host task. bpftrace counts switches by thread and no more: it times nothing and does not look at wake-ups.

use super::attached::{Attached, BPFTRACE, Peer};
use super::spread::median;
use super::workload::Workload;
use super::{WARM_UP, number};
use anyhow::{Context, Result};
use gnomon_agent::probe::{Baseline, Mechanism, Scheduler, SchedulerOptions, Tracefs};
use gnomon_common::wire::VmId;
use serde::Serialize;
use std::thread::sleep;
use uuid::Uuid;

/// `runqlat` in libbpf-tools' Debian package, which is not on every user's PATH.
const RUNQLAT: &str = "/usr/sbin/runqlat";
/// What it is to count.
const COUNT: &str = "tracepoint:sched:sched_switch { @[tid] = count(); }";
/// A thread of no VM may cost this much of an empty program.
const NO_VM_RATIO_MAX: f64 = 1.25;
/// A switch of a VM's thread may cost this much of `runqlat`'s.
const VM_RATIO_MAX: f64 = 0.4;
/// By how much a round trip of a VM's threads may be slower, of what `runqlat` slows it down.
const SLOWDOWN_RATIO_MAX: f64 = 0.5;

/// What is attached while the workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Nothing,
    Empty,
    NoVm,
    Vm,
    VmAndHost,
    ClassicNoVm,
    ClassicVm,
    Runqlat,
    RunqlatPerProcess,
    Count,
}

impl Candidate {
    const ALL: [Self; 10] = [
        Self::Nothing,
        Self::Empty,
        Self::NoVm,
        Self::Vm,
        Self::VmAndHost,
        Self::ClassicNoVm,
        Self::ClassicVm,
        Self::Runqlat,
        Self::RunqlatPerProcess,
        Self::Count,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty program",
            Self::NoVm => "probe, threads of no VM",
            Self::Vm => "probe, threads of a VM",
            Self::VmAndHost => "probe, VM and host task",
            Self::ClassicNoVm => "classic, threads of no VM",
            Self::ClassicVm => "classic, threads of a VM",
            Self::Runqlat => "runqlat",
            Self::RunqlatPerProcess => "runqlat -P",
            Self::Count => "bpftrace @[tid] = count()",
        }
    }

    /// `None` if it is not installed, or what it needs is not mounted (tracefs).
    fn attach(self, workload: &Workload) -> Result<Option<Attached>> {
        let mechanism = match self {
            Self::ClassicNoVm | Self::ClassicVm => Mechanism::Tracepoints,
            _ => Mechanism::TaskStorage,
        };
        let probe = || Scheduler::load(SchedulerOptions { mechanism, ..SchedulerOptions::default() }).map(Box::new);
        Ok(Some(match self {
            Self::Nothing => Attached::Nothing,
            Self::Empty => Attached::Empty(Baseline::load()?),
            Self::ClassicNoVm | Self::ClassicVm | Self::Count if Tracefs::find().is_err() => return Ok(None),
            Self::NoVm | Self::ClassicNoVm => Attached::Scheduler(probe()?),
            Self::Vm | Self::VmAndHost | Self::ClassicVm => {
                let mut scheduler = probe()?;
                scheduler.track(VmId(Uuid::from_u128(1)), &[workload.pid()])?;
                if self == Self::VmAndHost {
                    // The other process's command gets its column.
                    sleep(WARM_UP);
                    scheduler.drain();
                }
                Attached::Scheduler(scheduler)
            }
            // One report, long after the measurement.
            Self::Runqlat => return Peer::start(RUNQLAT, &["600", "1"], 3),
            Self::RunqlatPerProcess => return Peer::start(RUNQLAT, &["-P", "600", "1"], 3),
            Self::Count => return Peer::start(BPFTRACE, &["-e", COUNT], 1),
        }))
    }
}

/// One candidate's medians.
#[derive(Clone, Debug, Serialize)]
struct Row {
    candidate: &'static str,
    switch_ns: Option<f64>,
    wakeup_ns: Option<f64>,
    attached_cpu_us_per_op: f64,
    slowdown_cpu_us_per_op: f64,
}

/// The medians of all, and how they compare: on a switch and on a wake-up.
#[derive(Serialize)]
pub(super) struct Summary {
    rows: Vec<Row>,
    no_vm_to_empty: [Option<f64>; 2],
    vm_to_runqlat: [Option<f64>; 2],
    vm_to_runqlat_per_process: [Option<f64>; 2],
    vm_to_bpftrace_count: [Option<f64>; 2],
    /// Of what a round trip takes longer.
    slowdown_vm_to_runqlat: Option<f64>,
}

/// What the rounds yielded for one candidate.
#[derive(Clone, Debug, Default)]
struct Samples {
    switch_ns: Vec<f64>,
    wakeup_ns: Vec<f64>,
    attached_us: Vec<f64>,
    slowdown_us: Vec<f64>,
}

pub(super) fn measure(rounds: usize) -> Result<Summary> {
    let mut together = Workload::start(&["--ping-pong".as_ref()])?;
    let mut samples = vec![Samples::default(); Candidate::ALL.len()];
    for round in 1..=rounds {
        for (candidate, samples) in Candidate::ALL.into_iter().zip(&mut samples) {
            let in_round = || format!("{} in round {round}", candidate.title());
            if candidate != Candidate::VmAndHost {
                take(candidate, &mut together, samples).with_context(in_round)?;
                continue;
            }
            // One workload at a time has the CPU.
            together.set_running(false)?;
            Workload::start(&["--ping-pong-apart".as_ref()])
                .and_then(|mut apart| take(candidate, &mut apart, samples))
                .with_context(in_round)?;
            together.set_running(true)?;
        }
    }
    Ok(summarise(&samples))
}

fn take(candidate: Candidate, workload: &mut Workload, samples: &mut Samples) -> Result<()> {
    let Some(attached) = candidate.attach(workload)? else { return Ok(()) };
    let measured = super::measure(attached, workload)?;
    let ns_per_run = |event: &str| {
        let (runs, run_ns) = measured.spent(|program| program.ends_with(event));
        (runs > 0).then(|| run_ns as f64 / runs as f64)
    };
    samples.switch_ns.extend(ns_per_run("switch"));
    samples.wakeup_ns.extend(ns_per_run("wakeup"));
    samples.attached_us.push(measured.attached_us);
    samples.slowdown_us.push(measured.slowdown_us);
    Ok(())
}

fn summarise(samples: &[Samples]) -> Summary {
    let rows: Vec<Row> = Candidate::ALL
        .iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.attached_us.is_empty())
        .map(|(candidate, samples)| Row {
            candidate: candidate.title(),
            switch_ns: median(&samples.switch_ns),
            wakeup_ns: median(&samples.wakeup_ns),
            attached_cpu_us_per_op: median(&samples.attached_us).unwrap_or(f64::NAN),
            slowdown_cpu_us_per_op: median(&samples.slowdown_us).unwrap_or(f64::NAN),
        })
        .collect();
    let row = |candidate: Candidate| rows.iter().find(|row| row.candidate == candidate.title());
    let cost = |candidate: Candidate| row(candidate).map_or([None; 2], |row| [row.switch_ns, row.wakeup_ns]);
    let ratio = |ours: Candidate, theirs: Candidate| {
        let (ours, theirs) = (cost(ours), cost(theirs));
        [0, 1].map(|event| Some(ours[event]? / theirs[event]?))
    };
    let slowdowns = row(Candidate::Vm).zip(row(Candidate::Runqlat));
    let slowdown_vm_to_runqlat =
        slowdowns.map(|(ours, theirs)| ours.slowdown_cpu_us_per_op / theirs.slowdown_cpu_us_per_op);
    Summary {
        slowdown_vm_to_runqlat,
        no_vm_to_empty: ratio(Candidate::NoVm, Candidate::Empty),
        vm_to_runqlat: ratio(Candidate::Vm, Candidate::Runqlat),
        vm_to_runqlat_per_process: ratio(Candidate::Vm, Candidate::RunqlatPerProcess),
        vm_to_bpftrace_count: ratio(Candidate::Vm, Candidate::Count),
        rows,
    }
}

impl Summary {
    pub(super) fn table(&self) -> String {
        let line = |cells: [&str; 5]| {
            let [name, switch, wakeup, attached, slowdown] = cells;
            format!("{name:<26} {switch:>10} {wakeup:>10} {attached:>12} {slowdown:>12}\n")
        };
        let mut text = line(["", "switch ns", "wakeup ns", "CPU us/op", "slowdown us"]);
        for row in &self.rows {
            let attached = number(Some(row.attached_cpu_us_per_op), 3);
            let slowdown = number(Some(row.slowdown_cpu_us_per_op), 3);
            text += &line([row.candidate, &number(row.switch_ns, 0), &number(row.wakeup_ns, 0), &attached, &slowdown]);
        }
        let ratios = [
            ("no VM / empty", self.no_vm_to_empty, Some(NO_VM_RATIO_MAX)),
            ("VM / runqlat", self.vm_to_runqlat, Some(VM_RATIO_MAX)),
            ("VM / runqlat -P", self.vm_to_runqlat_per_process, Some(VM_RATIO_MAX)),
            ("VM / bpftrace's count", self.vm_to_bpftrace_count, None),
        ];
        for (name, ratio, aim) in ratios {
            let on_switches = aim.map(|aim| verdict(ratio[0], aim)).unwrap_or_default();
            text += &line([name, &number(ratio[0], 2), &number(ratio[1], 2), &on_switches, ""]);
        }
        let slowdown = verdict(self.slowdown_vm_to_runqlat, SLOWDOWN_RATIO_MAX);
        text += &line(["slowdown, VM / runqlat", "", "", &slowdown, &number(self.slowdown_vm_to_runqlat, 2)]);
        text
    }
}

/// An aim for a ratio, in words.
fn verdict(ratio: Option<f64>, aim: f64) -> String {
    match ratio {
        None => "not measured".to_owned(),
        Some(ratio) if ratio <= aim => format!("aim {aim} met"),
        Some(_) => format!("aim {aim} missed"),
    }
}
