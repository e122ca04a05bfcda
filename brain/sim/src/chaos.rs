//! Worlds drawn from a seed: crowded hosts, owners with wishes, failing links, dying agents and brains, operators who interfere.

use gnomon_common::wire::{HostId, Labels, VmId, VmTerms};
use gnomon_core::plan::guard::Guard;
use gnomon_core::policy::{
    AnomalyPolicy, ApprovePolicy, CapacityPolicy, CpuPolicy, ForecastPolicy, MemoryPolicy, MigratePolicy, ResizePolicy,
    ShadowPolicy, WindowsPolicy,
};
use gnomon_core::{Mode, OperatorRequest, Policy, Scope};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::check::Broken;
use crate::copies::Lapse;
use crate::scenario::{Event, HostSpec, Load, MemorySpec, MoveSpec, Scenario, Timed, VmSpec};
use crate::world::{World, vm_id};

/// How long a drawn world lasts.
const DURATION_S: u64 = 1200;

/// What became of a drawn world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The first rule that was broken.
    pub broken: Option<Broken>,
    /// Moves that came about.
    pub moves: usize,
    /// Commands that were sent.
    pub commands: usize,
    /// Plans that the linter refused.
    pub dropped: usize,
    /// Shadows that came up.
    pub shadows: usize,
}

/// Lives through the world of a seed and checks every command in it. The planner of its brain may lack a guard, the linter another.
pub fn check(seed: u64, planner_lacks: Option<Guard>, linter_lacks: Option<Guard>) -> Checked {
    live(World::checked(scenario(seed), [planner_lacks, linter_lacks], None))
}

/// The same, where the agents neglect a rule.
pub fn check_agents(seed: u64, lapse: Lapse) -> Checked {
    live(World::checked(scenario(seed), [None, None], Some(lapse)))
}

fn live(mut world: World) -> Checked {
    let (mut moves, mut commands, mut dropped, mut shadows) = (0, 0, 0, 0);
    for _ in 0..DURATION_S {
        world.advance();
        for line in world.take_log() {
            moves += usize::from(line.contains(": ") && line.contains(" moved to host "));
            commands += usize::from(line.contains("gnomon command "));
            shadows += usize::from(line.contains("booting -> pacing"));
            dropped += usize::from(line.contains("notice plan_refused_by_linter"));
        }
        if world.broken().is_some() {
            break;
        }
    }
    Checked { broken: world.broken().cloned(), moves, commands, dropped, shadows }
}

/// The world of a seed.
pub fn scenario(seed: u64) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut hosts: Vec<HostSpec> = (0..rng.random_range(3..7)).map(|number| host(&mut rng, number)).collect();
    let per_host = rng.random_range(2..6);
    let mut vms: Vec<VmSpec> = (0..hosts.len() * per_host).map(|number| vm(&mut rng, number, &hosts)).collect();
    let mut events: Vec<Timed> = (0..rng.random_range(2..9)).map(|_| event(&mut rng, &hosts, vms.len())).collect();
    let mut policy = policy(&mut rng);
    // Drawn apart: what came before it stays as it was.
    restrain(&mut ChaCha8Rng::seed_from_u64(!seed), &mut policy, &mut events);
    zone(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(16)), &mut policy, &mut hosts, &mut vms);
    label(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(24)), &mut hosts, &mut vms);
    narrow(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(48)), &mut policy, &hosts, &mut vms, &mut events);
    let ids: Vec<VmId> = (0..vms.len()).map(vm_id).collect();
    shadow(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(32)), &mut policy, &mut hosts, &mut events, &ids);
    let (link_ms, actuation_ms) = (rng.random_range(1..300), rng.random_range(10..2000));
    let mut moves = MoveSpec {
        mib_per_s: rng.random_range(20..200),
        failing_share: rng.random_range(0.0..0.3),
        ..MoveSpec::default()
    };
    let late_share =
        wreck(&mut ChaCha8Rng::seed_from_u64(seed.rotate_left(8)), &hosts, &mut moves, &mut policy, &mut events);
    Scenario {
        name: format!("chaos {seed}"),
        seed,
        duration_s: DURATION_S,
        policy,
        window_s: 10,
        link_ms,
        actuation_ms,
        fit_ms: 20,
        moves,
        late_share,
        contention: None,
        shuffles_shadows: false,
        hosts,
        vms,
        events,
    }
}

/// Some operators want to be asked, some trust good forecasts only, and some want quiet at times. The world begins at midnight in UTC, on a Thursday.
fn restrain(rng: &mut ChaCha8Rng, policy: &mut Policy, events: &mut Vec<Timed>) {
    if rng.random_bool(0.15) {
        policy.mode = Mode::Approve;
        let decisions = (0..24).map(|_| Timed {
            at_s: rng.random_range(60..DURATION_S - 100),
            event: Event::Decide { approves: rng.random_bool(0.8) },
        });
        events.extend(decisions.collect::<Vec<_>>());
    }
    if rng.random_bool(0.15) {
        policy.forecast.skill_min = Some(rng.random_range(0.0..0.6));
    }
    if rng.random_bool(0.15) {
        let (from, length) = (rng.random_range(1..14), rng.random_range(2..5));
        let window = |from: u32, to: u32| format!("Thu 00:{from:02}-00:{to:02}");
        match rng.random_range(0..3) {
            0 => policy.windows.freeze = vec![window(from, from + length), "Wed,Fri 00:00-24:00".to_owned()],
            1 => policy.windows.freeze = vec![format!("Wed 23:30-00:{from:02}")],
            _ => policy.windows.allow = vec![window(0, from), window(from + length, 59)],
        }
    }
}

/// In some worlds hosts die, moves take long or end in doubt, agents are away while they do, commands come twice, and memory is taken back within
/// minutes. Returns the share of commands that come twice.
fn wreck(
    rng: &mut ChaCha8Rng,
    hosts: &[HostSpec],
    moves: &mut MoveSpec,
    policy: &mut Policy,
    events: &mut Vec<Timed>,
) -> f64 {
    let name = |rng: &mut ChaCha8Rng| hosts[rng.random_range(0..hosts.len())].name.clone();
    let at_s = |rng: &mut ChaCha8Rng| rng.random_range(60..DURATION_S - 100);
    if rng.random_bool(0.3) {
        for _ in 0..rng.random_range(1..3) {
            let (host, for_s) = (name(rng), rng.random_range(10..300));
            let restarted_on = rng.random_bool(0.5).then(|| name(rng)).filter(|to| *to != host);
            events.push(Timed { at_s: at_s(rng), event: Event::HostDies { host, for_s, restarted_on } });
        }
    }
    if rng.random_bool(0.3) {
        moves.parked_share = rng.random_range(0.1..0.6);
    }
    if rng.random_bool(0.2) {
        moves.mib_per_s = rng.random_range(3..12);
        for _ in 0..rng.random_range(1..6) {
            let event = Event::AgentRestart { host: name(rng), for_s: rng.random_range(60..200) };
            events.push(Timed { at_s: at_s(rng), event });
        }
    }
    if rng.random_bool(0.5) {
        policy.memory.shrink_dwell_ms = rng.random_range(30..120) * 1000;
        policy.memory.shrink_interval_ms = rng.random_range(10..30) * 1000;
    }
    if rng.random_bool(0.3) { rng.random_range(0.05..0.3) } else { 0.0 }
}

/// Some fleets stand in zones, which VMs may leave or not, and some owners want VMs in different ones.
fn zone(rng: &mut ChaCha8Rng, policy: &mut Policy, hosts: &mut [HostSpec], vms: &mut [VmSpec]) {
    if !rng.random_bool(0.4) {
        return;
    }
    policy.migrate.across_zones = rng.random_bool(0.6);
    for host in hosts {
        host.zone = [None, Some("north"), Some("south")][rng.random_range(0..3)].map(str::to_owned);
    }
    for vm in vms {
        vm.terms.apart_zones = rng.random_bool(0.3).then(|| ["green", "grey"][rng.random_range(0..2)].to_owned());
    }
}

/// Some hosts have what some owners ask for, though not always where it would be needed.
fn label(rng: &mut ChaCha8Rng, hosts: &mut [HostSpec], vms: &mut [VmSpec]) {
    if !rng.random_bool(0.2) {
        return;
    }
    let nvme: Labels = "disk=nvme".parse().unwrap_or_else(|error| panic!("chaos: {error}"));
    for host in hosts.iter_mut().filter(|_| rng.random_bool(0.6)) {
        host.labels = nvme.clone();
    }
    for vm in vms.iter_mut().filter(|_| rng.random_bool(0.3)) {
        vm.terms.labels = nvme.clone();
    }
}

/// Some operators and owners let less be done with some hosts and VMs, and some fleets have small budgets.
fn narrow(rng: &mut ChaCha8Rng, policy: &mut Policy, hosts: &[HostSpec], vms: &mut [VmSpec], events: &mut Vec<Timed>) {
    if rng.random_bool(0.15) {
        policy.resize =
            ResizePolicy { vm_per_hour_max: rng.random_range(2..12), fleet_per_hour_max: rng.random_range(10..120) };
    }
    if !rng.random_bool(0.2) {
        return;
    }
    const MODES: [Mode; 4] = [Mode::Observe, Mode::Recommend, Mode::Approve, Mode::Auto];
    for vm in vms.iter_mut().filter(|vm| vm.terms.mode.is_none()) {
        vm.terms.mode = rng.random_bool(0.2).then(|| MODES[rng.random_range(0..4)]);
    }
    for _ in 0..rng.random_range(1..8) {
        let host = HostId::new(hosts[rng.random_range(0..hosts.len())].name.clone());
        let scope = match rng.random_range(0..5) {
            0 => Scope::Fleet,
            1 | 2 => Scope::Host(host.unwrap_or_else(|error| panic!("chaos: {error}"))),
            _ => Scope::Vm(vm_id(rng.random_range(0..vms.len()))),
        };
        let request = OperatorRequest::SetMode { scope, mode: MODES[rng.random_range(0..4)] };
        events.push(Timed { at_s: rng.random_range(60..DURATION_S - 100), event: Event::Operator { request } });
    }
    let decisions = (0..8).map(|_| Timed {
        at_s: rng.random_range(60..DURATION_S - 100),
        event: Event::Decide { approves: rng.random_bool(0.8) },
    });
    events.extend(decisions.collect::<Vec<_>>());
}

/// Some fleets have shadows, which operators make, change and retire.
fn shadow(rng: &mut ChaCha8Rng, policy: &mut Policy, hosts: &mut [HostSpec], events: &mut Vec<Timed>, vms: &[VmId]) {
    if !rng.random_bool(0.4) {
        return;
    }
    policy.shadow = ShadowPolicy {
        mode: Mode::Auto,
        every_vm: rng.random_bool(0.5),
        fleet_max: rng.random_range(1..20),
        cpu_share: rng.random_range(0.02..0.2),
        lead_ms: 60_000,
        pace_ms: 30_000,
        boot_timeout_ms: 120_000,
        cool_down_ms: rng.random_range(20..200) * 1000,
        ..ShadowPolicy::default()
    };
    hosts.iter_mut().for_each(|host| host.shadows_max = rng.random_range(0..6));
    for _ in 0..rng.random_range(0..8) {
        let vm = vms[rng.random_range(0..vms.len())];
        let request = match rng.random_range(0..3) {
            0 => OperatorRequest::RetireShadow { vm },
            1 => OperatorRequest::SetFidelity { vm, fidelity: Some(rng.random_range(0.0..1.0)) },
            _ => OperatorRequest::MakeShadow { vm },
        };
        events.push(Timed { at_s: rng.random_range(60..DURATION_S - 100), event: Event::Operator { request } });
    }
}

fn policy(rng: &mut ChaCha8Rng) -> Policy {
    Policy {
        mode: Mode::Auto,
        forecast: ForecastPolicy {
            resolution_ms: 10_000,
            horizon_steps: 20,
            season_steps_min: 10,
            season_steps_max: 60,
            ..ForecastPolicy::default()
        },
        cpu: CpuPolicy {
            lead_ms: 30_000,
            shrink_dwell_ms: 60_000,
            shrink_interval_ms: 60_000,
            command_ttl_ms: 10_000,
            ..CpuPolicy::default()
        },
        memory: MemoryPolicy { manage: rng.random_bool(0.5), ..MemoryPolicy::default() },
        migrate: MigratePolicy {
            mode: Mode::Auto,
            lead_ms: 60_000,
            rounds: rng.random_range(1..5),
            at_once_max: rng.random_range(1..4),
            per_hour_max: rng.random_range(2..9),
            cool_down_ms: 600_000,
            stand_down_ms: 240_000,
            timeout_ms: 120_000,
            ..MigratePolicy::default()
        },
        resize: ResizePolicy::default(),
        capacity: CapacityPolicy::default(),
        approve: ApprovePolicy { timeout_ms: 300_000, cool_down_ms: 120_000, ..ApprovePolicy::default() },
        windows: WindowsPolicy::default(),
        anomaly: AnomalyPolicy::default(),
        shadow: ShadowPolicy::default(),
    }
}

fn host(rng: &mut ChaCha8Rng, number: usize) -> HostSpec {
    let capacity_cores = f64::from(rng.random_range(2..7_u32));
    HostSpec {
        name: format!("host-{number}"),
        capacity_cores,
        floor_cores: 0.05,
        ceiling_cores: capacity_cores,
        dry_run: rng.random_bool(0.05),
        memory_mib: rng.random_range(3..9) * 1024,
        shadows_max: 0,
        tasks: None,
        zone: None,
        labels: Labels::default(),
    }
}

fn vm(rng: &mut ChaCha8Rng, number: usize, hosts: &[HostSpec]) -> VmSpec {
    let vcpus = rng.random_range(1..4);
    let most = f64::from(vcpus);
    let level = |rng: &mut ChaCha8Rng| rng.random_range(0.05..0.7) * most;
    let load = match rng.random_range(0..4) {
        0 => Load::Flat { cores: level(rng) },
        1 => Load::Walk { step_s: 10.0, step: 0.2 * most, low: 0.05, high: 0.9 * most },
        2 => Load::Day {
            period_s: rng.random_range(150.0..500.0),
            phase_s: rng.random_range(0.0..300.0),
            base: 0.1,
            peak: rng.random_range(0.4..1.0) * most,
            width_s: rng.random_range(40.0..120.0),
            shoulder_s: 10.0,
        },
        _ => Load::Shift {
            at_s: rng.random_range(100.0..900.0),
            before: Box::new(Load::Flat { cores: level(rng) }),
            after: Box::new(Load::Flat { cores: level(rng) }),
        },
    };
    let memory_mib = rng.random_range(1..5) * 512;
    let wants = rng.random_range(64..memory_mib);
    let memory = rng.random_bool(0.3).then(|| MemorySpec {
        max_mib: memory_mib,
        balloon_mib: memory_mib,
        wants_mib: vec![(0, wants / 2), (rng.random_range(100..900), wants)],
    });
    let quota_cores = rng.random_bool(0.5).then(|| rng.random_range(0.3..=1.0) * most);
    VmSpec {
        name: format!("vm-{number}"),
        host: hosts[rng.random_range(0..hosts.len())].name.clone(),
        vcpus,
        quota_cores,
        load,
        noise_cores: 0.03,
        wait_cores: 0.01,
        memory,
        memory_mib,
        terms: terms(rng),
    }
}

fn terms(rng: &mut ChaCha8Rng) -> VmTerms {
    let group = |rng: &mut ChaCha8Rng| ["red", "blue"][rng.random_range(0..2)].to_owned();
    VmTerms {
        mode: rng.random_bool(0.08).then_some(Mode::Observe),
        stays: rng.random_bool(0.08),
        apart: rng.random_bool(0.25).then(|| group(rng)),
        apart_zones: None,
        together: rng.random_bool(0.15).then(|| group(rng)),
        labels: Labels::default(),
        shadow: None,
        copy_disks: None,
        bound: rng.random_bool(0.05).then(|| "a device of the host".to_owned()),
        misunderstood: rng.random_bool(0.03).then(|| "mode=\"sometimes\"".to_owned()),
    }
}

fn event(rng: &mut ChaCha8Rng, hosts: &[HostSpec], vms: usize) -> Timed {
    let name = hosts[rng.random_range(0..hosts.len())].name.clone();
    let host = HostId::new(name.clone()).unwrap_or_else(|error| panic!("chaos: {error}"));
    let for_s = rng.random_range(5..90);
    let event = match rng.random_range(0..10) {
        0 => Event::LinkDown { host: name, for_s, spool_lost: rng.random_bool(0.3) },
        1 => Event::AgentRestart { host: name, for_s },
        2 => Event::BrainRestart { for_s },
        3 => {
            let scope = match rng.random_range(0..3) {
                0 => Scope::Fleet,
                1 => Scope::Host(host),
                _ => Scope::Vm(vm_id(rng.random_range(0..vms))),
            };
            Event::Operator { request: OperatorRequest::Pause { scope } }
        }
        4 => {
            Event::Operator { request: OperatorRequest::Release { scope: Scope::Vm(vm_id(rng.random_range(0..vms))) } }
        }
        5 => Event::Operator { request: OperatorRequest::Resume { scope: Scope::Fleet } },
        6 | 7 => Event::Operator { request: OperatorRequest::Drain { host } },
        8 => Event::Operator { request: OperatorRequest::Undrain { host } },
        _ => Event::Move { vm: format!("vm-{}", rng.random_range(0..vms)), host: name },
    };
    Timed { at_s: rng.random_range(60..DURATION_S - 100), event }
}
