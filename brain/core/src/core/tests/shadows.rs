//! Shadows in a small world: hosts that obey or do not, links and brains that fail at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Base, Blueprint, Boot, Command, DiskBlueprint, HostFacts, HostId, Load, Origin, Outcome, OutcomeResult,
    PacerWindow, RefusedCommand, ShadowDone, ShadowFacts, ShadowOrder, ShadowSpec, ShadowWindow, Unshadowable, VmId,
    VmState,
};
use proptest::prelude::*;

use super::bench::{at, facts, host, policy, report_of, vm};
use crate::Core;
use crate::io::{Input, OperatorRequest, Output, Record, Restored};
use crate::policy::{Mode, Policy, ShadowPolicy};
use crate::shadow::{Shadow, ShadowRefusal, ShadowState};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const WINDOW_S: u64 = 10;

fn shadowing() -> Policy {
    let mut policy = policy(Mode::Auto);
    policy.memory.manage = false;
    policy.shadow = ShadowPolicy {
        mode: Mode::Auto,
        every_vm: true,
        lead_ms: 60_000,
        pace_ms: 20_000,
        boot_timeout_ms: 120_000,
        cool_down_ms: 60_000,
        ..ShadowPolicy::default()
    };
    policy
}

fn blueprint(name: &str) -> Blueprint {
    let base = Base::Image { path: "/images/base.qcow2".to_owned(), format: "qcow2".to_owned() };
    Blueprint {
        name: name.to_owned(),
        kvm: true,
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu_model: None,
        boot: Boot::Bios,
        vcpus: 1,
        memory_bytes: 1 << 30,
        disks: vec![DiskBlueprint { device: "vda".to_owned(), bus: "virtio".to_owned(), size_bytes: 1 << 30, base }],
        interfaces: Vec::new(),
    }
}

/// A shadow on a host.
#[derive(Clone, Debug)]
struct There {
    of: VmId,
    memory_bytes: u64,
    runs: bool,
    paced: Option<Load>,
}

/// Hosts, the VMs on them, the store, and the brain.
struct Town {
    core: Core,
    policy: Policy,
    term: u64,
    second: u64,
    up: BTreeMap<HostId, bool>,
    facts: BTreeMap<HostId, HostFacts>,
    productions: BTreeMap<u128, HostId>,
    /// What each wants, in cores.
    demand: BTreeMap<u128, f64>,
    shadows: BTreeMap<(HostId, VmId), There>,
    /// Kept by the store, the latest last.
    kept: Vec<Shadow>,
    commands: VecDeque<(HostId, Command)>,
    outcomes: VecDeque<(HostId, Outcome)>,
    audit: Vec<String>,
    notices: Vec<String>,
    /// Guests that have less do not boot.
    boots_from_bytes: u64,
    has_pacer: bool,
    /// What agents answer in place of obeying, by the kind of order.
    refuses: BTreeMap<&'static str, OutcomeResult>,
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::Describe => "describe",
        Action::Shadow(ShadowOrder::Copy(_)) => "copy",
        Action::Shadow(ShadowOrder::Start) => "start",
        Action::Shadow(ShadowOrder::Pace(_)) => "pace",
        Action::Shadow(ShadowOrder::Retire) => "retire",
        _ => "other",
    }
}

impl Town {
    fn new() -> Self {
        Self::of(shadowing())
    }

    fn of(policy: Policy) -> Self {
        let shadows = Some(ShadowFacts { shadows_max: 4, share_max: 0.25 });
        let facts_of = |name: &&str| (host(name), HostFacts { shadows, ..facts() });
        let mut town = Self {
            core: Core::new(policy.clone(), 1, 1),
            policy,
            term: 1,
            second: 0,
            up: HOSTS.iter().map(|name| (host(name), true)).collect(),
            facts: HOSTS.iter().map(facts_of).collect(),
            productions: BTreeMap::from([(1, host("a"))]),
            demand: BTreeMap::new(),
            shadows: BTreeMap::new(),
            kept: Vec::new(),
            commands: VecDeque::new(),
            outcomes: VecDeque::new(),
            audit: Vec::new(),
            notices: Vec::new(),
            boots_from_bytes: 0,
            has_pacer: true,
            refuses: BTreeMap::new(),
        };
        for name in HOSTS {
            town.connect(&host(name));
        }
        town
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    fn connect(&mut self, name: &HostId) {
        let input = Input::HostUp { host: name.clone(), facts: self.facts[name].clone() };
        self.feed(input);
    }

    fn feed(&mut self, input: Input) {
        self.core.handle(self.now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist(Record::Shadow(shadow)) => self.kept.push(*shadow),
                Output::Persist(Record::Audit(audit)) => {
                    self.audit.push(format!("{} {} {}: {}", audit.actor, audit.verb, audit.object, audit.detail));
                }
                Output::Command { host, command } => self.commands.push_back((host, command)),
                Output::Notice(notice) => self.notices.push(format!("{}: {}", notice.kind, notice.text)),
                _ => {}
            }
        }
    }

    /// The brain is killed: what was on its way from it may be lost, and what its store has is all that it knows.
    fn restart_brain(&mut self) {
        self.term += 1;
        self.core = Core::new(self.policy.clone(), 1, self.term);
        for (name, facts) in &self.facts {
            self.core.restore(Restored::Host { host: name.clone(), facts: facts.clone() });
        }
        let mut latest: BTreeMap<VmId, (usize, &Shadow)> = BTreeMap::new();
        for (place, shadow) in self.kept.iter().enumerate() {
            latest.insert(shadow.id, (place, shadow));
        }
        let mut latest: Vec<(usize, &Shadow)> = latest.into_values().collect();
        latest.sort_by_key(|(place, _)| *place);
        for (_, shadow) in latest {
            self.core.restore(Restored::Shadow(Box::new(shadow.clone())));
        }
        self.drain();
        for name in HOSTS {
            if self.up[&host(name)] {
                self.connect(&host(name));
            }
        }
    }

    /// Delivers what is on its way, until nothing is.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if let Some((to, command)) = self.commands.pop_front() {
                if self.up[&to] {
                    self.obey(&to, &command);
                }
            } else if let Some((from, outcome)) = self.outcomes.pop_front() {
                if self.up[&from] {
                    self.feed(Input::Outcome { host: from, outcome });
                }
            } else {
                return;
            }
        }
        panic!("orders without end: {:?}", self.audit.iter().rev().take(20).collect::<Vec<_>>());
    }

    fn obey(&mut self, to: &HostId, command: &Command) {
        let result = self.refuses.get(kind(&command.action)).cloned().unwrap_or_else(|| self.carry_out(to, command));
        let outcome = Outcome { id: command.id, vm: command.vm, at: self.now(), origin: Origin::Command, result };
        self.outcomes.push_back((to.clone(), outcome));
    }

    fn carry_out(&mut self, to: &HostId, command: &Command) -> OutcomeResult {
        let key = (to.clone(), command.vm);
        match &command.action {
            Action::Describe => match self.productions.iter().find(|(number, _)| vm(**number) == command.vm) {
                Some((number, home)) if home == to => {
                    OutcomeResult::Described(Box::new(blueprint(&format!("vm{number}"))))
                }
                _ => OutcomeResult::Refused(RefusedCommand::UnknownVm),
            },
            Action::Shadow(ShadowOrder::Copy(spec)) => {
                let ShadowSpec { of, size, .. } = &**spec;
                let home = self.productions.iter().find(|(number, _)| vm(**number) == *of).map(|(_, home)| home);
                assert_ne!(home, Some(to), "never made on its production's host");
                let there = There { of: *of, memory_bytes: size.memory_bytes, runs: false, paced: None };
                self.shadows.entry(key).or_insert(there);
                OutcomeResult::Shadow(ShadowDone::Copied { took_us: 1_000, copied_bytes: 0 })
            }
            Action::Shadow(ShadowOrder::Start) => match self.shadows.get_mut(&key) {
                Some(there) => {
                    there.runs = there.memory_bytes >= self.boots_from_bytes;
                    OutcomeResult::Shadow(ShadowDone::Started { took_us: 1_000 })
                }
                None => OutcomeResult::Unshadowable(Unshadowable::NoShadow),
            },
            Action::Shadow(ShadowOrder::Pace(profile)) => match self.shadows.get_mut(&key) {
                Some(there) if self.has_pacer => {
                    there.paced = profile.steps.first().map(|step| step.load);
                    OutcomeResult::Shadow(ShadowDone::Paced)
                }
                Some(_) => OutcomeResult::Failed { error: "no pacer answers".to_owned(), retryable: true },
                None => OutcomeResult::Unshadowable(Unshadowable::NoShadow),
            },
            Action::Shadow(ShadowOrder::Retire) => {
                self.shadows.remove(&key);
                OutcomeResult::Shadow(ShadowDone::Retired)
            }
            other => OutcomeResult::Failed { error: format!("{other:?}"), retryable: true },
        }
    }

    /// A window passes: every host that is up reports.
    fn window(&mut self) {
        for name in HOSTS {
            self.report(&host(name));
            self.settle();
        }
        for _ in 0..WINDOW_S {
            self.second += 1;
            if self.core.poll_timeout().is_some_and(|due| due <= self.now()) {
                self.core.handle_timeout(self.now());
                self.drain();
                self.settle();
            }
        }
    }

    fn windows(&mut self, count: usize) {
        (0..count).for_each(|_| self.window());
    }

    fn report(&mut self, name: &HostId) {
        if !self.up[name] {
            return;
        }
        let here = self.productions.iter().filter(|(_, home)| *home == name);
        let demands: Vec<(u128, f64, f64)> = here
            .map(|(&number, _)| {
                let wants = self.demand.get(&number).copied().unwrap_or(0.5);
                (number, wants, wants)
            })
            .collect();
        let second = self.second.saturating_sub(WINDOW_S);
        let mut report = report_of(name.as_str(), second, &demands, Some(1.0));
        for ((_, id), there) in self.shadows.iter().filter(|((on, _), _)| on == name) {
            let mut window = report_of(name.as_str(), second, &[(9, 0.05, 0.05)], Some(0.1)).vms.remove(0);
            let pacer = there.runs.then_some(PacerWindow { wanted: Load::default(), made: Load::default() });
            window.vm = *id;
            window.state = if there.runs { VmState::Running } else { VmState::ShutOff };
            window.allocation.memory_bytes = there.memory_bytes;
            window.shadow = Some(ShadowWindow { of: there.of, pacer: pacer.filter(|_| self.has_pacer) });
            report.vms.push(window);
        }
        self.feed(Input::Report(Box::new(report)));
    }

    fn shadow(&self) -> Shadow {
        self.core.shadow(vm(1)).unwrap_or_else(|| panic!("no shadow: {:#?}", self.audit)).shadow
    }

    fn state(&self) -> Option<ShadowState> {
        self.core.shadow(vm(1)).map(|view| view.shadow.state)
    }

    fn paced(&self) -> Option<Load> {
        self.shadows.values().find_map(|there| there.paced)
    }

    fn operator(&mut self, request: OperatorRequest) {
        self.feed(Input::Operator { actor: "ann".to_owned(), request });
        self.settle();
    }
}

#[test]
fn a_production_gets_a_shadow_on_another_host_which_paces_its_load() {
    let mut town = Town::new();
    town.windows(4);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(town.shadows.len(), 1);
    assert_ne!(shadow.host, Some(host("a")));
    let size = shadow.size.unwrap();
    assert!((size.cpu_cores - 0.1).abs() < 1e-9 && size.memory_bytes == 128 << 20, "{size:?}");
    // Fidelity 0.5 by policy: a tenth of half a core.
    assert!((town.paced().unwrap().cpu_cores - 0.05).abs() < 1e-9);
    let orders = ["describe", "copy", "start"];
    let audit = town.audit.join("\n");
    assert!(audit.contains("its production is to have a shadow") && audit.contains("wanted -> placed"), "{audit}");
    assert!(orders.iter().all(|_| audit.contains("gnomon command vm")), "{audit}");
}

#[test]
fn nothing_is_made_where_policy_or_the_owner_says_no_and_something_where_the_owner_says_yes() {
    let mut policy = shadowing();
    policy.shadow.mode = Mode::Observe;
    let mut town = Town::of(policy);
    town.windows(4);
    assert_eq!(town.state(), None);
    assert_eq!(town.core.may_make_shadow(vm(1)), Err(ShadowRefusal::Off));
    let mut policy = shadowing();
    policy.shadow.every_vm = false;
    let mut town = Town::of(policy);
    town.windows(4);
    assert_eq!(town.state(), None);
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(3);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
    assert!(matches!(town.core.may_make_shadow(vm(1)), Err(ShadowRefusal::There { .. })));
    assert_eq!(town.core.may_make_shadow(vm(7)), Err(ShadowRefusal::UnknownVm(vm(7))));
}

#[test]
fn fidelity_changes_what_a_running_shadow_does_at_once() {
    let mut town = Town::new();
    town.windows(4);
    for (fidelity, cores) in [(Some(0.0), 0.0), (Some(0.125), 0.025), (Some(1.0), 0.05), (None, 0.05)] {
        town.operator(OperatorRequest::SetFidelity { vm: vm(1), fidelity });
        let paced = town.paced().unwrap().cpu_cores;
        assert!((paced - cores).abs() < 1e-9, "{fidelity:?}: {paced}");
    }
}

#[test]
fn a_shadow_leaves_the_host_that_its_production_comes_to() {
    let mut town = Town::new();
    town.windows(4);
    let (id, before) = (town.shadow().id, town.shadow().host.unwrap());
    town.productions.insert(1, before.clone());
    town.windows(6);
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.id), (ShadowState::Pacing, id));
    assert_ne!(shadow.host, Some(before));
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn a_shadow_leaves_a_full_host_before_any_production_and_is_parked_rather_than_chased() {
    let mut town = Town::new();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    // The host's own VMs take all but what the shadow has.
    for number in 10..14 {
        town.productions.insert(number, first.clone());
        town.demand.insert(number, 0.9);
    }
    town.policy.shadow.every_vm = false;
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(5);
    let shadow = town.shadow();
    assert_ne!(shadow.host, Some(first), "{:#?}", town.audit);
    assert!(town.audit.iter().any(|line| line.contains("its host fills up, and shadows leave first")));
    assert!(!town.audit.iter().any(|line| line.contains("migrate")), "{:#?}", town.audit);
}

#[test]
fn a_shadow_is_retired_with_its_production_and_by_an_operator_who_can_have_it_back() {
    let mut town = Town::new();
    town.windows(4);
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    assert_eq!((town.state(), town.shadows.len()), (None, 0));
    town.restart_brain();
    town.windows(4);
    assert_eq!(town.state(), None, "an operator's word outlives the brain");
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
    town.productions.clear();
    town.windows(8);
    assert_eq!((town.state(), town.shadows.len()), (None, 0), "{:#?}", town.audit);
    assert!(town.audit.iter().any(|line| line.contains("its production is gone")));
}

#[test]
fn a_guest_that_does_not_come_up_is_tried_with_more_memory() {
    let mut town = Town::new();
    town.boots_from_bytes = 400 << 20;
    town.windows(60);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(shadow.size.unwrap().memory_bytes, 512 << 20);
}

#[test]
fn an_image_without_a_pacer_still_measures_its_host() {
    let mut town = Town::new();
    town.has_pacer = false;
    town.windows(12);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing);
    assert!(shadow.detail.contains("does not pace"), "{}", shadow.detail);
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn where_no_host_takes_it_a_shadow_is_parked_with_the_reasons_and_tried_again() {
    let mut town = Town::new();
    for facts in town.facts.values_mut() {
        facts.shadows = None;
    }
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(3);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Parked);
    assert!(shadow.detail.contains("b: it takes no shadows; c: it takes no shadows"), "{}", shadow.detail);
    for facts in town.facts.values_mut() {
        facts.shadows = Some(ShadowFacts { shadows_max: 1, share_max: 0.25 });
    }
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
}

#[test]
fn a_host_that_cannot_make_it_is_avoided_and_another_one_takes_it() {
    let mut town = Town::new();
    let missing = OutcomeResult::Unshadowable(Unshadowable::Missing("/images/base.qcow2".to_owned()));
    town.refuses.insert("copy", missing);
    town.windows(2);
    // Both refused: nothing is left anywhere.
    assert!(town.shadows.is_empty());
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.avoids.len()), (ShadowState::Parked, 2), "{:#?}", town.audit);
}

#[test]
fn a_shadow_that_nobody_knows_of_is_sent_away() {
    let mut town = Town::new();
    town.windows(4);
    let stray = There { of: vm(1), memory_bytes: 1, runs: true, paced: None };
    town.shadows.insert((host("c"), vm(77)), stray);
    town.windows(2);
    assert_eq!(town.shadows.len(), 1);
    assert!(town.notices.iter().any(|notice| notice.starts_with("shadow_stray")), "{:?}", town.notices);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
}

#[test]
fn a_paused_fleet_gets_no_orders() {
    let mut town = Town::new();
    town.operator(OperatorRequest::Pause { scope: crate::io::Scope::Fleet });
    town.windows(6);
    assert!(town.shadows.is_empty());
    town.operator(OperatorRequest::Resume { scope: crate::io::Scope::Fleet });
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
}

#[test]
fn another_zone_is_preferred_to_an_emptier_host() {
    let mut town = Town::new();
    for (name, zone) in [("a", "one"), ("b", "one"), ("c", "two")] {
        town.facts.get_mut(&host(name)).unwrap().zone = Some(zone.to_owned());
    }
    town.productions.insert(5, host("c"));
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(4);
    assert_eq!(town.shadow().host, Some(host("c")), "{:#?}", town.audit);
}

/// What can happen to the small world.
#[derive(Clone, Debug)]
enum Turn {
    Window,
    KillBrain,
    /// The brain dies while so many orders are on their way; the agents get those, and their answers find nobody.
    KillBrainAmid,
    LoseCommands,
    LoseAnswers,
    LinkDown(usize),
    LinkUp(usize),
    Move(usize),
    /// A shadow's guest ends by itself.
    Crash,
    /// A shadow is undefined by hand.
    Vanish,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => Just(Turn::Window),
        1 => Just(Turn::KillBrain),
        1 => Just(Turn::KillBrainAmid),
        1 => Just(Turn::LoseCommands),
        1 => Just(Turn::LoseAnswers),
        1 => (0..3usize).prop_map(Turn::LinkDown),
        2 => (0..3usize).prop_map(Turn::LinkUp),
        1 => (0..3usize).prop_map(Turn::Move),
        1 => Just(Turn::Crash),
        1 => Just(Turn::Vanish),
    ];
    prop::collection::vec(turn, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever dies or is lost in whatever state: once all is well there is one shadow, where it may be, and nothing besides.
    #[test]
    fn neither_orphans_nor_duplicates_are_left(turns in turns()) {
        let mut town = Town::new();
        for turn in turns {
            match turn {
                Turn::Window => town.window(),
                Turn::KillBrain => town.restart_brain(),
                Turn::KillBrainAmid => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    while let Some((to, command)) = town.commands.pop_front() {
                        if town.up[&to] {
                            town.obey(&to, &command);
                        }
                    }
                    town.outcomes.clear();
                    town.restart_brain();
                }
                Turn::LoseCommands => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    town.commands.clear();
                    town.second += WINDOW_S;
                }
                Turn::LoseAnswers => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    while let Some((to, command)) = town.commands.pop_front() {
                        if town.up[&to] {
                            town.obey(&to, &command);
                        }
                    }
                    town.outcomes.clear();
                    town.second += WINDOW_S;
                }
                Turn::LinkDown(which) => {
                    town.up.insert(host(HOSTS[which]), false);
                    town.feed(Input::HostLost { host: host(HOSTS[which]) });
                }
                Turn::LinkUp(which) => {
                    if !town.up.insert(host(HOSTS[which]), true).unwrap_or(true) {
                        town.connect(&host(HOSTS[which]));
                    }
                }
                Turn::Move(which) => {
                    town.productions.insert(1, host(HOSTS[which]));
                }
                Turn::Crash => town.shadows.values_mut().for_each(|there| there.runs = false),
                Turn::Vanish => town.shadows.clear(),
            }
            let running: BTreeSet<VmId> =
                town.shadows.iter().filter(|(_, there)| there.runs).map(|((_, id), _)| *id).collect();
            let copies = town.shadows.values().filter(|there| there.runs).count();
            prop_assert_eq!(running.len(), copies, "one shadow twice: {:#?}", town.audit);
        }
        for name in HOSTS {
            if !town.up.insert(host(name), true).unwrap_or(true) {
                town.connect(&host(name));
            }
        }
        // Failures leave pauses and hosts that are avoided; all of them end.
        let mut quiet = 0;
        for _ in 0..600 {
            town.window();
            let well = town.state() == Some(ShadowState::Pacing) && town.shadows.len() == 1;
            quiet = if well { quiet + 1 } else { 0 };
            if quiet == 12 {
                break;
            }
        }
        let ((on, id), there) = town.shadows.iter().next().expect("a shadow");
        prop_assert!(quiet == 12, "{:?} {:?}: {:#?}", town.state(), town.shadows, town.audit);
        prop_assert!(there.runs && *id == town.shadow().id);
        prop_assert_ne!(on, &town.productions[&1]);
    }
}
