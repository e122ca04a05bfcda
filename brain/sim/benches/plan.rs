//! What planning for a whole fleet takes: one report of every host, with its VMs' sizes and its own fullness judged, and a place found for
//! a VM of each host that is too full. The time is that of `Core::handle` alone, as the brain's loop calls it.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, Allocation, CpuBounds, CpuSource, CpuWindow, HostFacts, HostId, HostWindow, KeptCopies, Labels,
    Losses, MeanMax, Means, MemoryBounds, MigrationFacts, Origin, Outcome, OutcomeResult, Report, Sequence, VmId,
    VmState, VmTerms, VmWindow, Whereabouts,
};
use gnomon_core::policy::{MigratePolicy, Mode};
use gnomon_core::{Core, Input, Output, Policy};
use serde_json::json;
use uuid::Uuid;

/// Steps of a minute, one window each.
const WINDOW: Duration = Duration::from_mins(1);

/// Rounds: in the later ones every VM has a forecast.
const ROUNDS: u64 = 30;

/// A round is to take less.
const AIM: Duration = Duration::from_secs(10);

/// One host of so many is too full.
const FULL_OF: u64 = 100;

const START_MS: u64 = 1_700_000_000_000;

fn host(number: u64) -> HostId {
    HostId::new(format!("host-{number}")).unwrap_or_else(|error| panic!("{error}"))
}

fn facts(number: u64) -> HostFacts {
    HostFacts {
        capacity_cores: 32.0,
        memory_bytes: 256 << 30,
        kernel: String::new(),
        hypervisor: String::new(),
        cpu_bounds: CpuBounds { floor_cores: 0.05, ceiling_cores: 32.0 },
        memory_bounds: MemoryBounds::default(),
        means: vec![Means::CpuQuota],
        migration: Some(MigrationFacts { uri: format!("qemu+tls://host-{number}/system"), copy_bytes_max: 0 }),
        zone: None,
        numa: Vec::new(),
        labels: Labels::default(),
        shadows: None,
        copies: KeptCopies::default(),
        dry_run: false,
        cpu_source: CpuSource::TaskStorage,
    }
}

fn report(number: u64, vms: u64, round: u64) -> Report {
    let window = |vm: u64| {
        let noise = ((round * 7919 + (number * vms + vm) * 104_729) % 97) as f64 / 1000.0;
        let demand = if number.is_multiple_of(FULL_OF) { 0.62 } else { 0.2 + (number % 7) as f64 * 0.04 } + noise;
        let same = MeanMax { mean: demand, max: demand };
        VmWindow {
            vm: VmId(Uuid::from_u128(u128::from(number * vms + vm + 1))),
            name: format!("vm-{number}-{vm}"),
            state: VmState::Running,
            cpu: Some(CpuWindow {
                covered: 1.0,
                demand_low: same,
                demand_high: same,
                usage: same,
                ..CpuWindow::default()
            }),
            culprits: None,
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            exits: None,
            allocation: Allocation { quota_cores: Some(1.0), vcpus: 1, vcpus_max: 1, memory_bytes: 4 << 30 },
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: None,
        }
    };
    Report {
        host: host(number),
        epoch: AgentEpoch(1),
        sequence: Sequence(round + 1),
        start: Timestamp::from_unix_ms(START_MS) + WINDOW * round as u32,
        window_ms: WINDOW.as_millis() as u32,
        host_window: HostWindow::default(),
        vms: (0..vms).map(window).collect(),
        inventory_complete: true,
        losses: Losses::default(),
    }
}

/// Takes what comes out, and answers commands at once: resizes are carried out, moves fail. Counts both.
fn drain(core: &mut Core, now: Timestamp) -> (u64, u64) {
    let (mut resizes, mut moves) = (0, 0);
    while let Some(output) = core.poll_output() {
        match output {
            Output::Fit(job) => core.handle(now, Input::FitDone(Box::new(job.run()))),
            Output::Command { host, command } => {
                let result = match command.action {
                    Action::Set(target) => {
                        resizes += 1;
                        OutcomeResult::Applied { before: Vec::new(), after: vec![target], took_us: 1 }
                    }
                    _ => {
                        moves += 1;
                        OutcomeResult::NotMoved { error: String::new(), whereabouts: Whereabouts::Here }
                    }
                };
                let outcome = Outcome { id: command.id, vm: command.vm, at: now, origin: Origin::Command, result };
                core.handle(now, Input::Outcome { host, outcome });
            }
            Output::Persist(_) | Output::Notice(_) | Output::Capacity(_) => {}
        }
    }
    (resizes, moves)
}

/// Resident memory of this process, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Plans for a whole fleet, round after round.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many hosts
    #[arg(long, default_value_t = 10_000)]
    hosts: u64,
    /// How many VMs on each
    #[arg(long, default_value_t = 50)]
    vms: u64,
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo adds to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let Arguments { hosts, vms, json, bench: _ } = Arguments::parse();
    let migrate = MigratePolicy { mode: Mode::Auto, at_once_max: 1000, per_hour_max: 1000, ..MigratePolicy::default() };
    let mut core = Core::new(Policy { mode: Mode::Auto, migrate, ..Policy::default() }, 1, 1);
    for number in 0..hosts {
        let at = Timestamp::from_unix_ms(START_MS);
        core.handle(at, Input::HostUp { host: host(number), facts: facts(number) });
        drain(&mut core, at);
    }
    let mut rounds = Vec::new();
    let mut all = (0, 0);
    for round in 0..=ROUNDS {
        let (mut took, mut longest, mut sent) = (Duration::ZERO, Duration::ZERO, (0, 0));
        for number in 0..hosts {
            let report = report(number, vms, round);
            let now = report.start + WINDOW;
            let begun = Instant::now();
            core.handle(now, Input::Report(Box::new(report)));
            let one = begun.elapsed();
            took += one;
            longest = longest.max(one);
            let (resizes, moves) = drain(&mut core, now);
            sent = (sent.0 + resizes, sent.1 + moves);
        }
        println!(
            "round {round}: {hosts} hosts x {vms} VMs planned in {:.2} s, one report in {:.0} us, the longest in {:.1} ms; {} resizes, {} moves; {} MiB resident",
            took.as_secs_f64(),
            took.as_secs_f64() * 1e6 / hosts as f64,
            longest.as_secs_f64() * 1e3,
            sent.0,
            sent.1,
            resident_mib()
        );
        // In the first one every VM is new.
        rounds.extend((round > 0).then_some(took));
        all = (all.0 + sent.0, all.1 + sent.1);
    }
    rounds.sort_unstable();
    let [median_s, longest_s] = [rounds.len() / 2, rounds.len() - 1].map(|place| rounds[place].as_secs_f64());
    let ((resizes, moves), resident_mib) = (all, resident_mib());
    println!(
        "{hosts} hosts x {vms} VMs: {median_s:.2} s a round (median), {longest_s:.2} s the longest but the first; {resizes} resizes and {moves} moves in all; {resident_mib} MiB resident"
    );
    let is_met = longest_s < AIM.as_secs_f64();
    println!("aim of less than {} s {}", AIM.as_secs(), if is_met { "met" } else { "missed" });
    if let Some(path) = json {
        let figures = json!({
            "hosts": hosts, "vms_per_host": vms, "median_s": median_s, "longest_s": longest_s, "resizes": resizes,
            "moves": moves, "resident_mib": resident_mib,
        });
        let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::to_writer_pretty(file, &figures).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
