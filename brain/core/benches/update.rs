//! What a report costs for each VM in it, and what the latest fit costs: after four days, at the default policy.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    AgentEpoch, Allocation, CpuBounds, CpuSource, CpuWindow, HostFacts, HostId, HostWindow, KeptCopies, Labels, Losses,
    MeanMax, Means, MemoryBounds, Report, Sequence, VmId, VmState, VmTerms, VmWindow,
};
use gnomon_core::{Core, FitJob, Input, Mode, Output, Policy};
use uuid::Uuid;

const VMS: u128 = 100;
const WINDOW: Duration = Duration::from_secs(10);

fn report(number: u64) -> Report {
    let start = Timestamp::from_unix_ms(1_700_000_000_000 + number * 10_000);
    // A day of minutes with a surge, and something that looks like noise.
    let day = (number / 6) % 1440;
    let window = |vm: u128| {
        let noise = ((number * 7919 + vm as u64 * 104_729) % 97) as f64 / 2000.0;
        let demand = if day < 300 { 0.8 } else { 0.1 } + noise;
        let same = MeanMax { mean: demand, max: demand };
        VmWindow {
            vm: VmId(Uuid::from_u128(vm)),
            name: format!("vm{vm}"),
            state: VmState::Running,
            cpu: Some(CpuWindow {
                covered: 1.0,
                demand_low: same,
                demand_high: same,
                usage: same,
                ..CpuWindow::default()
            }),
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            allocation: Allocation { quota_cores: Some(1.0), vcpus: 1, vcpus_max: 1, memory_bytes: 1 << 30 },
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: None,
            culprits: None,
            exits: None,
        }
    };
    Report {
        host: HostId::new("a").unwrap_or_else(|error| panic!("{error}")),
        epoch: AgentEpoch(1),
        sequence: Sequence(number + 1),
        start,
        window_ms: 10_000,
        host_window: HostWindow::default(),
        vms: (0..VMS).map(window).collect(),
        inventory_complete: true,
        losses: Losses::default(),
    }
}

/// A core that has seen `reports` reports, with its forecasts made, and the last fit job it ordered.
fn warm(reports: u64) -> (Core, Option<FitJob>) {
    let mut core = Core::new(Policy { mode: Mode::Auto, ..Policy::default() }, 1, 1);
    let facts = HostFacts {
        capacity_cores: 64.0,
        memory_bytes: 1 << 38,
        kernel: String::new(),
        hypervisor: String::new(),
        cpu_bounds: CpuBounds { floor_cores: 0.05, ceiling_cores: 64.0 },
        memory_bounds: MemoryBounds::default(),
        means: vec![Means::CpuQuota],
        migration: None,
        zone: None,
        numa: Vec::new(),
        labels: Labels::default(),
        shadows: None,
        copies: KeptCopies::default(),
        dry_run: false,
        cpu_source: CpuSource::TaskStorage,
    };
    let report_of = report(0);
    core.handle(report_of.start, Input::HostUp { host: report_of.host, facts });
    let mut latest = None;
    for number in 0..reports {
        let report = report(number);
        let now = report.start + WINDOW;
        core.handle(now, Input::Report(Box::new(report)));
        while let Some(output) = core.poll_output() {
            if let Output::Fit(job) = output {
                // Late fits only: early ones would make this slow, and are about the same.
                if number + 9000 > reports {
                    core.handle(now, Input::FitDone(Box::new((*job).clone().run())));
                }
                latest = Some(*job);
            }
        }
    }
    (core, latest)
}

fn update(criterion: &mut Criterion) {
    // Four days and a bit.
    let reports = 4 * 8640 + 500;
    let (mut core, job) = warm(reports);
    let mut number = reports;
    let mut group = criterion.benchmark_group("core");
    group.throughput(Throughput::Elements(VMS as u64));
    group.bench_function("report of 100 VMs", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                report(number)
            },
            |report| {
                let now = report.start + WINDOW;
                core.handle(now, Input::Report(Box::new(report)));
                while let Some(output) = core.poll_output() {
                    black_box(&output);
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    if let Some(job) = job {
        criterion.bench_function("latest fit after four days", |bencher| {
            bencher.iter_batched(|| job.clone(), FitJob::run, BatchSize::LargeInput);
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = update
}
criterion_main!(benches);
