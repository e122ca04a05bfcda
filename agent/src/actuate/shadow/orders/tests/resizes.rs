//! Resizing a shadow that runs, whatever fails.

use super::*;

const RESIZED: OutcomeResult = OutcomeResult::Shadow(ShadowDone::Resized { took_us: 0 });

/// A shadow that runs, with a tenth of a core and 64 MiB.
fn running() -> Bench {
    let mut bench = bench();
    assert!(is_copied(&bench.order(9, copy())));
    assert_eq!(bench.order(9, ShadowOrder::Start), started());
    bench
}

fn size(cpu_cores: f64, memory_bytes: u64) -> ShadowSize {
    ShadowSize { disk_bytes_per_s: Some(4 * MIB), network_bytes_per_s: Some(MIB), ..spec(cpu_cores, memory_bytes).size }
}

fn resize(cpu_cores: f64, memory_bytes: u64) -> ShadowOrder {
    ShadowOrder::Resize(size(cpu_cores, memory_bytes))
}

impl Bench {
    fn limits(&self) -> ShadowLimits {
        match &self.world().domains[&id(9)] {
            FoundShadow::Shadow { shadow, .. } => shadow.limits.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_running_shadow_is_given_what_was_asked_for_once_and_shrinks_and_grows_within_its_definition() {
    let mut bench = running();
    let before = bench.limits();
    let order = resize(0.3, 48 * MIB);
    assert_eq!(bench.order(9, order.clone()), RESIZED);
    let after = bench.limits();
    assert_eq!((after.quota_us, after.memory_bytes), (30_000, 48 * MIB));
    assert!(after.disks.len() == 1 && after.disks.values().all(|limit| *limit == 4 * MIB), "{after:?}");
    assert!(after.interfaces.values().all(|limits| *limits == [1_049; 2]), "{after:?}");
    let changes = bench.world().changes;
    // Done again, however late, it is found done.
    assert_eq!(bench.left(9, order, Duration::ZERO), RESIZED);
    assert_eq!(bench.world().changes, changes);
    assert!(is_late(&bench.left(9, resize(0.2, 48 * MIB), Duration::ZERO)));
    assert_eq!(bench.limits(), after);
    // Back to what it was made with, by the order to make it as well.
    assert!(is_copied(&bench.order(9, copy())));
    assert_eq!(bench.limits(), before);
}

#[test]
fn what_fails_midway_is_taken_back() {
    let mut bench = running();
    let before = bench.limits();
    for fails in ["resize", "limit"] {
        bench.world().fails = Some(fails);
        let failed = bench.order(9, resize(0.3, 48 * MIB));
        assert!(matches!(failed, OutcomeResult::Failed { retryable: true, .. }), "{fails}: {failed:?}");
        assert_eq!(bench.limits(), before, "{fails}");
    }
    bench.world().is_rigid = true;
    let rigid = bench.order(9, resize(0.3, 48 * MIB));
    assert!(matches!(rigid, OutcomeResult::Unshadowable(Unshadowable::Unresizable(_))), "{rigid:?}");
    assert_eq!(bench.limits(), before);
}

#[test]
fn what_an_agent_that_was_killed_has_left_half_the_next_order_completes() {
    let mut bench = running();
    // Killed between the quota and the rest.
    if let Some(FoundShadow::Shadow { shadow, .. }) = bench.world().domains.get_mut(&id(9)) {
        shadow.limits.quota_us = 30_000;
    }
    assert!(is_late(&bench.left(9, resize(0.3, 48 * MIB), Duration::ZERO)), "it is not done");
    assert_eq!(bench.order(9, resize(0.3, 48 * MIB)), RESIZED);
    assert_eq!((bench.limits().quota_us, bench.limits().memory_bytes), (30_000, 48 * MIB));
}

#[test]
fn nothing_grows_beyond_its_definition_or_its_share_of_the_host() {
    let mut bench = running();
    let before = bench.limits();
    let unresizable =
        |result: OutcomeResult| matches!(result, OutcomeResult::Unshadowable(Unshadowable::Unresizable(_)));
    assert!(unresizable(bench.order(9, resize(0.3, 65 * MIB))), "its memory");
    let two = ShadowSize { vcpus: 2, ..size(0.3, 64 * MIB) };
    assert!(unresizable(bench.order(9, ShadowOrder::Resize(two))), "its vCPUs");
    let crowded = bench.order(9, resize(0.6, 64 * MIB));
    assert!(
        matches!(crowded, OutcomeResult::Unshadowable(Unshadowable::NoRoom(_))),
        "a quarter of 2 cores: {crowded:?}"
    );
    assert_eq!(bench.limits(), before);
}

#[test]
fn only_a_shadow_that_runs_is_resized() {
    let mut bench = bench();
    bench.world().domains.insert(id(1), FoundShadow::Other);
    for vm in [1, 9] {
        assert_eq!(bench.order(vm, resize(0.3, 48 * MIB)), unshadowable(Unshadowable::NoShadow));
    }
    assert!(is_copied(&bench.order(9, copy())));
    assert_eq!(bench.order(9, resize(0.3, 48 * MIB)), unshadowable(Unshadowable::NoShadow));
    assert_eq!(bench.world().changes, 0);
}
