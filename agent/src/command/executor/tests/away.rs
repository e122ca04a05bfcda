//! Without a brain: what is held, what grows, what goes back.

use super::*;
use crate::config::{Away, Reconcile};
use crate::sample::{ChangedVms, LiveLoad, LiveLoads};
use gnomon_common::wire::{AgentEpoch, Imaging, LocalCause, MeanMax, Origin};

/// Away after 5 s, quiet after 10 s, a step back every 5 s.
const AWAY: Away = Away {
    after_s: 5,
    reflex: true,
    growth_max: 1.5,
    headroom: 1.2,
    drift: true,
    quiet_s: 10,
    drift_step: 0.2,
    drift_interval_s: 5,
};

pub(super) fn duties(away: Away, reconcile: Reconcile) -> Duties {
    Duties {
        away,
        reconcile,
        capacity_cores: 8.0,
        epoch: AgentEpoch(1_000),
        live: LiveLoads::default(),
        changed: ChangedVms::default(),
    }
}

/// What a VM of four vCPUs that wants `wanted_cores` shows under its present limit.
fn load(world: &World, vm: VmId, wanted_cores: f64) -> LiveLoad {
    let flat = |value: f64| MeanMax { mean: value, max: value };
    let quota_cores = world.limits[&vm];
    let run_cores = wanted_cores.min(quota_cores.unwrap_or(4.0));
    let held = wanted_cores > run_cores;
    LiveLoad {
        taken_ns: world.us * 1_000,
        covered_s: 3.0,
        run_cores: flat(run_cores),
        demand_high_cores: flat(if held { wanted_cores * 1.1 } else { wanted_cores }),
        throttled: flat(if held { 0.9 } else { 0.0 }),
        quota_cores,
        vcpus: 4,
    }
}

/// Lets seconds pass in which every VM wants so much.
pub(super) fn pass(executor: &mut Executor, world: &Shared, seconds: u64, wanted_cores: f64) {
    for _ in 0..seconds {
        let loads = {
            let mut world = world.lock().unwrap();
            world.us += 1_000_000;
            world.limits.keys().map(|vm| (*vm, load(&world, *vm, wanted_cores))).collect()
        };
        executor.tending.as_mut().unwrap().duties().live.publish(loads);
        executor.tend().unwrap();
    }
}

/// A VM with a baseline of 2 cores, set to `set_cores` by a brain that has gone then.
fn left_alone(set_cores: f64, away: Away) -> (tempfile::TempDir, Executor, Shared) {
    let (folder, path, world) = host();
    let mut executor = executor(&path, &world, false).with_duties(duties(away, Reconcile::default()));
    executor.presence.here();
    send(&mut executor, &world, &set(1, set_cores));
    executor.handle(Request::Acknowledged(set(1, 1.0).id)).unwrap();
    pass(&mut executor, &world, 10, 0.1);
    executor.presence.gone(now(&world).boot);
    world.lock().unwrap().changes.clear();
    (folder, executor, world)
}

fn limit(world: &Shared) -> Option<f64> {
    world.lock().unwrap().limits[&vm(1)]
}

fn causes(executor: &Executor) -> Vec<LocalCause> {
    let of = |origin: &Origin| match origin {
        Origin::Local { cause, .. } => *cause,
        Origin::Command => panic!("nobody commanded it"),
    };
    executor.answers().unwrap().pending.iter().map(|(_, outcome)| of(&outcome.origin)).collect()
}

#[test]
fn a_starving_vm_grows_once_the_brain_is_away_and_not_before() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    pass(&mut executor, &world, 4, 1.0);
    assert_eq!(limit(&world), Some(0.5), "a brain that is gone for a moment is not away");
    pass(&mut executor, &world, 1, 1.0);
    assert_eq!(limit(&world), Some(0.75));
    pass(&mut executor, &world, 2, 1.0);
    assert_eq!(limit(&world), Some(0.75), "the last seconds are those of the old limit");
    pass(&mut executor, &world, 20, 1.0);
    let grown = limit(&world).unwrap();
    assert!((1.1..=1.4).contains(&grown), "{grown} cores for a VM that wants one");
    let outcomes = executor.answers().unwrap().pending;
    assert!(outcomes.iter().all(|(_, outcome)| outcome.id.is_local()));
    assert_eq!(causes(&executor)[0], LocalCause::Reflex);
    assert_eq!(results(&executor)[0].1, applied(Some(0.5), Some(0.75)));
    let Origin::Local { reason, .. } = &outcomes[0].1.origin else { unreachable!() };
    assert_eq!(
        reason,
        "the brain is away for 5 s and the VM starves: 0.50 cores held it back for 90 % of the last 3 s, in which it wanted up to 1.10 cores"
    );
}

#[test]
fn a_starving_vm_stays_as_it_is_where_its_owner_lets_nothing_be_carried_out() {
    for (mode, limited_to) in [(Mode::Recommend, 0.5), (Mode::Approve, 0.75)] {
        let (_folder, mut executor, world) = left_alone(0.5, AWAY);
        world.lock().unwrap().terms.mode = Some(mode);
        pass(&mut executor, &world, 5, 1.0);
        assert_eq!(limit(&world), Some(limited_to), "{mode}");
    }
}

#[test]
fn a_starving_vm_grows_also_while_its_disks_are_copied() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    let imaging = Imaging { shadow: vm(9), bandwidth_bytes_per_s: None, timeout_ms: 7_200_000, send_to: None };
    send(&mut executor, &world, &command(2, 1, Action::Image(imaging)));
    assert_eq!(executor.ledger.intents().unwrap().len(), 1, "they are being copied");
    pass(&mut executor, &world, 5, 1.0);
    assert_eq!(limit(&world), Some(0.75));
    assert_eq!(executor.ledger.intents().unwrap().len(), 1);
}

#[test]
fn while_there_is_a_brain_nothing_grows_however_it_starves() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    executor.presence.here();
    pass(&mut executor, &world, 60, 2.0);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_reflex_that_is_turned_off_does_nothing() {
    let (_folder, mut executor, world) = left_alone(0.5, Away { reflex: false, ..AWAY });
    pass(&mut executor, &world, 60, 2.0);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn growth_ends_at_the_ceiling_and_at_what_the_host_can_give() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    pass(&mut executor, &world, 120, 9.0);
    assert_eq!(limit(&world), Some(4.0), "all vCPUs");
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    executor.policy.bounds.ceiling_cores = 1.3;
    pass(&mut executor, &world, 60, 3.0);
    assert_eq!(limit(&world), Some(1.3));
    // A neighbour that is not Gnomon's has 2 of 3 cores.
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    world.lock().unwrap().limits.insert(vm(2), Some(2.0));
    executor.tending.as_mut().unwrap().duties().capacity_cores = 3.0;
    pass(&mut executor, &world, 60, 3.0);
    assert_eq!(limit(&world), Some(1.0));
    assert_eq!(world.lock().unwrap().limits[&vm(2)], Some(2.0), "a VM that no brain has changed is left alone");
}

#[test]
fn a_vm_in_a_later_life_is_nobodys_business() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    world.lock().unwrap().restart(vm(1), Some(0.5));
    pass(&mut executor, &world, 60, 2.0);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_quiet_vm_goes_back_to_its_baseline_step_by_step() {
    let (_folder, mut executor, world) = left_alone(1.0, AWAY);
    pass(&mut executor, &world, 60, 0.1);
    let steps: Vec<f64> = world.lock().unwrap().changes.iter().map(|(_, limit)| limit.unwrap()).collect();
    assert!(steps.len() >= 3 && steps.is_sorted(), "{steps:?}");
    assert_eq!(limit(&world), Some(2.0));
    assert!(causes(&executor).iter().all(|cause| *cause == LocalCause::Drift));
    let outcomes = executor.answers().unwrap().pending;
    let Origin::Local { reason, .. } = &outcomes.last().unwrap().1.origin else { unreachable!() };
    assert!(reason.contains("is back at 2.00 cores, as before Gnomon's first change"), "{reason}");
}

#[test]
fn a_drift_down_stops_above_live_use_and_goes_on_when_that_ends() {
    let (_folder, mut executor, world) = left_alone(4.0, AWAY);
    pass(&mut executor, &world, 120, 2.5);
    assert_eq!(limit(&world), Some(2.5 * 1.2));
    pass(&mut executor, &world, 120, 0.1);
    assert_eq!(limit(&world), Some(2.0));
}

#[test]
fn without_drift_what_is_set_is_held() {
    let (_folder, mut executor, world) = left_alone(1.0, Away { drift: false, ..AWAY });
    pass(&mut executor, &world, 120, 0.1);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_brain_that_returns_rules_again_at_once() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    pass(&mut executor, &world, 20, 1.0);
    assert!(limit(&world) > Some(0.5));
    executor.presence.here();
    // As new as it would have been: no local act has raised the fence.
    send(&mut executor, &world, &set(2, 0.4));
    assert_eq!(limit(&world), Some(0.4));
    pass(&mut executor, &world, 60, 1.0);
    assert_eq!(limit(&world), Some(0.4));
    send(&mut executor, &world, &command(3, 1, Action::Release));
    assert_eq!(limit(&world), Some(2.0), "the baseline is that of before the first command");
}

#[test]
fn acts_are_told_until_acknowledged_and_never_numbered_twice() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    pass(&mut executor, &world, 20, 1.0);
    let ids: Vec<CommandId> = executor.answers().unwrap().pending.iter().map(|(_, outcome)| outcome.id).collect();
    assert!(ids.len() >= 2);
    assert!(ids.windows(2).all(|pair| pair[0].number < pair[1].number), "{ids:?}");
    ids.iter().for_each(|id| executor.handle(Request::Acknowledged(*id)).unwrap());
    assert_eq!(results(&executor), []);
}

#[test]
fn a_reflex_killed_under_way_is_finished_by_the_next_start() {
    let (folder, mut executor_1, world) = left_alone(0.5, AWAY);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, folder.path().join("commands.redb")));
    pass(&mut executor_1, &world, 5, 1.0);
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    assert_eq!(limit(&world), Some(0.5));
    let mut executor_2 = executor(&left, &world, false);
    assert!(!executor_2.try_resolve());
    assert_eq!(limit(&world), Some(0.75));
    assert_eq!(causes(&executor_2), [LocalCause::Reflex]);
}

#[test]
fn a_libvirt_that_is_down_is_tried_again_and_leaves_no_trail_of_failures() {
    let (_folder, mut executor, world) = left_alone(0.5, AWAY);
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("down".to_owned()));
    pass(&mut executor, &world, 60, 1.0);
    assert_eq!(results(&executor), []);
    world.lock().unwrap().failing = None;
    pass(&mut executor, &world, 2, 1.0);
    assert_eq!(limit(&world), Some(0.75));
}
