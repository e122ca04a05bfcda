//! A core on the bench: reports in, outputs out.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    AgentEpoch, Allocation, Command, CommandId, CpuBounds, CpuSource, CpuWindow, HostFacts, HostId, HostWindow,
    KeptCopies, Labels, Losses, MeanMax, Means, MemoryBounds, MemoryDemand, MemoryWindow, MigrationFacts, Origin,
    Outcome, OutcomeResult, Report, Sequence, Setting, VmId, VmState, VmTerms, VmWindow,
};
use uuid::Uuid;

use crate::Core;
use crate::io::{Input, OperatorRequest, Output, Record};
use crate::policy::{
    AnomalyPolicy, ApprovePolicy, CapacityPolicy, CpuPolicy, ForecastPolicy, MemoryPolicy, MigratePolicy, Mode, Policy,
    ResizePolicy, ShadowPolicy, WindowsPolicy,
};

/// Windows of ten seconds, steps of ten seconds.
pub(super) fn policy(mode: Mode) -> Policy {
    Policy {
        mode,
        forecast: ForecastPolicy {
            resolution_ms: 10_000,
            horizon_steps: 20,
            season_steps_min: 20,
            season_steps_max: 100,
            ..ForecastPolicy::default()
        },
        cpu: CpuPolicy { lead_ms: 60_000, shrink_dwell_ms: 60_000, shrink_interval_ms: 60_000, ..CpuPolicy::default() },
        memory: MemoryPolicy {
            manage: true,
            shrink_dwell_ms: 60_000,
            shrink_interval_ms: 10_000,
            ..MemoryPolicy::default()
        },
        resize: ResizePolicy::default(),
        migrate: MigratePolicy { lead_ms: 60_000, ..MigratePolicy::default() },
        capacity: CapacityPolicy::default(),
        approve: ApprovePolicy::default(),
        windows: WindowsPolicy::default(),
        anomaly: AnomalyPolicy::default(),
        shadow: ShadowPolicy::default(),
    }
}

pub(super) fn at(second: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + second * 1000)
}

pub(super) fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

pub(super) fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

pub(super) fn facts() -> HostFacts {
    HostFacts {
        capacity_cores: 4.0,
        memory_bytes: 1 << 33,
        kernel: String::new(),
        hypervisor: String::new(),
        cpu_bounds: CpuBounds { floor_cores: 0.05, ceiling_cores: 4.0 },
        memory_bounds: MemoryBounds::default(),
        means: vec![Means::CpuQuota, Means::Memory],
        migration: Some(MigrationFacts { uri: "test:///default".to_owned(), copy_bytes_max: 0 }),
        zone: None,
        numa: Vec::new(),
        labels: Labels::default(),
        shadows: None,
        copies: KeptCopies::default(),
        dry_run: false,
        cpu_source: CpuSource::TaskStorage,
    }
}

pub(super) fn applied(before: f64, after: f64) -> OutcomeResult {
    let quota = |cores| vec![Setting::CpuQuota { cores: Some(cores) }];
    OutcomeResult::Applied { before: quota(before), after: quota(after), took_us: 1000 }
}

/// VMs as (number, demand at least, demand at most), each with one vCPU and the same quota.
pub(super) fn report_of(host_name: &str, second: u64, vms: &[(u128, f64, f64)], quota: Option<f64>) -> Report {
    let same = |value| MeanMax { mean: value, max: value };
    let window = |&(number, low, high): &(u128, f64, f64)| VmWindow {
        vm: vm(number),
        name: format!("vm{number}"),
        state: VmState::Running,
        cpu: Some(CpuWindow {
            covered: 1.0,
            demand_low: same(low),
            demand_high: same(high),
            usage: same(low),
            throttled: same(high - low),
            ..CpuWindow::default()
        }),
        memory: None,
        interfaces: Vec::new(),
        disk: None,
        allocation: Allocation { quota_cores: quota, vcpus: 1, vcpus_max: 1, memory_bytes: 1 << 30 },
        baselines: Vec::new(),
        stood_down: false,
        culprits: None,
        exits: None,
        terms: VmTerms::default(),
        storage: None,
        migration: None,
        shadow: None,
    };
    Report {
        host: host(host_name),
        epoch: AgentEpoch(1),
        sequence: Sequence(1 + second),
        start: at(second),
        window_ms: 10_000,
        host_window: HostWindow::default(),
        vms: vms.iter().map(window).collect(),
        inventory_complete: true,
        losses: Losses::default(),
    }
}

/// The same of VM 1 alone, with a balloon; sizes in MiB of the 1024 that it is defined with.
pub(super) fn report_with_memory(second: u64, quota: f64, wants: f64, balloon_mib: u64, demand_mib: u64) -> Report {
    let mut report = report_of("a", second, &[(1, wants.min(quota), wants)], Some(quota));
    report.vms[0].memory = Some(MemoryWindow {
        balloon_bytes: Some(balloon_mib << 20),
        demand: Some(MemoryDemand::known(demand_mib << 20)),
        ..MemoryWindow::default()
    });
    report
}

pub(super) struct Bench {
    pub(super) core: Core,
}

impl Bench {
    pub(super) fn new(policy: Policy) -> Self {
        Self::with_term(policy, 1)
    }

    pub(super) fn with_term(policy: Policy, term: u64) -> Self {
        Self::of(Core::new(policy, 1, term))
    }

    /// With two hosts, `a` and `b`, up.
    pub(super) fn of(mut core: Core) -> Self {
        for name in ["a", "b"] {
            core.handle(at(0), Input::HostUp { host: host(name), facts: facts() });
        }
        let mut bench = Self { core };
        bench.take();
        bench
    }

    /// Host `a`'s window that begins at `second` arrives when it ends.
    pub(super) fn report(&mut self, second: u64, vms: &[(u128, f64, f64)], quota: Option<f64>) {
        self.report_on("a", second, vms, quota);
    }

    pub(super) fn report_on(&mut self, host: &str, second: u64, vms: &[(u128, f64, f64)], quota: Option<f64>) {
        self.report_at(at(second) + Duration::from_secs(10), host, second, vms, quota);
    }

    pub(super) fn report_at(
        &mut self,
        now: Timestamp,
        host: &str,
        second: u64,
        vms: &[(u128, f64, f64)],
        quota: Option<f64>,
    ) {
        self.core.handle(now, Input::Report(Box::new(report_of(host, second, vms, quota))));
    }

    pub(super) fn incomplete_report(&mut self, second: u64) {
        let report = Report { inventory_complete: false, ..report_of("a", second, &[], None) };
        self.core.handle(at(second + 10), Input::Report(Box::new(report)));
    }

    pub(super) fn report_state(&mut self, second: u64, number: u128, state: VmState) {
        self.report_state_on("a", second, number, state);
    }

    pub(super) fn report_state_on(&mut self, host: &str, second: u64, number: u128, state: VmState) {
        let mut report = report_of(host, second, &[(number, 0.0, 0.0)], Some(1.0));
        report.vms[0].state = state;
        self.core.handle(at(second + 10), Input::Report(Box::new(report)));
    }

    pub(super) fn outcome(&mut self, second: u64, id: CommandId, result: OutcomeResult) {
        self.outcome_by("a", second, id, result);
    }

    pub(super) fn outcome_by(&mut self, name: &str, second: u64, id: CommandId, result: OutcomeResult) {
        let outcome = Outcome { id, vm: vm(1), at: at(second), origin: Origin::Command, result };
        self.core.handle(at(second), Input::Outcome { host: host(name), outcome });
    }

    /// Host `a`'s answer about any VM.
    pub(super) fn outcome_of(&mut self, vm: VmId, second: u64, id: CommandId, result: OutcomeResult) {
        let outcome = Outcome { id, vm, at: at(second), origin: Origin::Command, result };
        self.core.handle(at(second), Input::Outcome { host: host("a"), outcome });
    }

    pub(super) fn operate(&mut self, second: u64, request: OperatorRequest) {
        self.core.handle(at(second), Input::Operator { actor: "alice".to_owned(), request });
    }

    /// Everything that came out since the last call.
    pub(super) fn take(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    /// The verbs and details of what went into the audit log.
    pub(super) fn audited(&mut self) -> Vec<(String, String)> {
        let audited = self.take().into_iter().filter_map(|output| match output {
            Output::Persist(Record::Audit(audit)) => Some((audit.verb, audit.detail)),
            _ => None,
        });
        audited.collect()
    }

    /// The commands of a planner that keeps its rules by itself: no plan of it was refused by the linter.
    pub(super) fn commands_by_the_rules(&mut self) -> Vec<Command> {
        let outputs = self.take();
        let is_refused =
            |output: &Output| matches!(output, Output::Notice(notice) if notice.kind == "plan_refused_by_linter");
        assert!(!outputs.iter().any(is_refused), "{outputs:?}");
        let commands = outputs.into_iter().filter_map(|output| match output {
            Output::Command { command, .. } => Some(command),
            _ => None,
        });
        commands.collect()
    }

    pub(super) fn commands(&mut self) -> Vec<Command> {
        let commands = self.take().into_iter().filter_map(|output| match output {
            Output::Command { command, .. } => Some(command),
            _ => None,
        });
        commands.collect()
    }

    pub(super) fn notices(&mut self) -> Vec<&'static str> {
        let notices = self.take().into_iter().filter_map(|output| match output {
            Output::Notice(notice) => Some(notice.kind),
            _ => None,
        });
        notices.collect()
    }
}
