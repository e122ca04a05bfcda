//! What is done about a host whose memory is too full: what is not needed is taken back first, and a VM is moved for what is left.

use gnomon_common::wire::{Action, Command, MemoryDemand, MemoryWindow, OutcomeResult, Setting, VmTerms};

use super::bench::{Bench, facts, host, policy, report_of, vm};
use super::{Input, at};
use crate::io::{OperatorRequest, Output, Record, Scope};
use crate::policy::{MigratePolicy, Mode, Policy};

/// Each VM's balloon and what its guest wants, in MiB, of the 4096 that it is defined with.
type Memory = (u64, u64);

fn moving(lead_ms: u64) -> Policy {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms, rounds: 2, ..MigratePolicy::default() };
    Policy { migrate, ..policy(Mode::Auto) }
}

/// A host of 8192 MiB, of which VMs may have 7372, and an empty one.
struct Pair {
    bench: Bench,
    balloons: Vec<Memory>,
    terms: Vec<VmTerms>,
    moves: Vec<(u64, Command)>,
}

impl Pair {
    fn new(policy: Policy, balloons: &[Memory]) -> Self {
        let terms = vec![VmTerms::default(); balloons.len()];
        Self { bench: Bench::new(policy), balloons: balloons.to_vec(), terms, moves: Vec::new() }
    }

    /// Windows of both hosts; what is commanded of balloons happens.
    fn window(&mut self, second: u64) {
        let vms: Vec<(u128, f64, f64)> = (1..=self.balloons.len()).map(|number| (number as u128, 0.2, 0.2)).collect();
        let mut report = report_of("a", second, &vms, Some(0.22));
        for ((window, &(balloon, wants)), terms) in report.vms.iter_mut().zip(&self.balloons).zip(&self.terms) {
            window.allocation.memory_bytes = 4096 << 20;
            window.terms = terms.clone();
            window.memory = Some(MemoryWindow {
                balloon_bytes: Some(balloon << 20),
                demand: Some(MemoryDemand::known(wants << 20)),
                ..MemoryWindow::default()
            });
        }
        self.bench.report_on("b", second, &[], None);
        self.bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        for command in self.bench.commands_by_the_rules() {
            match command.action {
                Action::Set(Setting::Memory { bytes }) => {
                    let number = command.vm.0.as_u128() as usize;
                    let before = std::mem::replace(&mut self.balloons[number - 1].0, bytes >> 20);
                    let memory = |bytes| vec![Setting::Memory { bytes }];
                    let result =
                        OutcomeResult::Applied { before: memory(before << 20), after: memory(bytes), took_us: 1000 };
                    self.bench.outcome_of(command.vm, second + 11, command.id, result);
                }
                Action::Migrate(_) => self.moves.push((second, command)),
                Action::DirtyRate { .. } => {
                    let result = OutcomeResult::DirtyRate { bytes_per_s: 1 << 20 };
                    self.bench.outcome_of(command.vm, second + 11, command.id, result);
                }
                _ => {}
            }
        }
        self.bench.take();
    }

    fn windows(&mut self, seconds: std::ops::Range<u64>) {
        seconds.step_by(10).for_each(|second| self.window(second));
    }

    fn balloons_mib(&self) -> u64 {
        self.balloons.iter().map(|(balloon, _)| balloon).sum()
    }
}

/// 8100 MiB in all, of which VM 1 could give more than 728 back.
const FULL: [Memory; 3] = [(3300, 1500), (2400, 2000), (2400, 2000)];

#[test]
fn what_is_not_needed_is_taken_back_and_nothing_is_moved_where_that_is_enough() {
    let mut pair = Pair::new(moving(120_000), &FULL);
    pair.windows(0..300);
    assert_eq!(pair.moves, []);
    assert!(pair.balloons_mib() <= 7372, "{:?}", pair.balloons);
    let outlook = pair.bench.core.host(&host("a")).unwrap().outlook.unwrap();
    assert_eq!((outlook.full_rounds, outlook.gives_back_bytes), (0, 0));
}

#[test]
fn while_it_is_waited_for_it_is_told_how_much_comes_back() {
    let mut pair = Pair::new(moving(120_000), &FULL);
    pair.window(0);
    let outlook = pair.bench.core.host(&host("a")).unwrap().outlook.unwrap();
    // Once the dwell time of a minute is over, a twentieth every ten seconds of the next minute: seven steps.
    let left = (0..7).fold(3300_u64, |mib, _| mib - mib / 20);
    let back = outlook.gives_back_bytes >> 20;
    assert!((3300 - left - 10..=3300 - left).contains(&back), "{back} MiB of {}", 3300 - left);
}

#[test]
fn nothing_is_waited_for_that_does_not_come_in_time_and_a_vm_goes_for_what_is_left() {
    // A look ahead that is over before the dwell time is.
    let mut pair = Pair::new(moving(50_000), &FULL);
    pair.windows(0..30);
    assert_eq!(pair.moves.len(), 1, "nothing comes back in time");

    // Beside the 992 MiB that come back, 336 are too much: the smallest VM is enough for that, and would not be for the whole 1328.
    let crowded = [(3300, 1500), (2400, 2000), (2400, 2000), (600, 500)];
    let mut pair = Pair::new(moving(120_000), &crowded);
    pair.windows(0..30);
    let [(_, command)] = &pair.moves[..] else { panic!("{:?}", pair.moves) };
    assert_eq!(command.vm, vm(4), "{}", command.reason);
    assert!(command.reason.contains("that they are going to give back are not enough"), "{}", command.reason);

    let mut unmanaged = moving(120_000);
    unmanaged.memory.manage = false;
    let mut pair = Pair::new(unmanaged, &FULL);
    pair.windows(0..30);
    assert_eq!(pair.moves.len(), 1, "nobody takes it back");
}

#[test]
fn a_guest_that_gives_nothing_back_is_waited_for_no_longer_than_it_was_looked_ahead() {
    let mut pair = Pair::new(moving(120_000), &FULL);
    for second in (0..300).step_by(10) {
        // Its balloon is stuck.
        pair.balloons[0].0 = 3300;
        pair.window(second);
    }
    // With four steps to go the 728 MiB that are too much come back no more.
    let [(first, command), ..] = &pair.moves[..] else { panic!("it is waited for all the time") };
    assert!((80..=120).contains(first), "{first}");
    assert_ne!(command.vm, vm(1), "it is being shrunk");
}

#[test]
fn what_a_vm_has_that_is_not_gnomon_s_to_take_is_not_waited_for() {
    let held: [fn(&mut Pair); 4] = [
        |pair| pair.bench.operate(1, OperatorRequest::Pause { scope: Scope::Vm(vm(1)) }),
        |pair| {
            pair.bench.operate(1, OperatorRequest::SetMode { scope: Scope::Vm(vm(1)), mode: Mode::Approve });
        },
        |pair| pair.terms[0].mode = Some(Mode::Observe),
        |pair| {
            let facts = gnomon_common::wire::HostFacts { means: vec![gnomon_common::wire::Means::CpuQuota], ..facts() };
            pair.bench.core.handle(at(1), Input::HostUp { host: host("a"), facts });
        },
    ];
    for (index, hold) in held.into_iter().enumerate() {
        let mut pair = Pair::new(moving(120_000), &FULL);
        hold(&mut pair);
        pair.windows(0..40);
        assert_eq!(pair.moves.len(), 1, "{index}");
    }
}

#[test]
fn a_host_that_is_emptied_waits_for_nothing() {
    let mut pair = Pair::new(moving(120_000), &FULL);
    pair.window(0);
    pair.bench.operate(11, OperatorRequest::Drain { host: host("a") });
    pair.bench.take();
    pair.windows(10..40);
    assert_eq!(pair.moves.len(), 1);
}

#[test]
fn where_nothing_can_go_each_vm_has_its_reason_and_many_are_counted() {
    let stuck = |bench: &Bench| bench.core.host(&host("a")).unwrap().stuck;
    let mut bench = Bench::new(moving(60_000));
    let (mut audited, full) = (Vec::new(), [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)]);
    bench.operate(1, OperatorRequest::Pause { scope: Scope::Vm(vm(3)) });
    bench.operate(1, OperatorRequest::SetMode { scope: Scope::Vm(vm(4)), mode: Mode::Observe });
    let bound = VmTerms { bound: Some("a GPU".to_owned()), ..VmTerms::default() };
    for second in [0, 10, 20, 30] {
        bench.report_on("b", second, &[(5, 0.9, 0.9), (6, 0.9, 0.9), (7, 0.9, 0.9)], Some(1.0));
        let mut report = report_of("a", second, &full, Some(1.0));
        report.vms[1].terms = bound.clone();
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        for output in bench.take() {
            if let Output::Persist(Record::Audit(audit)) = output
                && audit.verb == "no_room"
            {
                audited.push((audit.object, audit.detail));
            }
        }
    }
    let whys: Vec<String> = stuck(&bench).unwrap().vms.into_iter().map(|stays| stays.why).collect();
    let expected = [
        "no other host can have it: 1 has too little CPU",
        "a GPU",
        "it is paused by an operator",
        "its mode is observe",
    ];
    assert_eq!(whys, expected);
    let detail = "vm1: no other host can have it: 1 has too little CPU; vm2: a GPU; vm3: it is paused by an operator; \
                  vm4: its mode is observe";
    assert_eq!(audited, [("host a".to_owned(), detail.to_owned())], "said once");
    let explained = bench.core.explain(vm(2)).unwrap().lines.join("\n");
    assert!(explained.contains("none of its VMs goes; of this one: a GPU."), "{explained}");

    // With room again there is nothing to tell.
    bench.report_on("a", 40, &full[..1], Some(1.0));
    assert_eq!(stuck(&bench), None);

    let crowd: Vec<(u128, f64, f64)> = (1..=30).map(|number| (number, 0.15, 0.15)).collect();
    let mut bench = Bench::new(moving(60_000));
    for second in [0, 10, 20] {
        bench.report_on("b", second, &[(50, 0.99, 0.99), (51, 0.99, 0.99), (52, 0.99, 0.99), (53, 0.99, 0.99)], None);
        bench.report_on("a", second, &crowd, Some(0.3));
        bench.take();
    }
    let told = stuck(&bench).unwrap();
    assert_eq!((told.vms.len(), told.others), (20, 10));
    assert!(told.to_string().ends_with("; and 10 more"), "{told}");
}
