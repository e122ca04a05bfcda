//! What holds whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, Command, CommandId, Fence, GuestMemory, HostId, LocalCause, MeanMax, MemoryDemand,
    MemoryWindow, Moved, Origin, Outcome, OutcomeResult, RefusedCommand, Sequence, Setting, VmId, VmState,
};
use proptest::prelude::*;

use super::bench::{facts, host, policy, report_of, vm};
use crate::io::{Input, OperatorRequest, Output, Record, Scope};
use crate::plan::Reason;
use crate::plan::size::QUOTA_STEP_CORES;
use crate::policy::Mode;
use crate::{Core, FitJob};

/// Something that happens, and how long after the one before (it may be earlier).
#[derive(Clone, Debug)]
enum Happening {
    Report {
        on: usize,
        vms: Vec<(u128, f64, f64, VmState)>,
        memory: Option<MemoryWindow>,
        quota: Option<f64>,
        late_s: i64,
        complete: bool,
        stood_down: bool,
    },
    LocalAct {
        on: usize,
        vm: u128,
        cause: LocalCause,
        result: OutcomeResult,
    },
    Answer {
        applied: bool,
    },
    Up(usize),
    Lost(usize),
    Operator(OperatorRequest),
    Mode(Mode),
    /// An operator decides about the proposal that was made last.
    Decide {
        approves: bool,
    },
    Fits,
    TimeOut,
}

const HOSTS: [&str; 2] = ["a", "b"];

fn happenings() -> impl Strategy<Value = Vec<(i64, Happening)>> {
    let demand = prop_oneof![
        6 => 0.0..1.2f64,
        1 => prop_oneof![Just(f64::NAN), Just(-1.0), Just(f64::INFINITY), Just(1e300), Just(1e-300)],
    ];
    let state = prop_oneof![6 => Just(VmState::Running), 1 => Just(VmState::Paused), 1 => Just(VmState::ShutOff)];
    let vms = proptest::collection::vec((1u128..4, demand.clone(), demand, state), 0..4);
    let quota = prop_oneof![Just(None), (0.01..1.5f64).prop_map(Some), Just(Some(f64::NAN))];
    let late = prop_oneof![8 => 0i64..3, 1 => -20_000i64..20_000];
    let stood_down = prop_oneof![9 => Just(false), 1 => Just(true)];
    let report = (0..2usize, vms, memory(), quota, late, any::<bool>(), stood_down).prop_map(
        |(on, vms, memory, quota, late_s, complete, stood_down)| Happening::Report {
            on,
            vms,
            memory,
            quota,
            late_s,
            complete,
            stood_down,
        },
    );
    let cause = prop_oneof![Just(LocalCause::Reflex), Just(LocalCause::Reapply), Just(LocalCause::StandDown)];
    let result = prop_oneof![
        setting().prop_map(|after| OutcomeResult::Applied { before: vec![], after: vec![after], took_us: 1 }),
        Just(OutcomeResult::DryRun),
        Just(OutcomeResult::Refused(RefusedCommand::UnknownVm)),
    ];
    let local_act = (0..2usize, 1u128..4, cause, result).prop_map(|(on, vm, cause, result)| Happening::LocalAct {
        on,
        vm,
        cause,
        result,
    });
    let scope = prop_oneof![
        Just(Scope::Fleet),
        (0..2usize).prop_map(|on| Scope::Host(host(HOSTS[on]))),
        (1u128..4).prop_map(|number| Scope::Vm(vm(number))),
    ];
    let request = (scope, 0..6, 1u128..4, setting()).prop_map(|(scope, kind, number, setting)| match kind {
        0 => OperatorRequest::Pause { scope },
        1 => OperatorRequest::Release { scope },
        2 | 3 => OperatorRequest::Set { vm: vm(number), setting },
        _ => OperatorRequest::Resume { scope },
    });
    let mode = prop_oneof![3 => Just(Mode::Auto), 2 => Just(Mode::Approve), 1 => Just(Mode::Recommend), 1 => Just(Mode::Observe)];
    let happening = prop_oneof![
        12 => report,
        4 => any::<bool>().prop_map(|applied| Happening::Answer { applied }),
        1 => (0..2usize).prop_map(Happening::Up),
        1 => (0..2usize).prop_map(Happening::Lost),
        2 => request.prop_map(Happening::Operator),
        1 => local_act,
        1 => mode.prop_map(Happening::Mode),
        2 => any::<bool>().prop_map(|approves| Happening::Decide { approves }),
        2 => Just(Happening::Fits),
        2 => Just(Happening::TimeOut),
    ];
    let pause = prop_oneof![16 => 5i64..15, 1 => -5000i64..5000];
    proptest::collection::vec((pause, happening), 1..120)
}

fn memory() -> impl Strategy<Value = Option<MemoryWindow>> {
    let bytes = || prop_oneof![6 => (0u64..1200).prop_map(|mib| mib << 20), 1 => Just(0), 1 => Just(u64::MAX)];
    let bytes = || proptest::option::weighted(0.9, bytes());
    let rate = prop_oneof![4 => Just(0.0), 1 => Just(1e9), 1 => Just(f64::NAN)];
    let window = (bytes(), bytes(), rate).prop_map(|(balloon_bytes, demand_bytes, rate)| MemoryWindow {
        balloon_bytes,
        demand: demand_bytes.map(MemoryDemand::known),
        guest: Some(GuestMemory { swap_in_bytes_per_s: rate, ..GuestMemory::default() }),
        ..MemoryWindow::default()
    });
    proptest::option::weighted(0.8, window)
}

fn setting() -> impl Strategy<Value = Setting> {
    prop_oneof![
        proptest::option::of(-1.0..2.0f64).prop_map(|cores| Setting::CpuQuota { cores }),
        (0u64..2000).prop_map(|mib| Setting::Memory { bytes: mib << 20 }),
        (0u32..3).prop_map(|count| Setting::Vcpus { count }),
        (0u32..300).prop_map(|weight| Setting::CpuWeight { weight }),
    ]
}

/// What a driver would know, and checks.
#[derive(Default)]
struct Driver {
    written: BTreeSet<String>,
    in_flight: BTreeMap<VmId, (HostId, Command)>,
    fences: BTreeMap<VmId, Fence>,
    ids: BTreeSet<String>,
    fits: Vec<FitJob>,
    /// The mode is `approve`.
    asks: bool,
    transcript: String,
}

impl Driver {
    fn drain(&mut self, core: &mut Core) {
        while let Some(output) = core.poll_output() {
            self.transcript += &format!("{output:?}\n");
            match output {
                Output::Persist(Record::Command(record)) => {
                    self.written.insert(record.command.id.to_string());
                    if record.outcome.is_some() || record.unanswered {
                        self.in_flight.remove(&record.command.vm);
                    }
                }
                Output::Command { host, command } => self.sent(host, command),
                Output::Fit(job) => self.fits.push(*job),
                Output::Persist(_) | Output::Notice(_) | Output::Capacity(_) => {}
            }
        }
    }

    fn sent(&mut self, host: HostId, command: Command) {
        let id = command.id.to_string();
        assert!(self.written.contains(&id), "{id} was sent before it was written");
        assert!(self.ids.insert(id), "an id was used twice");
        let before = self.fences.insert(command.vm, command.fence);
        assert!(before.is_none_or(|before| before < command.fence), "a fence did not rise");
        // What an operator asks for is judged by the agent.
        let planned = command.reason != Reason::Operator.to_string();
        let is_approved = command.reason.ends_with("; approved by alice");
        assert!(!planned || is_approved == self.asks, "{}", command.reason);
        if let (true, Action::Set(Setting::CpuQuota { cores: Some(cores) })) = (planned, command.action.clone()) {
            assert!((0.1..=1.0).contains(&cores), "{cores} cores are out of bounds");
            let steps = cores / QUOTA_STEP_CORES;
            assert!((steps - steps.round()).abs() < 1e-6, "{cores} is no multiple");
        }
        if let (true, Action::Set(Setting::Memory { bytes })) = (planned, command.action.clone()) {
            assert!(
                (256..=1024).contains(&(bytes >> 20)) && bytes.is_multiple_of(1 << 20),
                "{bytes} bytes are out of bounds"
            );
        }
        assert!(self.in_flight.insert(command.vm, (host, command)).is_none(), "two commands in flight");
    }
}

fn play(happenings: &[(i64, Happening)]) -> String {
    let mut core = Core::new(policy(Mode::Auto), 7, 1);
    let mut driver = Driver::default();
    let mut now = 1_700_000_000i64;
    for name in HOSTS {
        core.handle(at(now), Input::HostUp { host: host(name), facts: facts() });
    }
    for (index, (pause, happening)) in happenings.iter().enumerate() {
        now += pause;
        let now_at = at(now);
        match happening.clone() {
            Happening::Report { on, vms, memory, quota, late_s, complete, stood_down } => {
                let demands: Vec<_> = vms.iter().map(|&(number, low, high, _)| (number, low, high)).collect();
                let mut report = report_of(HOSTS[on], 0, &demands, quota);
                for (window, (.., state)) in report.vms.iter_mut().zip(&vms) {
                    window.state = *state;
                    window.memory = memory;
                    window.stood_down = stood_down;
                    if let Some(cpu) = &mut window.cpu {
                        cpu.throttled = MeanMax::default();
                    }
                }
                report.start = at(now - 10 - late_s);
                report.sequence = Sequence(index as u64 + 1);
                report.inventory_complete = complete;
                core.handle(now_at, Input::Report(Box::new(report)));
            }
            Happening::Answer { applied } => {
                let Some((host, command)) = driver.in_flight.values().next().cloned() else { continue };
                let result = match (applied, command.action) {
                    (true, Action::Set(target)) => {
                        OutcomeResult::Applied { before: vec![], after: vec![target], took_us: 1 }
                    }
                    (true, Action::Release) => OutcomeResult::Applied {
                        before: vec![],
                        after: vec![Setting::CpuQuota { cores: None }],
                        took_us: 1,
                    },
                    (true, Action::Migrate(_)) => OutcomeResult::Moved(Moved { took_us: 1, ..Moved::default() }),
                    (true, Action::AbortMigration) => {
                        OutcomeResult::Applied { before: vec![], after: vec![], took_us: 1 }
                    }
                    (true, Action::DirtyRate { .. }) => OutcomeResult::DirtyRate { bytes_per_s: 1 << 20 },
                    (true, Action::Describe | Action::Image(_) | Action::Shadow(_)) => unreachable!("no shadows here"),
                    (false, _) => OutcomeResult::Refused(RefusedCommand::UnknownVm),
                };
                let outcome = Outcome { id: command.id, vm: command.vm, at: now_at, origin: Origin::Command, result };
                core.handle(now_at, Input::Outcome { host, outcome });
            }
            Happening::LocalAct { on, vm: number, cause, result } => {
                let id = CommandId::local(AgentEpoch(1), index as u32);
                let origin = Origin::Local { cause, reason: "so".to_owned() };
                let outcome = Outcome { id, vm: vm(number), at: now_at, origin, result };
                core.handle(now_at, Input::Outcome { host: host(HOSTS[on]), outcome });
            }
            Happening::Up(on) => core.handle(now_at, Input::HostUp { host: host(HOSTS[on]), facts: facts() }),
            Happening::Lost(on) => core.handle(now_at, Input::HostLost { host: host(HOSTS[on]) }),
            Happening::Operator(request) => {
                core.handle(now_at, Input::Operator { actor: "alice".to_owned(), request });
            }
            Happening::Mode(mode) => core.handle(now_at, Input::Policy(Box::new(policy(mode)))),
            Happening::Decide { approves } => {
                let Some(key) = core.proposals().first().map(|proposal| proposal.key) else { continue };
                let request = if approves {
                    OperatorRequest::ApproveProposal { key }
                } else {
                    OperatorRequest::DenyProposal { key }
                };
                core.handle(now_at, Input::Operator { actor: "alice".to_owned(), request });
            }
            Happening::Fits => {
                for job in std::mem::take(&mut driver.fits) {
                    core.handle(now_at, Input::FitDone(Box::new(job.run())));
                }
            }
            Happening::TimeOut => core.handle_timeout(now_at),
        }
        driver.asks = core.policy().mode == Mode::Approve;
        driver.drain(&mut core);
        for view in core.vms() {
            assert!(core.explain(view.vm).is_some());
            let forecast = core.forecast(view.vm);
            for q in forecast.iter().flat_map(|forecast| &forecast.steps) {
                assert!([0.0, q.p50, q.p90, q.p95, q.p99, 1.0].is_sorted(), "{q:?}");
            }
            assert_eq!(view.in_flight, driver.in_flight.get(&view.vm).map(|(_, command)| command.id));
        }
    }
    driver.transcript
}

fn at(second: i64) -> Timestamp {
    Timestamp::default() + Duration::from_secs(second.unsigned_abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_commands_are_bounded_fenced_written_and_one_at_a_time(happenings in happenings()) {
        // Twice: the same inputs give the same outputs, byte for byte.
        prop_assert_eq!(play(&happenings), play(&happenings));
    }
}
