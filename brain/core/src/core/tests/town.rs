//! A small world for shadows: hosts that obey or do not, links and brains that can fail at any time.

mod report;
mod restart;

use std::collections::{BTreeMap, VecDeque};

use super::bench::{at, facts, host, policy, vm};
use crate::Core;
use crate::io::{CommandRecord, Input, Lesson, OperatorRequest, Output, Record};
use crate::job::FitResult;
use crate::policy::{Mode, Policy, ShadowPolicy};
use crate::shadow::{Shadow, ShadowState};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Base, Blueprint, Boot, CPU_WEIGHT_DEFAULT, Command, CommandId, DiskBlueprint, DiskCopy, HostFacts, HostId,
    Imaged, Imaging, KeptCopies, Load, Moved, Origin, Outcome, OutcomeResult, Receiving, RefusedCommand, Report,
    ShadowDone, ShadowFacts, ShadowOrder, ShadowSize, ShadowSpec, Unshadowable, VmId, VmTerms,
};

pub(super) const HOSTS: [&str; 3] = ["a", "b", "c"];
pub(super) const WINDOW_S: u64 = 10;

/// What a shadow of this town may use.
const QUOTA_CORES: f64 = 0.1;

pub(super) fn shadowing() -> Policy {
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

pub(super) fn blueprint(name: &str) -> Blueprint {
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
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks: vec![DiskBlueprint { device: "vda".to_owned(), bus: "virtio".to_owned(), size_bytes: 1 << 30, base }],
        interfaces: Vec::new(),
    }
}

/// A shadow on a host.
#[derive(Clone, Debug)]
pub(super) struct There {
    pub(super) of: VmId,
    pub(super) memory_bytes: u64,
    /// What it may use, if it was made by an order.
    pub(super) size: Option<ShadowSize>,
    pub(super) runs: bool,
    pub(super) paced: Option<Load>,
    /// So many windows pass before its agent has read that it is a shadow.
    pub(super) unread: u32,
}

/// Hosts, the VMs on them, the store, and the brain.
pub(super) struct Town {
    pub(super) core: Core,
    pub(super) policy: Policy,
    pub(super) term: u64,
    pub(super) second: u64,
    pub(super) up: BTreeMap<HostId, bool>,
    pub(super) facts: BTreeMap<HostId, HostFacts>,
    pub(super) productions: BTreeMap<u128, HostId>,
    /// How all of them are defined.
    pub(super) definition: Blueprint,
    /// The quota that all of them have, in cores.
    pub(super) quota_cores: f64,
    /// What each wants, in cores.
    pub(super) demand: BTreeMap<u128, f64>,
    /// What each waits for a CPU besides, though its quota lets it run, in cores.
    pub(super) waits: BTreeMap<u128, f64>,
    /// What a request to a disk takes each, in milliseconds; those that are not named have no disk.
    pub(super) request_ms: BTreeMap<u128, f64>,
    /// What one takes a shadow on a host, likewise.
    pub(super) shadows_request_ms: BTreeMap<HostId, f64>,
    /// Which share of what its pacer wants a shadow gets on a host; all where it is not said.
    pub(super) serves: BTreeMap<HostId, f64>,
    /// Whether forecasts are fitted.
    pub(super) fits: bool,
    fitted: Vec<FitResult>,
    pub(super) shadows: BTreeMap<(HostId, VmId), There>,
    /// Whether productions' disks have no base, and their hosts would copy them.
    pub(super) copyable: bool,
    /// Copies of them, by host and shadow; `false` where it is not what was made.
    pub(super) copies: BTreeMap<(HostId, VmId), bool>,
    /// Whether agents know where copies are.
    pub(super) keeps: bool,
    /// So many copies come to nothing: an agent is killed meanwhile, or a VM ends.
    pub(super) failing_copies: u32,
    /// A host that says that it takes copies, and has no room for any.
    pub(super) full_receiver: Option<HostId>,
    /// No order to copy disks is answered: it takes long.
    pub(super) slow_copies: bool,
    /// No order to make a shadow is answered: copies are read before.
    pub(super) slow_makes: bool,
    /// What the owners of productions say.
    pub(super) terms: VmTerms,
    /// Kept by the store, the latest last; and what was learnt, by subject.
    pub(super) kept: Vec<Shadow>,
    lessons: BTreeMap<String, Lesson>,
    pub(super) commands: VecDeque<(HostId, Command)>,
    pub(super) outcomes: VecDeque<(HostId, Outcome)>,
    pub(super) audit: Vec<String>,
    pub(super) notices: Vec<String>,
    /// Guests that have less do not boot.
    pub(super) boots_from_bytes: u64,
    pub(super) has_pacer: bool,
    /// Moves on their way: how many windows they still take, from where, and by which command.
    pub(super) journeys: Vec<(u32, HostId, Command)>,
    /// How many windows a move takes.
    pub(super) journey_windows: u32,
    /// The latest report of each host, and the commands that were not answered: what a restart gives back.
    reports: BTreeMap<HostId, Report>,
    open: BTreeMap<CommandId, CommandRecord>,
    /// Every command that was given, in order.
    pub(super) given: Vec<(HostId, Command)>,
    /// What agents answer in place of obeying, by the kind of order.
    pub(super) refuses: BTreeMap<&'static str, OutcomeResult>,
}

pub(super) fn kind(action: &Action) -> &'static str {
    match action {
        Action::Describe => "describe",
        Action::Image(_) => "image",
        Action::Shadow(ShadowOrder::Copy(_)) => "copy",
        Action::Shadow(ShadowOrder::Start) => "start",
        Action::Shadow(ShadowOrder::Pace(_)) => "pace",
        Action::Shadow(ShadowOrder::Retire) => "retire",
        Action::Shadow(ShadowOrder::Resize(_)) => "resize",
        _ => "other",
    }
}

/// The host at an address.
fn receiver(to: &Receiving) -> HostId {
    host(to.uri.trim_start_matches("qemu+tls://").trim_end_matches("/system"))
}

/// Whether a move is this VM's, to this host.
fn goes((_, _, command): &(u32, HostId, Command), production: VmId, host: &HostId) -> bool {
    command.vm == production && matches!(&command.action, Action::Migrate(migration) if migration.to == *host)
}

impl Town {
    pub(super) fn new() -> Self {
        Self::of(shadowing())
    }

    pub(super) fn of(policy: Policy) -> Self {
        let shadows = Some(ShadowFacts { shadows_max: 4, share_max: 0.25, receives: None });
        let facts_of = |name: &&str| (host(name), HostFacts { shadows: shadows.clone(), ..facts() });
        let mut town = Self {
            core: Core::new(policy.clone(), 1, 1),
            policy,
            term: 1,
            second: 0,
            up: HOSTS.iter().map(|name| (host(name), true)).collect(),
            facts: HOSTS.iter().map(facts_of).collect(),
            productions: BTreeMap::from([(1, host("a"))]),
            definition: blueprint("vm"),
            quota_cores: 1.0,
            demand: BTreeMap::new(),
            waits: BTreeMap::new(),
            request_ms: BTreeMap::new(),
            shadows_request_ms: BTreeMap::new(),
            serves: BTreeMap::new(),
            fits: false,
            fitted: Vec::new(),
            shadows: BTreeMap::new(),
            copyable: false,
            copies: BTreeMap::new(),
            keeps: true,
            failing_copies: 0,
            full_receiver: None,
            slow_copies: false,
            slow_makes: false,
            terms: VmTerms::default(),
            kept: Vec::new(),
            lessons: BTreeMap::new(),
            commands: VecDeque::new(),
            outcomes: VecDeque::new(),
            audit: Vec::new(),
            notices: Vec::new(),
            boots_from_bytes: 0,
            has_pacer: true,
            journeys: Vec::new(),
            journey_windows: 1,
            reports: BTreeMap::new(),
            open: BTreeMap::new(),
            given: Vec::new(),
            refuses: BTreeMap::new(),
        };
        for name in HOSTS {
            town.connect(&host(name));
        }
        town
    }

    /// Has copies sent to a host from now on.
    pub(super) fn let_receive(&mut self, name: &str) {
        let (uri, directory) = (format!("qemu+tls://{name}/system"), "/received".to_owned());
        let receives = Some(Box::new(Receiving { uri, directory, owner: 0, group: 0, bytes_max: 1 << 40 }));
        let facts = self.facts.get_mut(&host(name)).and_then(|facts| facts.shadows.as_mut());
        facts.unwrap().receives = receives;
        self.connect(&host(name));
    }

    fn receives(&self, name: &HostId) -> Option<&Receiving> {
        self.facts[name].shadows.as_ref()?.receives.as_deref()
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.second)
    }

    pub(super) fn connect(&mut self, name: &HostId) {
        let copies: Vec<VmId> = self.copies.keys().filter(|(on, _)| on == name).map(|(_, shadow)| *shadow).collect();
        let copies = self.keeps.then_some(copies);
        let copies = KeptCopies { made: copies.clone(), received: copies.filter(|_| self.receives(name).is_some()) };
        let facts = HostFacts { copies, ..self.facts[name].clone() };
        let input = Input::HostUp { host: name.clone(), facts };
        self.feed(input);
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.core.handle(self.now(), input);
        self.drain();
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist(Record::Shadow(shadow)) => self.kept.push(*shadow),
                Output::Persist(Record::Lesson { lesson, .. }) => {
                    self.lessons.insert(lesson.subject(), lesson);
                }
                Output::Persist(Record::Audit(audit)) => {
                    self.audit.push(format!("{} {} {}: {}", audit.actor, audit.verb, audit.object, audit.detail));
                }
                Output::Fit(job) if self.fits => self.fitted.push(job.run()),
                Output::Persist(Record::Command(record)) => {
                    let is_open = record.outcome.is_none() && !record.unanswered;
                    let _ = if is_open {
                        self.open.insert(record.command.id, record)
                    } else {
                        self.open.remove(&record.command.id)
                    };
                }
                Output::Command { host, command } => {
                    self.given.push((host.clone(), command.clone()));
                    self.commands.push_back((host, command));
                }
                Output::Notice(notice) => self.notices.push(format!("{}: {}", notice.kind, notice.text)),
                _ => {}
            }
        }
    }

    /// Delivers what is on its way, until nothing is.
    pub(super) fn settle(&mut self) {
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

    pub(super) fn obey(&mut self, to: &HostId, command: &Command) {
        if matches!(command.action, Action::Migrate(_)) {
            return self.journeys.push((self.journey_windows, to.clone(), command.clone()));
        }
        if self.slow_copies && matches!(command.action, Action::Image(_)) {
            let shadow = self.shadow().id;
            self.copies.insert((to.clone(), shadow), true);
            if let Action::Image(Imaging { send_to: Some(target), .. }) = &command.action {
                self.copies.insert((receiver(target), shadow), false);
            }
            return;
        }
        if self.slow_makes && kind(&command.action) == "copy" {
            return;
        }
        let result = self.refuses.get(kind(&command.action)).cloned().unwrap_or_else(|| self.carry_out(to, command));
        let outcome = Outcome { id: command.id, vm: command.vm, at: self.now(), origin: Origin::Command, result };
        self.outcomes.push_back((to.clone(), outcome));
    }

    pub(super) fn carry_out(&mut self, to: &HostId, command: &Command) -> OutcomeResult {
        let key = (to.clone(), command.vm);
        match &command.action {
            Action::Describe => match self.productions.iter().find(|(number, _)| vm(**number) == command.vm) {
                Some((number, home)) if home == to => {
                    let mut blueprint = Blueprint { name: format!("vm{number}"), ..self.definition.clone() };
                    if self.copyable {
                        blueprint.disks[0].base = Base::Copyable;
                    }
                    OutcomeResult::Described(Box::new(blueprint))
                }
                _ => OutcomeResult::Refused(RefusedCommand::UnknownVm),
            },
            Action::Image(imaging) => {
                let is_here = self.productions.iter().any(|(number, on)| vm(*number) == command.vm && on == to);
                if !is_here {
                    return OutcomeResult::Refused(RefusedCommand::UnknownVm);
                }
                let target = imaging.send_to.as_ref().map(receiver);
                let half = target.as_ref().map(|target| (target.clone(), imaging.shadow));
                let is_there = half.as_ref().is_some_and(|half| self.copies.contains_key(half));
                if target.is_some() && target == self.full_receiver {
                    return OutcomeResult::Unshadowable(Unshadowable::NoRoom(
                        "no storage pool is active there".to_owned(),
                    ));
                }
                if self.failing_copies > 0 || is_there {
                    self.failing_copies = self.failing_copies.saturating_sub(u32::from(!is_there));
                    self.copies.remove(&(to.clone(), imaging.shadow));
                    // The host that they are sent to may be away just then.
                    self.copies.extend(half.map(|half| (half, false)));
                    return OutcomeResult::Failed { error: "its backup was cancelled".to_owned(), retryable: true };
                }
                let path = match target {
                    Some(target) => {
                        self.copies.remove(&(to.clone(), imaging.shadow));
                        self.copies.insert((target.clone(), imaging.shadow), true);
                        format!("/received/{target}/{}", imaging.shadow)
                    }
                    None => {
                        self.copies.entry((to.clone(), imaging.shadow)).or_insert(true);
                        format!("/copies/{to}/{}", imaging.shadow)
                    }
                };
                let copy = DiskCopy { path, bytes: 1 << 20, sha256: "0a".repeat(32) };
                OutcomeResult::Imaged(Box::new(Imaged { took_us: 1_000, disks: vec![("vda".to_owned(), copy)] }))
            }
            Action::Shadow(ShadowOrder::Copy(spec)) => {
                let ShadowSpec { of, size, .. } = &**spec;
                let home = self.productions.iter().find(|(number, _)| vm(**number) == *of).map(|(_, home)| home);
                assert_ne!(home, Some(to), "never made on its production's host");
                assert!(!self.is_awaited(*of, to), "never made where its production is going: {:#?}", self.audit);
                for copy in spec.blueprint.copies() {
                    let is_sent = copy.path.starts_with("/received/");
                    assert!(
                        !is_sent || copy.path.starts_with(&format!("/received/{to}/")),
                        "sent elsewhere: {:#?}",
                        self.audit
                    );
                    if !is_sent && self.receives(to).is_some() {
                        return OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned()));
                    }
                    let of_path =
                        |((on, id), _): &(&(HostId, VmId), &bool)| copy.path.ends_with(&format!("/{on}/{id}"));
                    match self.copies.iter().find(of_path) {
                        None => return OutcomeResult::Unshadowable(Unshadowable::Missing(copy.path.clone())),
                        Some((_, false)) => {
                            return OutcomeResult::Unshadowable(Unshadowable::Damaged(copy.path.clone()));
                        }
                        Some((_, true)) => {}
                    }
                }
                let is_copied = |disk: &DiskBlueprint| !matches!(disk.base, Base::None | Base::Copyable);
                if !spec.blueprint.disks.iter().all(is_copied) {
                    return OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned()));
                }
                let there = There {
                    of: *of,
                    memory_bytes: size.memory_bytes,
                    size: Some(*size),
                    runs: false,
                    paced: None,
                    unread: 2,
                };
                self.shadows.entry(key).or_insert(there).size = Some(*size);
                OutcomeResult::Shadow(ShadowDone::Copied { took_us: 1_000, copied_bytes: 0 })
            }
            Action::Shadow(ShadowOrder::Start) => match self.shadows.get_mut(&key) {
                Some(there) => {
                    let of = there.of;
                    assert!(!self.journeys.iter().any(|journey| goes(journey, of, to)), "never started there either");
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
            Action::Shadow(ShadowOrder::Resize(size)) => match self.shadows.get_mut(&key).filter(|there| there.runs) {
                Some(there) => {
                    let has = there.size.replace(*size);
                    assert_eq!(has.map(|has| has.vcpus), Some(size.vcpus), "a guest that runs keeps its vCPUs");
                    assert!(size.memory_bytes <= there.memory_bytes, "nor has it more than it is defined with");
                    OutcomeResult::Shadow(ShadowDone::Resized { took_us: 1_000 })
                }
                None => OutcomeResult::Unshadowable(Unshadowable::NoShadow),
            },
            Action::Shadow(ShadowOrder::Retire) => {
                self.shadows.remove(&key);
                if self.keeps {
                    self.copies.remove(&key);
                }
                OutcomeResult::Shadow(ShadowDone::Retired)
            }
            other => OutcomeResult::Failed { error: format!("{other:?}"), retryable: true },
        }
    }

    fn is_awaited(&self, production: VmId, host: &HostId) -> bool {
        self.journeys.iter().any(|journey| goes(journey, production, host))
    }

    /// Moves go on; those that are over are answered.
    fn travel(&mut self) {
        self.journeys.iter_mut().for_each(|(left, ..)| *left -= 1);
        for (_, from, command) in self.journeys.extract_if(.., |(left, ..)| *left == 0) {
            let Action::Migrate(migration) = &command.action else { unreachable!("it is a move") };
            let number = command.vm.0.as_u128();
            if self.productions.get(&number) != Some(&from) {
                continue;
            }
            self.productions.insert(number, migration.to.clone());
            let result = OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() });
            let at = at(self.second);
            let outcome = Outcome { id: command.id, vm: command.vm, at, origin: Origin::Command, result };
            self.outcomes.push_back((from, outcome));
        }
        self.settle();
    }

    /// A window passes: every host that is up reports.
    pub(super) fn window(&mut self) {
        self.travel();
        for name in HOSTS {
            self.report(&host(name));
            self.settle();
        }
        for fit in std::mem::take(&mut self.fitted) {
            self.feed(Input::FitDone(Box::new(fit)));
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

    pub(super) fn windows(&mut self, count: usize) {
        (0..count).for_each(|_| self.window());
    }

    pub(super) fn shadow(&self) -> Shadow {
        self.core.shadow(vm(1)).unwrap_or_else(|| panic!("no shadow: {:#?}", self.audit)).shadow
    }

    pub(super) fn state(&self) -> Option<ShadowState> {
        self.core.shadow(vm(1)).map(|view| view.shadow.state)
    }

    pub(super) fn paced(&self) -> Option<Load> {
        self.shadows.values().find_map(|there| there.paced)
    }

    pub(super) fn operator(&mut self, request: OperatorRequest) {
        self.feed(Input::Operator { actor: "ann".to_owned(), request });
        self.settle();
    }
}
