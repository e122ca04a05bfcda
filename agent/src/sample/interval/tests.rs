use super::*;
use crate::host::cgroup::ThrottleCounters;
use gnomon_common::abi::sched::Command;
use gnomon_common::wire::VmId;
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

const S: u64 = 1_000_000_000;
const BOUNDS: Bounds = Bounds { cpus: 8, sample_ns: S };

fn counters(run_ns: u64, wait_ns: u64) -> SchedCounters {
    SchedCounters { run_ns, wait_ns, threads: 4, ..SchedCounters::default() }
}

#[test]
fn run_and_wait_become_cores() {
    let mut seen = SchedEvents { wakeups: 10, preemptions: 3, ..SchedEvents::default() };
    seen.wait_log2[20] = 7;
    let before = SchedCounters { events: Some(SchedEvents::default()), ..counters(0, 0) };
    let after = SchedCounters { events: Some(seen), ..counters(S + S / 2, S / 4) };
    let sample = sched((0, &before), (S / 2, &after), &BOUNDS).unwrap();
    assert_eq!((sample.elapsed_s, sample.run_cores, sample.wait_cores), (0.5, 3.0, 0.5));
    assert_eq!(sample.events, Some(seen));
    let without = sched((0, &counters(0, 0)), (S / 2, &after), &BOUNDS).unwrap();
    assert_eq!(without.events, None, "one reading without events says nothing of them");
}

#[test]
fn impossible_differences_are_refused_with_their_reason() {
    let zero = counters(0, 0);
    let refused = |after: (u64, &SchedCounters)| sched((S, &zero), after, &BOUNDS).unwrap_err();
    assert_eq!(refused((S, &zero)), Rejection::Clock);
    assert_eq!(refused((S - 1, &zero)), Rejection::Clock);
    assert_eq!(refused((7 * S, &zero)), Rejection::TooLong);
    assert_eq!(refused((2 * S, &counters(9 * S, 0))), Rejection::Impossible);
    assert_eq!(refused((2 * S, &counters(0, 80 * S))), Rejection::Impossible);
    let before = counters(5, 5);
    let backwards = |after: &SchedCounters| sched((S, &before), (2 * S, after), &BOUNDS).unwrap_err();
    assert_eq!(backwards(&counters(4, 5)), Rejection::Reset);
    assert_eq!(backwards(&counters(5, 4)), Rejection::Reset);
}

#[test]
fn a_vm_with_all_cpus_busy_is_possible() {
    let after = SchedCounters { threads: 16, ..counters(8 * S, 8 * S) };
    let sample = sched((0, &counters(0, 0)), (S, &after), &BOUNDS).unwrap();
    assert_eq!((sample.run_cores, sample.wait_cores), (8.0, 8.0));
}

fn reading(taken_ns: u64, usage_ns: Option<u64>, throttles: &[(&str, u64)]) -> CgroupReading {
    let throttle = |&(dir, throttled_periods): &(&str, u64)| {
        let counters = ThrottleCounters { throttled_periods, period_ns: S / 10 };
        (Arc::from(Path::new(dir)), counters)
    };
    CgroupReading { taken_ns, usage_ns, quota_cores: None, throttles: throttles.iter().map(throttle).collect() }
}

#[test]
fn the_worst_throttled_group_counts_and_a_new_one_does_not() {
    let before = reading(0, Some(0), &[("domain", 0), ("vcpu0", 0)]);
    let after = reading(S, Some(S / 2), &[("domain", 1), ("vcpu0", 4), ("vcpu1", 10)]);
    let sample = cgroup(&before, &after, &BOUNDS).unwrap();
    assert_eq!((sample.usage_cores, sample.throttled), (Some(0.5), 0.4));
}

#[test]
fn a_group_that_was_made_anew_gives_no_sample_but_a_missing_counter_does() {
    let before = reading(0, Some(10), &[]);
    assert_eq!(cgroup(&before, &reading(S, Some(9), &[]), &BOUNDS), Err(Rejection::Reset));
    assert_eq!(cgroup(&before, &reading(S, None, &[]), &BOUNDS).unwrap().usage_cores, None);
}

#[test]
fn the_hosts_cpu_is_bounded_by_its_cpus() {
    assert_eq!(host((0, 0), (S, 4 * S), &BOUNDS), Ok((4.0, 1.0)));
    assert_eq!(host((0, 0), (S, 10 * S), &BOUNDS), Err(Rejection::Impossible));
}

fn any_counters() -> impl Strategy<Value = SchedCounters> {
    // Half of the values are close together, so that many pairs pass and the accepted ones are tested as well.
    let value = || prop_oneof![0..4 * S, any::<u64>()];
    (
        value(),
        value(),
        value(),
        value(),
        proptest::array::uniform32(prop_oneof![Just(0u64), 0..9u64, any::<u64>()]),
        any::<u32>(),
    )
        .prop_map(|(run_ns, wait_ns, wakeups, preemptions, wait_log2, threads)| SchedCounters {
            run_ns,
            wait_ns,
            events: Some(SchedEvents { wakeups, preemptions, wait_log2 }),
            threads,
        })
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_finite_and_bounded(
        t0 in prop_oneof![0..4 * S, any::<u64>()], t1 in prop_oneof![0..4 * S, any::<u64>()],
        before in any_counters(), after in any_counters(),
    ) {
        if let Ok(sample) = sched((t0, &before), (t1, &after), &BOUNDS) {
            let slack = TOLERANCE + SKEW_S / sample.elapsed_s;
            let threads = f64::from(before.threads.max(after.threads)) + TRANSIENT_THREADS;
            prop_assert!(sample.elapsed_s > 0.0 && sample.elapsed_s <= 5.0);
            prop_assert!((0.0..=8.0 * slack * 1.0001).contains(&sample.run_cores));
            prop_assert!(sample.wait_cores >= 0.0);
            prop_assert!(sample.run_cores + sample.wait_cores <= threads * slack * 1.0001);
        }
    }

    #[test]
    fn a_later_reading_of_growing_counters_is_accepted(
        elapsed_ns in S / 10..5 * S, share in 0.0..8.0f64, wait in 0.0..60.0f64, base in 0..1u64 << 62,
    ) {
        let grown = |cores: f64| base + (cores * elapsed_ns as f64) as u64;
        let (before, after) = (counters(base, base), counters(grown(share), grown(wait)));
        let sample = sched((base, &before), (base + elapsed_ns, &after), &BOUNDS).unwrap();
        prop_assert!((sample.run_cores - share).abs() < 1e-3 && (sample.wait_cores - wait).abs() < 1e-3);
    }

    #[test]
    fn usage_and_throttling_are_bounded_whatever_the_counters(
        t0: u64, t1: u64, u0: Option<u64>, u1: Option<u64>, p0: u64, p1: u64,
    ) {
        let (before, after) = (reading(t0, u0, &[("d", p0)]), reading(t1, u1, &[("d", p1)]));
        if let Ok(sample) = cgroup(&before, &after, &BOUNDS) {
            prop_assert!((0.0..=1.0).contains(&sample.throttled));
            let most = 8.0 * (TOLERANCE + SKEW_S / sample.elapsed_s) * 1.0001;
            prop_assert!(sample.usage_cores.is_none_or(|cores| (0.0..=most).contains(&cores)));
        }
    }
}

#[test]
fn waits_are_told_by_culprit_and_only_of_this_interval() {
    let vm = |number| Culprit::Vm(VmId(uuid::Uuid::from_u128(number)));
    let task = |number| Culprit::Task(Command([number, 0]));
    let before = WaitCauses {
        own_quota_ns: Some(S),
        own_ns: S,
        culprits: vec![(vm(1), 5 * S), (vm(2), S), (vm(4), 9 * S), (task(1), S)],
        other_tasks_ns: 0,
    };
    let after = WaitCauses {
        own_quota_ns: Some(S + S / 2),
        own_ns: S,
        // VM 2 waits no more, VM 3 is new, VM 4 is gone, and the task's column was another's meanwhile.
        culprits: vec![(vm(1), 6 * S), (vm(2), S), (vm(3), S / 4), (task(1), S / 2)],
        other_tasks_ns: S / 8,
    };
    let sample = waits(&before, &after, 2.0);
    assert_eq!(sample.culprits, [(vm(1), 1.0), (vm(3), 0.25), (task(1), 0.5)]);
    assert_eq!((sample.own_quota_s, sample.own_s, sample.other_tasks_s), (Some(0.5), 0.0, 0.125));
    assert_eq!(waits(&before, &WaitCauses { own_quota_ns: None, ..after }, 2.0).own_quota_s, None);
}
