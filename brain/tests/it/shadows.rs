//! Shadows from outside: agents, API, command line, store.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use crate::database::{Database, on_every_database};
use crate::set::gnomon;
use gnomon_brain::clock::now;
use gnomon_brain::store::{Entry, Store};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentMessage, Blueprint, Boot, BrainMessage, CPU_WEIGHT_DEFAULT, Origin, Outcome, OutcomeResult,
    PacerWindow, ShadowDone, ShadowFacts, ShadowOrder, ShadowWindow, VmId, VmState,
};
use gnomon_core::{Peaks, Record, Response, Restored, Shadow, ShadowState};
use serde_json::{Value, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn blueprint() -> Blueprint {
    Blueprint {
        name: "vm-of-a".to_owned(),
        kvm: true,
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu_model: None,
        boot: Boot::Kernel { kernel: "/boot/k".to_owned(), initrd: None, command_line: String::new() },
        vcpus: 1,
        memory_bytes: 1 << 30,
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks: Vec::new(),
        interfaces: Vec::new(),
    }
}

/// A brain that makes shadows of everything, with hosts `a`, which has VM 1, and `b`, which takes shadows.
async fn brain_with_shadows(home: &Home) -> (Brain, Agent, Agent) {
    home.write_config(|config| {
        let (before, shadows) = config.split_once("[policy.shadow]").expect("the example has all settings");
        let mode = |text: &str| text.replacen("mode = \"observe\"", "mode = \"auto\"", 1);
        format!("{}[policy.shadow]{}", mode(before), mode(shadows).replacen("every_vm = false", "every_vm = true", 1))
    });
    let brain = Brain::start(home).await;
    let (mut a, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let mut greeting = hello("b", 1);
    greeting.facts.shadows = Some(ShadowFacts { shadows_max: 4, share_max: 0.25, receives: None });
    let (mut b, _) = Agent::join(brain.agents, &home.agent("b"), greeting).await;
    let mut empty = report("b", 1, 1, now().unix_ms(), vm(9), 0.1);
    empty.vms.clear();
    b.deliver(&empty).await;
    a.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.1)).await;
    (brain, a, b)
}

/// Answers the next command that is wanted; returns which VM it is about.
async fn answer(agent: &mut Agent, wanted: impl Fn(&Action) -> bool, result: OutcomeResult) -> VmId {
    loop {
        // Acknowledgements of earlier answers come in between.
        if let BrainMessage::Command(command) = agent.hear().await
            && wanted(&command.action)
        {
            let (id, vm) = (command.id, command.vm);
            let outcome = Outcome { id, vm, at: now(), origin: Origin::Command, result };
            agent.say(&AgentMessage::Outcome(outcome)).await;
            return vm;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_is_made_shown_changed_and_retired() {
    let home = Home::new();
    let (brain, mut a, mut b) = brain_with_shadows(&home).await;
    let described = OutcomeResult::Described(Box::new(blueprint()));
    answer(&mut a, |action| *action == Action::Describe, described).await;
    let copied = OutcomeResult::Shadow(ShadowDone::Copied { took_us: 5_000, copied_bytes: 0 });
    let id = answer(&mut b, |action| matches!(action, Action::Shadow(ShadowOrder::Copy(_))), copied).await;
    let started = OutcomeResult::Shadow(ShadowDone::Started { took_us: 5_000 });
    answer(&mut b, |action| *action == Action::Shadow(ShadowOrder::Start), started).await;
    brain.until("it boots", async |brain| brain.get("/api/v1/shadows").await[0]["state"] == "booting").await;

    let shown = gnomon(&home, &brain.url(), &["shadow", "list"], None).await;
    assert!(
        text(&shown.stdout).contains("booting") && text(&shown.stdout).contains("vm-of-a"),
        "{}",
        text(&shown.stdout)
    );
    let one = gnomon(&home, &brain.url(), &["shadow", "show", "vm-of-a", "--json"], None).await;
    let one: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&one["id"], &one["host"]), (&json!(id.to_string()), &json!("b")));
    assert!(brain.metric("gnomon_brain_shadows{state=\"booting\"}").await >= 1.0);

    // It tells of itself, and is paced at the fidelity that an operator wants.
    let changed = gnomon(&home, &brain.url(), &["shadow", "fidelity", "vm-of-a", "0.25"], None).await;
    assert!(changed.status.success(), "{}", text(&changed.stderr));
    let (status, problem) = brain.put("/api/v1/vms/vm-of-a/shadow", json!({ "fidelity": 2.0 })).await;
    assert_eq!(status, 422, "{problem}");
    let mut window = report("b", 1, 2, now().unix_ms() + 1000, id, 0.01);
    window.vms[0].shadow = Some(ShadowWindow { of: vm(1), pacer: Some(PacerWindow::default()) });
    b.deliver(&window).await;
    let paced = OutcomeResult::Shadow(ShadowDone::Paced);
    answer(&mut b, |action| matches!(action, Action::Shadow(ShadowOrder::Pace(_))), paced).await;
    brain
        .until("it is paced", async |brain| brain.get("/api/v1/vms/vm-of-a/shadow").await["ordered"].is_object())
        .await;

    // Nothing is forecast so far ahead yet: no size can be tried, and the answer says why.
    let attempt = async |load: &str| {
        gnomon(&home, &brain.url(), &["shadow", "try", "vm-of-a", "--cpu", "2", "--load", load], None).await
    };
    let tried = attempt("forecast:2h").await;
    let said = text(&tried.stderr);
    assert!(tried.status.code() == Some(1) && said.contains("no forecast that reaches as far"), "{said}");
    assert_eq!(attempt("2h").await.status.code(), Some(2), "that is no load");
    let no_size = json!({ "cpu_cores": 0.0, "ahead_ms": 60_000 });
    let (status, problem) = brain.post("/api/v1/vms/vm-of-a/shadow/trial", no_size).await;
    assert_eq!(status, 422, "{problem}");

    let dry = gnomon(&home, &brain.url(), &["shadow", "retire", "vm-of-a", "--dry-run"], None).await;
    assert!(text(&dry.stdout).contains("would be done"), "{}", text(&dry.stdout));
    let asked = gnomon(&home, &brain.url(), &["shadow", "retire", "vm-of-a"], None).await;
    assert_eq!(asked.status.code(), Some(2), "nobody is there to be asked");
    let retired = gnomon(&home, &brain.url(), &["shadow", "retire", "vm-of-a", "--yes"], None).await;
    assert!(retired.status.success(), "{}", text(&retired.stderr));
    let gone = OutcomeResult::Shadow(ShadowDone::Retired);
    answer(&mut b, |action| *action == Action::Shadow(ShadowOrder::Retire), gone).await;
    brain.until("it is gone", async |brain| brain.get("/api/v1/shadows").await == json!([])).await;
    let (status, problem) = brain.put("/api/v1/vms/vm-of-a/shadow", json!({ "fidelity": 0.5 })).await;
    assert_eq!(status, 404, "{problem}");
    let audit = brain.get("/api/v1/audit").await.to_string();
    assert!(audit.contains("shadow_retire") && audit.contains("retiring -> retired"), "{audit}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brain_that_was_killed_goes_on_with_a_shadow_where_it_was() {
    let home = Home::new();
    let (brain, mut a, mut b) = brain_with_shadows(&home).await;
    let described = OutcomeResult::Described(Box::new(blueprint()));
    answer(&mut a, |action| *action == Action::Describe, described).await;
    let command = b.command().await;
    assert!(matches!(command.action, Action::Shadow(ShadowOrder::Copy(_))), "{command:?}");
    brain.stop().await;

    let brain = Brain::start(&home).await;
    let shadow = brain.get("/api/v1/shadows").await[0].clone();
    assert_eq!((&shadow["id"], &shadow["state"]), (&json!(command.vm.to_string()), &json!("placed")));
    let mut greeting = hello("b", 1);
    greeting.facts.shadows = Some(ShadowFacts { shadows_max: 4, share_max: 0.25, receives: None });
    let (mut b, _) = Agent::join(brain.agents, &home.agent("b"), greeting).await;
    let mut empty = report("b", 1, 2, now().unix_ms() + 1000, vm(9), 0.1);
    empty.vms.clear();
    b.deliver(&empty).await;
    let again = b.command().await;
    assert_eq!(again.vm, command.vm);
    assert!(matches!(again.action, Action::Shadow(ShadowOrder::Copy(_))) && again.fence > command.fence, "{again:?}");
    brain.stop().await;
}

on_every_database!(shadows_are_given_back_as_they_were_last_and_an_operators_word_is_never_forgotten);

async fn shadows_are_given_back_as_they_were_last_and_an_operators_word_is_never_forgotten(database: Database) {
    let at = |second: u64| Timestamp::from_unix_ms(second * 1000);
    let made = |number: u128, state: ShadowState, since: u64| Shadow {
        id: vm(100 + number),
        of: vm(number),
        name: format!("vm{number}"),
        state,
        since: at(since),
        detail: String::new(),
        host: None,
        blueprint: Some(blueprint()),
        size: None,
        defined_bytes: 3 << 20,
        resizes_to: None,
        resizes_from: at(7),
        peaks: Peaks { disk_bytes_per_s: 4, network_bytes_per_s: 5 },
        fidelity: Some(0.25),
        memory_floor_bytes: 0,
        failures: 1,
        ends: 0,
        wanted: at(1),
        moved: None,
        parks: false,
        asked_for: false,
        kept_off: false,
        response: Response::default(),
        trial: None,
        avoids: vec![(crate::agent::host("b"), at(99))],
        copies: None,
        copy_failures: 1,
    };
    let store = database.open().await;
    let entry = |shadow: &Shadow| Entry::Record(Box::new(Record::Shadow(Box::new(shadow.clone()))));
    let (first, placed) = (made(1, ShadowState::Wanted, 1), made(1, ShadowState::Placed, 5));
    let off = Shadow { kept_off: true, ..made(2, ShadowState::Retired, 2) };
    let gone = made(3, ShadowState::Retired, 3);
    store.commit(&[entry(&first), entry(&off), entry(&gone), entry(&placed)]).await.unwrap();
    drop(store);

    let store = database.open().await;
    let restored = async || {
        let mut shadows = Vec::new();
        let mut sink = |restored| {
            if let Restored::Shadow(shadow) = restored {
                shadows.push(*shadow);
            }
        };
        store.restore(at(0), &mut sink).await.unwrap();
        shadows
    };
    assert_eq!(restored().await, [off.clone(), placed.clone()]);
    assert_eq!(store.prune(at(0), at(1_000_000), at(0)).await.unwrap(), 1);
    assert_eq!(restored().await, [off.clone(), placed.clone()]);

    // That there is to be one: said of a VM that is there, of one that was until lately, of one that is gone, and of one that had a later shadow, before that.
    let asked = |number, since| Shadow { asked_for: true, ..made(number, ShadowState::Retired, since) };
    let (kept, lately, forgotten) = (asked(4, 10), asked(5, 11), asked(6, 12));
    let (before, after) = (asked(7, 14), Shadow { id: vm(207), wanted: at(2), ..asked(7, 13) });
    let vms = [(4, Some("a"), 1), (5, None, 1_000_000), (6, None, 20), (7, Some("a"), 1)];
    let vms = vms.map(|(number, host, since)| Record::Vm {
        vm: vm(number),
        name: format!("vm{number}"),
        host: host.map(crate::agent::host),
        state: VmState::Running,
        at: at(since),
    });
    let there = Record::Host { host: crate::agent::host("a"), facts: hello("a", 1).facts, connected: true, at: at(1) };
    let mut entries = [&kept, &lately, &forgotten, &before, &after].map(entry).to_vec();
    entries.extend(vms.into_iter().chain([there]).map(|record| Entry::Record(Box::new(record))));
    store.commit(&entries).await.unwrap();
    let said = [&off, &placed, &kept, &lately, &forgotten, &after, &before].map(Clone::clone);
    assert_eq!(restored().await, said);
    // With the third one goes what is known of its production.
    assert_eq!(store.prune(at(0), at(1_000_000), at(0)).await.unwrap(), 3);
    assert_eq!(restored().await, [off, placed, kept, lately, after]);
}
