//! Capacity requests: when something is asked for, who decides, what is sent how often, and how it ends.

use std::collections::{BTreeMap, BTreeSet};

use gnomon_common::wire::{HostFacts, VmTerms};
use proptest::prelude::*;

use super::bench::{Bench, facts, host, policy, report_of};
use super::{Input, at};
use crate::Core;
use crate::capacity::{CapacityAnswer, CapacityKey, CapacityRefusal, CapacityRequest, CapacityState};
use crate::io::{OperatorRequest, Output, Record, Restored, Scope};
use crate::policy::{Approval, CapacityPolicy, MigratePolicy, Mode, Policy};

use CapacityState::{Accepted, Approved, AwaitingApproval, Denied, Expired, Failed, Fulfilled, Sent, Withdrawn};

/// Four VMs of nearly a core each on `a`, which has 3.6 for them.
const FULL: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];
/// Three on `b`, beside which there is no room for one more.
const BUSY: [(u128, f64, f64); 3] = [(5, 0.9, 0.9), (6, 0.9, 0.9), (7, 0.9, 0.9)];

const KEY: CapacityKey = CapacityKey { term: 1, number: 1 };

/// A host is asked for when `a` was stuck for half a minute: at second 50.
fn asking(approval: Approval) -> Policy {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    let capacity = CapacityPolicy {
        has_provider: true,
        approval,
        full_for_ms: 30_000,
        open_max: 2,
        cool_down_ms: 60_000,
        approval_timeout_ms: 200_000,
        arrival_timeout_ms: 300_000,
        attempts_max: 3,
    };
    Policy { migrate, capacity, ..policy(Mode::Auto) }
}

/// Windows of both hosts that begin from `from` until before `to`; the states that were written of requests, and requests sent.
fn windows(bench: &mut Bench, from: u64, to: u64, of_a: &[(u128, f64, f64)]) -> (Vec<CapacityState>, Vec<CapacityKey>) {
    for second in (from..to).step_by(10) {
        bench.report_on("b", second, &BUSY, Some(1.0));
        bench.report_on("a", second, of_a, Some(1.0));
    }
    seen(bench)
}

fn seen(bench: &mut Bench) -> (Vec<CapacityState>, Vec<CapacityKey>) {
    let (mut states, mut sent) = (Vec::new(), Vec::new());
    for output in bench.take() {
        match output {
            Output::Persist(Record::Capacity(request)) => states.push(request.state),
            Output::Capacity(request) => {
                assert_eq!(states.last(), Some(&Sent), "it is written before it is sent");
                sent.push(request.key);
            }
            _ => {}
        }
    }
    (states, sent)
}

fn request(bench: &Bench) -> CapacityRequest {
    bench.core.capacity().remove(0)
}

/// A bench on which the first request was just made.
fn asked(approval: Approval) -> Bench {
    let mut bench = Bench::new(asking(approval));
    windows(&mut bench, 0, 50, &FULL);
    bench
}

fn approve(bench: &mut Bench, second: u64) -> (Vec<CapacityState>, Vec<CapacityKey>) {
    bench.operate(second, OperatorRequest::ApproveCapacity { key: KEY });
    seen(bench)
}

fn answer(bench: &mut Bench, second: u64, answer: CapacityAnswer) -> Vec<CapacityState> {
    bench.core.handle(at(second), Input::CapacityAnswered { key: KEY, answer });
    seen(bench).0
}

fn accepted() -> CapacityAnswer {
    CapacityAnswer::Accepted("order 7".to_owned())
}

fn unreachable() -> CapacityAnswer {
    CapacityAnswer::Unreachable("connection refused".to_owned())
}

fn arrives(bench: &mut Bench, second: u64, name: &str, facts: HostFacts) -> Vec<CapacityState> {
    bench.core.handle(at(second), Input::HostUp { host: host(name), facts });
    seen(bench).0
}

/// What is due at `second` by the time alone.
fn time(bench: &mut Bench, second: u64) -> (Vec<CapacityState>, Vec<CapacityKey>) {
    bench.core.handle_timeout(at(second));
    seen(bench)
}

/// A new core on what was kept of the old one's requests; both hosts are known and come back.
fn restart(bench: &Bench, term: u64, policy: Policy) -> Bench {
    let mut core = Core::new(policy, term, term);
    for name in ["a", "b"] {
        core.restore(Restored::Host { host: host(name), facts: facts() });
    }
    for request in bench.core.capacity().into_iter().rev() {
        core.restore(Restored::Capacity(Box::new(request)));
    }
    Bench::of(core)
}

#[test]
fn a_host_that_is_stuck_for_long_is_asked_for_once_and_waits_for_an_operator() {
    let mut bench = Bench::new(asking(Approval::Required));
    assert_eq!(windows(&mut bench, 0, 40, &FULL), (vec![], vec![]));
    assert_eq!(windows(&mut bench, 40, 50, &FULL), (vec![AwaitingApproval], vec![]));
    let asked = request(&bench);
    assert_eq!((asked.key, asked.zone.clone(), asked.cores, asked.memory_bytes), (KEY, None, 0.2, 0));
    let [full] = &asked.hosts[..] else { panic!("{asked:?}") };
    assert_eq!((full.host.clone(), full.room_cores, full.since), (host("a"), 3.6, at(20)));
    assert!((full.demand_cores - 3.8).abs() < 1e-6);
    assert!(asked.reason.contains("host a will be 0.20 cores short"), "{}", asked.reason);
    assert_eq!(windows(&mut bench, 50, 150, &FULL), (vec![], vec![]), "it is asked for once");
}

#[test]
fn nothing_is_asked_for_where_nobody_could_be_asked_or_it_would_not_help() {
    let quiet = |policy: Policy, prepare: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new(policy);
        prepare(&mut bench);
        assert_eq!(windows(&mut bench, 0, 200, &FULL), (vec![], vec![]));
        assert_eq!(bench.core.capacity(), []);
    };
    let mut nobody = asking(Approval::Automatic);
    nobody.capacity.has_provider = false;
    quiet(nobody, &|_| {});
    let mut recommends = asking(Approval::Automatic);
    recommends.migrate.mode = Mode::Recommend;
    quiet(recommends, &|_| {});
    let good = || asking(Approval::Automatic);
    quiet(good(), &|bench| bench.operate(0, OperatorRequest::Pause { scope: Scope::Host(host("a")) }));
    quiet(good(), &|bench| bench.operate(0, OperatorRequest::Drain { host: host("a") }));
    quiet(good(), &|bench| {
        let facts = HostFacts { migration: None, ..facts() };
        bench.core.handle(at(0), Input::HostUp { host: host("a"), facts });
    });

    // Paused when it was stuck already: another one has to be stuck for as long, and is asked for alone.
    let mut bench = Bench::new(good());
    windows(&mut bench, 0, 40, &FULL);
    bench.operate(41, OperatorRequest::Pause { scope: Scope::Host(host("a")) });
    assert_eq!(windows(&mut bench, 40, 100, &FULL), (vec![], vec![]));
    let other = FULL.map(|(vm, low, high)| (vm + 10, low, high));
    for (from, to, requests) in [(100, 130, 0), (130, 150, 1)] {
        for second in (from..to).step_by(10) {
            bench.report_on("b", second, &other, Some(1.0));
            bench.report_on("a", second, &FULL, Some(1.0));
        }
        assert_eq!(bench.core.capacity().len(), requests);
    }
    assert_eq!(request(&bench).hosts.iter().map(|full| full.host.clone()).collect::<Vec<_>>(), [host("b")]);

    // None of its VMs may leave: another host would be empty.
    let mut bench = Bench::new(good());
    for second in (0..200).step_by(10) {
        bench.report_on("b", second, &BUSY, Some(1.0));
        let mut report = report_of("a", second, &FULL, Some(1.0));
        report.vms.iter_mut().for_each(|window| window.terms = VmTerms { stays: true, ..VmTerms::default() });
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
    }
    assert_eq!(seen(&mut bench), (vec![], vec![]));
}

#[test]
fn a_way_out_or_room_in_between_begins_the_wait_anew() {
    let mut bench = Bench::new(asking(Approval::Automatic));
    windows(&mut bench, 0, 40, &FULL);
    assert_eq!(windows(&mut bench, 40, 50, &FULL[..2]), (vec![], vec![]));
    assert_eq!(windows(&mut bench, 50, 90, &FULL), (vec![], vec![]));
    assert_eq!(windows(&mut bench, 90, 110, &FULL).0, [Approved, Sent]);
}

#[test]
fn what_is_approved_is_sent_and_a_host_that_was_not_there_fulfils_it() {
    let mut bench = asked(Approval::Required);
    assert_eq!(arrives(&mut bench, 59, "e", facts()), [], "nobody was asked for it");
    assert_eq!(approve(&mut bench, 60), (vec![Approved, Sent], vec![KEY]));
    assert_eq!(approve(&mut bench, 61), (vec![], vec![]), "once");
    assert_eq!(answer(&mut bench, 62, accepted()), [Accepted]);
    let accepted = request(&bench);
    assert_eq!((accepted.reference.as_deref(), accepted.approved_by.as_deref()), (Some("order 7"), Some("alice")));
    assert_eq!(arrives(&mut bench, 70, "a", facts()), [], "it was there");
    assert_eq!(arrives(&mut bench, 71, "c", HostFacts { dry_run: true, ..facts() }), [], "it takes no VM");

    bench.core.handle(at(72), Input::HostUp { host: host("d"), facts: facts() });
    let records: Vec<Record> = bench
        .take()
        .into_iter()
        .filter_map(|output| match output {
            Output::Persist(record) => Some(record),
            _ => None,
        })
        .collect();
    let place = |is: fn(&Record) -> bool| records.iter().position(is).unwrap();
    let fulfilled = place(|record| matches!(record, Record::Capacity(request) if request.state == Fulfilled));
    assert!(fulfilled < place(|record| matches!(record, Record::Host { .. })), "else a crash in between loses it");
    assert_eq!(request(&bench).fulfilled_by, Some(host("d")));
    assert_eq!(bench.core.may_decide_capacity(KEY, true), Err(CapacityRefusal::Decided { key: KEY, state: Fulfilled }));
}

#[test]
fn every_step_is_in_the_audit_log_with_who_and_why() {
    let mut bench = asked(Approval::Required);
    bench.operate(60, OperatorRequest::ApproveCapacity { key: KEY });
    bench.core.handle(at(62), Input::CapacityAnswered { key: KEY, answer: accepted() });
    bench.core.handle(at(70), Input::HostUp { host: host("c"), facts: facts() });
    bench.operate(80, OperatorRequest::DenyCapacity { key: KEY });
    let lines: Vec<String> = bench
        .take()
        .into_iter()
        .filter_map(|output| match output {
            Output::Persist(Record::Audit(line)) if line.object == "capacity 1-1" => {
                Some(format!("{} {}: {}", line.actor, line.verb, line.detail))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        lines,
        [
            "alice approve: alice approved it",
            "gnomon send: attempt 1",
            "gnomon accept: the provider accepted it as order 7",
            "gnomon fulfil: host c came, with 4.00 cores and 8192 MiB",
            "alice refused: deny: capacity request 1-1 awaits no approval: it is fulfilled",
        ]
    );
}

#[test]
fn what_is_denied_is_not_sent_and_not_asked_for_again_before_the_cool_down_is_over() {
    let mut bench = asked(Approval::Required);
    bench.operate(60, OperatorRequest::DenyCapacity { key: KEY });
    assert_eq!(seen(&mut bench), (vec![Denied], vec![]));
    assert_eq!(windows(&mut bench, 60, 110, &FULL), (vec![], vec![]));
    assert_eq!(windows(&mut bench, 110, 120, &FULL), (vec![AwaitingApproval], vec![]));
    assert_eq!(request(&bench).key, CapacityKey { term: 1, number: 2 });
}

#[test]
fn a_provider_that_is_not_reached_is_asked_again_under_the_same_key_a_few_times() {
    let mut bench = Bench::new(asking(Approval::Automatic));
    assert_eq!(windows(&mut bench, 0, 50, &FULL), (vec![Approved, Sent], vec![KEY]));
    assert_eq!(answer(&mut bench, 60, unreachable()), [Approved]);
    assert_eq!(bench.core.poll_timeout(), Some(at(65)));
    assert_eq!(time(&mut bench, 64), (vec![], vec![]));
    assert_eq!(time(&mut bench, 65), (vec![Sent], vec![KEY]));
    assert_eq!(answer(&mut bench, 66, unreachable()), [Approved]);
    assert_eq!(time(&mut bench, 75), (vec![], vec![]), "longer than the first time");
    assert_eq!(time(&mut bench, 76), (vec![Sent], vec![KEY]));
    assert_eq!(answer(&mut bench, 77, unreachable()), [Failed]);
    assert!(request(&bench).detail.contains("after 3 attempts: connection refused"));
    assert_eq!(time(&mut bench, 1000), (vec![], vec![]));
}

#[test]
fn a_provider_that_refuses_is_not_asked_again() {
    let mut bench = asked(Approval::Automatic);
    assert_eq!(answer(&mut bench, 60, CapacityAnswer::Refused("no quota".repeat(100))), [Failed]);
    let detail = request(&bench).detail;
    assert!(detail.starts_with("the provider refused it: no quota") && detail.len() < 400, "{detail}");
    assert_eq!(time(&mut bench, 1000), (vec![], vec![]));
    // Whatever is said about it later.
    assert_eq!(answer(&mut bench, 1001, accepted()), []);
}

#[test]
fn an_answer_that_is_lost_counts_as_none() {
    let mut bench = asked(Approval::Automatic);
    assert_eq!(time(&mut bench, 649), (vec![], vec![]));
    assert_eq!(time(&mut bench, 650).0, [Approved]);
    // It comes after all.
    assert_eq!(answer(&mut bench, 651, accepted()), [Accepted]);
}

#[test]
fn what_nobody_decides_and_what_brings_no_host_expires() {
    let mut bench = asked(Approval::Required);
    assert_eq!(bench.core.poll_timeout(), Some(at(250)));
    assert_eq!(time(&mut bench, 249), (vec![], vec![]));
    assert_eq!(time(&mut bench, 250).0, [Expired]);

    let mut bench = asked(Approval::Automatic);
    answer(&mut bench, 60, accepted());
    assert_eq!(time(&mut bench, 359), (vec![], vec![]));
    assert_eq!(time(&mut bench, 360).0, [Expired]);
    assert_eq!(arrives(&mut bench, 361, "c", facts()), []);
}

#[test]
fn a_need_that_is_gone_is_withdrawn_unless_it_was_sent() {
    let mut bench = asked(Approval::Required);
    assert_eq!(windows(&mut bench, 50, 80, &FULL[..2]), (vec![], vec![]), "not for a moment's sake");
    assert_eq!(windows(&mut bench, 80, 90, &FULL[..2]).0, [Withdrawn]);

    let mut bench = asked(Approval::Required);
    windows(&mut bench, 50, 70, &FULL[..2]);
    windows(&mut bench, 70, 80, &FULL);
    assert_eq!(windows(&mut bench, 80, 110, &FULL[..2]), (vec![], vec![]), "it was full again in between");

    let mut bench = asked(Approval::Automatic);
    assert_eq!(windows(&mut bench, 50, 150, &FULL[..2]), (vec![], vec![]));
}

#[test]
fn cpu_and_memory_are_asked_for_separately() {
    // Eight VMs of a GiB each on `a`, which has 7.2 for them; seven on `b`.
    let small = |from: u128, count: u128| (from..from + count).map(|vm| (vm, 0.1, 0.1)).collect::<Vec<_>>();
    let mut bench = Bench::new(asking(Approval::Required));
    for second in (0..50).step_by(10) {
        bench.report_on("b", second, &small(20, 7), Some(1.0));
        bench.report_on("a", second, &small(1, 8), Some(1.0));
    }
    let asked = request(&bench);
    assert_eq!((asked.cores, asked.memory_bytes), (0.0, (8 << 30) - asked.hosts[0].room_bytes));
    assert!(asked.reason.contains("820 MiB of memory short"), "{}", asked.reason);
}

/// Two hosts of two zones, both stuck.
fn zones(open_max: usize) -> Bench {
    let mut policy = asking(Approval::Automatic);
    policy.capacity.open_max = open_max;
    let mut bench = Bench::new(policy);
    for (name, zone) in [("a", "north"), ("b", "south")] {
        let facts = HostFacts { zone: Some(zone.to_owned()), ..facts() };
        bench.core.handle(at(0), Input::HostUp { host: host(name), facts });
    }
    let other: Vec<(u128, f64, f64)> = FULL.iter().map(|&(vm, low, high)| (vm + 10, low, high)).collect();
    for second in (0..100).step_by(10) {
        bench.report_on("b", second, &other, Some(1.0));
        bench.report_on("a", second, &FULL, Some(1.0));
    }
    bench
}

#[test]
fn each_zone_has_one_request_and_all_together_a_few() {
    assert_eq!(zones(1).core.capacity().len(), 1);
    let mut bench = zones(2);
    let zones: Vec<Option<String>> = bench.core.capacity().into_iter().map(|request| request.zone).collect();
    assert_eq!(zones, [Some("north".to_owned()), Some("south".to_owned())]);
    let states = |bench: &Bench| bench.core.capacity().into_iter().map(|request| request.state).collect::<Vec<_>>();
    arrives(&mut bench, 120, "c", facts());
    assert_eq!(states(&bench), [Sent, Sent], "it is in neither zone");
    arrives(&mut bench, 121, "d", HostFacts { zone: Some("north".to_owned()), ..facts() });
    assert_eq!(states(&bench), [Fulfilled, Sent]);
}

#[test]
fn what_is_named_and_what_is_remembered_is_bounded() {
    let mut bench = Bench::new(asking(Approval::Required));
    let crowd = |number: u64| FULL.map(|(vm, low, high)| (1000 + u128::from(number) * 10 + vm, low, high));
    for number in 0..18 {
        bench.core.handle(at(0), Input::HostUp { host: host(&format!("full-{number}")), facts: facts() });
    }
    for second in (0..60).step_by(10) {
        bench.report_on("a", second, &FULL[..3], Some(1.0));
        bench.report_on("b", second, &BUSY, Some(1.0));
        (0..18).for_each(|number| bench.report_on(&format!("full-{number}"), second, &crowd(number), Some(1.0)));
    }
    let asked = request(&bench);
    assert_eq!((asked.hosts.len(), asked.hosts_full, asked.cores), (16, 18, 3.6), "the size is that of all");
    assert!(asked.reason.starts_with("host full-0 and 17 others will be 3.60 cores short"), "{}", asked.reason);

    let mut core = Core::new(asking(Approval::Required), 1, 9);
    for number in 1..=1003 {
        let closed = CapacityRequest { key: CapacityKey { term: 1, number }, state: Denied, ..asked.clone() };
        core.restore(Restored::Capacity(Box::new(closed)));
    }
    let left: Vec<u64> = core.capacity().iter().map(|request| request.key.number).collect();
    assert_eq!((left.len(), left.last()), (1000, Some(&4)), "the oldest ones are forgotten");
}

#[test]
fn a_restart_asks_under_the_same_key_and_forgets_nothing() {
    // Killed between sending and the answer.
    let before = asked(Approval::Automatic);
    let mut bench = restart(&before, 2, asking(Approval::Automatic));
    assert!(bench.core.poll_timeout().is_some_and(|due| due <= at(60)));
    assert_eq!(time(&mut bench, 60), (vec![Sent], vec![KEY]));
    assert_eq!(windows(&mut bench, 60, 160, &FULL), (vec![], vec![]), "it is open: nothing else is asked for");
    assert_eq!(answer(&mut bench, 160, accepted()), [Accepted]);
    let mut bench = restart(&bench, 3, asking(Approval::Automatic));
    assert_eq!(time(&mut bench, 170), (vec![], vec![]));
    assert_eq!(arrives(&mut bench, 171, "c", facts()), [Fulfilled]);

    // Killed while it waited for an operator, or for the next attempt.
    let mut bench = restart(&asked(Approval::Required), 2, asking(Approval::Required));
    assert_eq!(time(&mut bench, 60), (vec![], vec![]));
    assert_eq!(approve(&mut bench, 61), (vec![Approved, Sent], vec![KEY]));
    answer(&mut bench, 62, unreachable());
    let mut bench = restart(&bench, 3, asking(Approval::Required));
    assert_eq!(time(&mut bench, 66), (vec![], vec![]));
    assert_eq!(time(&mut bench, 67), (vec![Sent], vec![KEY]));
    assert_eq!(request(&bench).attempts, 2);

    // The cool-down goes on, and a new key is new.
    let mut bench = asked(Approval::Automatic);
    answer(&mut bench, 60, CapacityAnswer::Refused(String::new()));
    let mut bench = restart(&bench, 2, asking(Approval::Automatic));
    assert_eq!(windows(&mut bench, 60, 110, &FULL), (vec![], vec![]));
    assert_eq!(windows(&mut bench, 110, 120, &FULL).1, [CapacityKey { term: 2, number: 1 }]);
}

#[test]
fn without_a_provider_nothing_is_sent_and_the_loop_is_not_kept_awake() {
    let mut nobody = asking(Approval::Required);
    nobody.capacity.has_provider = false;
    let mut bench = restart(&asked(Approval::Automatic), 2, nobody.clone());
    assert_eq!(bench.core.poll_timeout(), None);
    assert_eq!(time(&mut bench, 60), (vec![], vec![]));
    let mut bench = restart(&asked(Approval::Required), 2, nobody);
    assert_eq!(bench.core.may_decide_capacity(KEY, true), Err(CapacityRefusal::NoProvider));
    assert_eq!(approve(&mut bench, 60), (vec![], vec![]));
    bench.operate(61, OperatorRequest::DenyCapacity { key: KEY });
    assert_eq!(seen(&mut bench).0, [Denied]);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_wait_for_longer() {
    let mut bench = asked(Approval::Required);
    bench.core.handle_timeout(at(0));
    assert_eq!(bench.core.poll_timeout(), Some(at(200)));
}

#[derive(Clone, Debug)]
enum Happening {
    Windows { full: bool, seconds: u64 },
    Time { seconds: u64 },
    Decide { approves: bool, number: u64 },
    Answer { number: u64, answer: CapacityAnswer },
    Arrives { zone: Option<&'static str> },
    Restart,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let said = prop_oneof![
        "[a-z]{0,8}".prop_map(CapacityAnswer::Accepted),
        "[a-z]{0,8}".prop_map(CapacityAnswer::Refused),
        "[a-z]{0,8}".prop_map(CapacityAnswer::Unreachable),
    ];
    let happening = prop_oneof![
        6 => (any::<bool>(), 1..8u64).prop_map(|(full, windows)| Happening::Windows { full, seconds: windows * 10 }),
        2 => (0..700u64).prop_map(|seconds| Happening::Time { seconds }),
        2 => (any::<bool>(), 1..4u64).prop_map(|(approves, number)| Happening::Decide { approves, number }),
        4 => (1..4u64, said).prop_map(|(number, answer)| Happening::Answer { number, answer }),
        1 => prop_oneof![Just(None), Just(Some("north"))].prop_map(|zone| Happening::Arrives { zone }),
        1 => Just(Happening::Restart),
    ];
    proptest::collection::vec(happening, 1..40)
}

proptest! {
    #[test]
    fn whatever_happens_requests_stay_within_their_bounds(happenings in happenings(), automatic in any::<bool>()) {
        let policy = || asking(if automatic { Approval::Automatic } else { Approval::Required });
        let (mut bench, mut now, mut term, mut came) = (Bench::new(policy()), 0u64, 1u64, 0u32);
        let mut written: BTreeMap<CapacityKey, CapacityState> = BTreeMap::new();
        let mut sent: BTreeMap<CapacityKey, u32> = BTreeMap::new();
        let mut restarts = 0;
        for happening in happenings {
            match happening {
                Happening::Windows { full, seconds } => {
                    let of_a = if full { &FULL[..] } else { &FULL[..2] };
                    for _ in 0..seconds / 10 {
                        bench.report_on("b", now, &BUSY, Some(1.0));
                        bench.report_on("a", now, of_a, Some(1.0));
                        now += 10;
                    }
                }
                Happening::Time { seconds } => {
                    now += seconds;
                    bench.core.handle_timeout(at(now));
                }
                Happening::Decide { approves, number } => {
                    let key = CapacityKey { term, number };
                    let request = if approves { OperatorRequest::ApproveCapacity { key } } else { OperatorRequest::DenyCapacity { key } };
                    bench.operate(now, request);
                }
                Happening::Answer { number, answer } => {
                    bench.core.handle(at(now), Input::CapacityAnswered { key: CapacityKey { term, number }, answer });
                }
                Happening::Arrives { zone } => {
                    came += 1;
                    let facts = HostFacts { zone: zone.map(str::to_owned), ..facts() };
                    bench.core.handle(at(now), Input::HostUp { host: host(&format!("new-{came}")), facts });
                    bench.core.handle(at(now), Input::HostLost { host: host(&format!("new-{came}")) });
                }
                Happening::Restart => {
                    (term, restarts) = (term + 1, restarts + 1);
                    bench = restart(&bench, term, policy());
                }
            }
            for output in bench.take() {
                match output {
                    Output::Persist(Record::Capacity(request)) => {
                        let before = written.insert(request.key, request.state);
                        prop_assert!(before.is_none_or(CapacityState::is_open), "{before:?} -> {:?}", request.state);
                        prop_assert!(request.cores.is_finite() && request.cores >= 0.0);
                        prop_assert!(request.cores > 0.0 || request.memory_bytes > 0);
                    }
                    Output::Capacity(request) => {
                        prop_assert_eq!(written.get(&request.key), Some(&Sent));
                        *sent.entry(request.key).or_default() += 1;
                    }
                    _ => {}
                }
            }
            let open = bench.core.capacity().into_iter().filter(|request| request.state.is_open());
            let open: Vec<Option<String>> = open.map(|request| request.zone).collect();
            prop_assert!(open.len() <= 2 && open.iter().collect::<BTreeSet<_>>().len() == open.len());
            prop_assert!(sent.values().all(|times| *times <= 3 + restarts));
        }
    }
}
