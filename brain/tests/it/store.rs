//! The store on every database: what it keeps, and what happens when it cannot.

use crate::agent::{Agent, PATIENCE, hello, host, report, vm};
use crate::brain::{Brain, Home, count};
use crate::database::{Database, on_every_database};
use gnomon_brain::clock::now;
use gnomon_brain::secret;
use gnomon_brain::store::{
    Candidate, Entry, Lead, Location, RAISE_VERB, SqlStore, Store, StoreError, StoredReport, TAKE_OVER_VERB, TERM_JUMP,
};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, Allocation, Command, CommandId, Fence, Means, Migration, Origin, Outcome, OutcomeResult,
    Report, Sequence, Setting, Whereabouts, frame,
};
use gnomon_core::{Audit, CommandRecord, Ending, Expectation, ExpectationState, Hold, Mode, Record, Restored, Scope};
use serde_json::json;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

fn stored(sequence: u64, received: Timestamp) -> StoredReport {
    let report = report("a", 1, sequence, sequence * 1000, vm(1), 0.3);
    let payload = frame::encode(&report).unwrap()[frame::PREFIX_BYTES..].to_vec();
    let Report { host, epoch, sequence, start, .. } = report;
    StoredReport { host, epoch, sequence, start, received, payload }
}

fn entry(sequence: u64, received: Timestamp) -> Entry {
    Entry::Report(stored(sequence, received))
}

fn audit(detail: &str, at: Timestamp) -> Entry {
    let line = Audit { at, actor: "test".into(), verb: "look".into(), object: "fleet".into(), detail: detail.into() };
    Entry::Record(Box::new(Record::Audit(line)))
}

on_every_database!(
    terms_only_rise_even_above_a_foreign_one_and_across_reopening,
    a_batch_is_written_as_a_whole_and_tells_what_was_new,
    reports_are_restored_oldest_first_and_one_that_no_longer_decodes_is_skipped,
    reports_of_a_clock_that_was_far_ahead_are_not_restored_however_late_it_is_by_now,
    text_with_a_zero_character_is_no_reason_to_fail,
    pruning_takes_what_is_old_and_leaves_the_rest,
    hosts_and_vms_that_were_not_seen_for_long_are_forgotten_unless_something_open_is_about_them,
    a_commit_gets_its_turn_while_much_is_pruned,
    nobody_leads_beside_a_leader_and_one_that_was_deposed_writes_nothing,
    a_lease_is_renewed_while_a_batch_takes_long,
    what_is_expected_comes_back_before_the_reports_until_it_is_over,
    moves_and_resizes_that_were_answered_lately_are_told_to_a_new_core,
    a_take_over_displaces_who_leads_and_is_kept_for_one_place_for_a_while,
    new_terms_for_agents_sake_are_counted_from_the_last_take_over_on,
);

fn candidate(name: &str) -> Candidate {
    Candidate { name: name.into(), lease: Duration::from_millis(400) }
}

/// Leads; the term.
async fn term(store: &SqlStore, at_least: u64) -> u64 {
    match store.lead(&candidate("a"), at_least).await.unwrap() {
        Lead::Ours { term, .. } => term,
        Lead::Theirs { leader } => panic!("{leader} leads"),
    }
}

async fn nobody_leads_beside_a_leader_and_one_that_was_deposed_writes_nothing(database: Database) {
    let (first, second) = (database.open().await, database.open().await);
    let (a, b) = (candidate("a"), candidate("b"));
    assert_eq!(first.lead(&a, 6).await.unwrap(), Lead::Ours { term: 7, ends: !database.is_sqlite() });
    assert_eq!(second.lead(&b, 0).await.unwrap(), Lead::Theirs { leader: "a".into() });
    first.commit(&[entry(1, now())]).await.unwrap();
    // A renewal moves the end; without another, the lease ends. A lock of SQLite's does not, so it is given up.
    tokio::time::sleep(a.lease / 2).await;
    first.renew_lease(&a).await.unwrap();
    tokio::time::sleep(a.lease * 3 / 4).await;
    assert_eq!(second.lead(&b, 0).await.unwrap(), Lead::Theirs { leader: "a".into() });
    if database.is_sqlite() {
        first.resign().await.unwrap();
    } else {
        tokio::time::sleep(a.lease / 2).await;
    }
    assert_eq!(second.lead(&b, 0).await.unwrap(), Lead::Ours { term: 8, ends: !database.is_sqlite() });

    let deposed = |error| matches!(error, StoreError::Deposed { leader } if leader == "b");
    assert!(deposed(first.commit(&[entry(2, now())]).await.unwrap_err()));
    assert!(deposed(first.prune(now(), now(), now()).await.unwrap_err()), "there is something old to find");
    if !database.is_sqlite() {
        assert!(deposed(first.renew_lease(&a).await.unwrap_err()));
        assert!(deposed(first.resign().await.unwrap_err()));
        let lines = second.audit(10).await.unwrap();
        let said: Vec<_> = lines.iter().map(|line| (line.verb.as_str(), line.detail.as_str())).collect();
        assert_eq!(said, [("take_lease", "term 8; a leads no more"), ("take_lease", "term 7; nobody has led before")]);
    }
    second.commit(&[entry(3, now())]).await.unwrap();
    assert_eq!(database.count("SELECT COUNT(*) FROM report WHERE sequence = 2").await, 0);
    assert_eq!(database.count("SELECT COUNT(*) FROM report").await, 2);
    second.resign().await.unwrap();
    let third = database.open().await;
    assert!(matches!(third.lead(&candidate("c"), 0).await.unwrap(), Lead::Ours { term: 9, .. }), "at once");
}

async fn a_lease_is_renewed_while_a_batch_takes_long(database: Database) {
    let (first, second) = (database.open().await, database.open().await);
    let [a, b] = ["a", "b"].map(|name| Candidate { lease: Duration::from_secs(1), ..candidate(name) });
    assert!(matches!(first.lead(&a, 0).await.unwrap(), Lead::Ours { .. }));
    if let Location::Sqlite(path) = database.location() {
        // Somebody else writes.
        let mut other = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            sqlx::query("COMMIT").execute(&mut other).await.unwrap();
        });
    } else {
        // Each row takes as long as three leases.
        let slow =
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NEW; END'";
        database.execute(slow).await;
        database.execute("CREATE TRIGGER slow BEFORE INSERT ON report FOR EACH ROW EXECUTE FUNCTION slow()").await;
    }
    let batch = [entry(1, now())];
    let mut written = first.commit(&batch);
    let (begun, mut renewals) = (std::time::Instant::now(), 0);
    let renew = async || {
        tokio::time::sleep(a.lease / 4).await;
        timeout(a.lease / 2, first.renew_lease(&a)).await.expect("it waits for the batch").unwrap();
        assert_eq!(second.lead(&b, 0).await.unwrap(), Lead::Theirs { leader: "a".into() });
    };
    loop {
        tokio::select! {
            fresh = &mut written => {
                assert_eq!(fresh.unwrap(), [true]);
                break;
            }
            () = renew() => renewals += 1,
        }
    }
    assert!(begun.elapsed() > a.lease && renewals > 1, "{renewals} renewals in {:?}", begun.elapsed());
    assert_eq!(second.lead(&b, 0).await.unwrap(), Lead::Theirs { leader: "a".into() });
}

async fn moves_and_resizes_that_were_answered_lately_are_told_to_a_new_core(database: Database) {
    let store = database.open().await;
    let migration = Migration {
        to: host("b"),
        uri: "qemu+tls://b/system".to_owned(),
        timeout_ms: 60_000,
        bandwidth_bytes_per_s: None,
        auto_converge: false,
        copy_storage: false,
    };
    let not_moved = |whereabouts| OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts };
    let (answered, parked) = (not_moved(Whereabouts::Here), not_moved(Whereabouts::Parked));
    let record = |number: u64, action: &Action, hours: u64, result: Option<&OutcomeResult>| {
        let (id, issued) = (CommandId { term: 1, number }, now() - Duration::from_hours(hours));
        let fence = Fence { term: 1, generation: number };
        let command =
            Command { id, vm: vm(1), action: action.clone(), fence, time_to_live_ms: 1, reason: "full".into() };
        let outcome = |result: &OutcomeResult| Outcome {
            id,
            vm: vm(1),
            at: issued,
            origin: Origin::Command,
            result: result.clone(),
        };
        let outcome = result.map(outcome);
        let (unanswered, by_operator, approved_by) = (outcome.is_none(), false, None);
        CommandRecord { host: host("a"), command, issued, outcome, unanswered, by_operator, approved_by }
    };
    let (moves, measures) = (Action::Migrate(migration), Action::DirtyRate { period_s: 1 });
    let rate = OutcomeResult::DirtyRate { bytes_per_s: 1 };
    let resizes = Action::Set(Setting::CpuQuota { cores: Some(1.0) });
    let applied = OutcomeResult::Applied { before: Vec::new(), after: Vec::new(), took_us: 1 };
    let records = [
        record(1, &moves, 48, Some(&answered)),
        record(2, &moves, 2, Some(&answered)),
        record(3, &moves, 1, None),
        record(4, &measures, 1, Some(&rate)),
        record(5, &moves, 1, Some(&answered)),
        record(6, &moves, 1, Some(&parked)),
        record(7, &resizes, 1, Some(&applied)),
        record(8, &resizes, 0, Some(&applied)),
    ];
    let entries = records.iter().map(|record| Entry::Record(Box::new(Record::Command(record.clone()))));
    store.commit(&entries.collect::<Vec<_>>()).await.unwrap();
    let (mut tried, mut under_way) = (Vec::new(), Vec::new());
    let mut sink = |restored| match restored {
        Restored::Tried(record) => tried.push(record.command.id.number),
        Restored::Command(record) => under_way.push(record.command.id.number),
        _ => {}
    };
    store.restore(now(), &mut sink).await.unwrap();
    assert_eq!(under_way, [6], "what stands still between two hosts is under way");
    assert_eq!(tried, [2, 3, 5, 8]);
}

async fn what_is_expected_comes_back_before_the_reports_until_it_is_over(database: Database) {
    let expected = |number: u64, state: ExpectationState| {
        let of = json!({"kind": "promise", "before_cores": 0.5});
        let command = CommandId { term: 1, number };
        let sent = json!({"command": command, "vm": vm(1), "of": of, "from": null, "lasts_ms": 60_000,
            "state": "sent", "cost": null});
        let mut expectation: Expectation = serde_json::from_value(sent).unwrap();
        expectation.state = state;
        expectation
    };
    let ago = |hours: u64| now() - Duration::from_secs(hours * 3600);
    let entry_of = |expectation: &Expectation| {
        Entry::Record(Box::new(Record::Expectation { expectation: Box::new(expectation.clone()), at: ago(2) }))
    };
    let store = database.open().await;
    let (sent, awaited) = (expected(1, ExpectationState::Sent), expected(1, ExpectationState::Awaited));
    let over = expected(2, ExpectationState::Over(Ending::NotDone));
    let (late, gone) = (expected(3, ExpectationState::Sent), expected(2, ExpectationState::Sent));
    let entries =
        [entry_of(&late), entry_of(&sent), entry_of(&gone), entry(1, now()), entry_of(&awaited), entry_of(&over)];
    store.commit(&entries).await.unwrap();
    drop(store);

    let store = database.open().await;
    let (mut expectations, mut reports) = (Vec::new(), 0);
    let mut sink = |restored| match restored {
        Restored::Expectation(expectation) => {
            assert_eq!(reports, 0, "what was seen of it the reports tell");
            expectations.push(*expectation);
        }
        Restored::Report(_) => reports += 1,
        _ => {}
    };
    store.restore(Timestamp::default(), &mut sink).await.unwrap();
    assert_eq!((expectations, reports), (vec![awaited, late], 1));
    assert_eq!(store.prune(Timestamp::default(), ago(1), Timestamp::default()).await.unwrap(), 3);
}

/// The audit line of an operator's take-over.
fn taken(at: Timestamp) -> Audit {
    Audit { at, actor: "uid 7".into(), verb: TAKE_OVER_VERB.into(), object: "fleet".into(), detail: "it hangs".into() }
}

async fn a_take_over_displaces_who_leads_and_is_kept_for_one_place_for_a_while(database: Database) {
    let (first, second, third) = (database.open().await, database.open().await, database.open().await);
    let take = async |store: &SqlStore, keep| store.take_over("b", keep, |_| taken(now())).await;
    let ours = |term| Lead::Ours { term, ends: !database.is_sqlite() };
    let begun = now();
    assert_eq!(first.lead(&candidate("a/1"), 0).await.unwrap(), ours(1));
    let seen = second.leadership().await.unwrap();
    assert_eq!((seen.holder.as_str(), seen.leads, seen.term), ("a/1", true, 1));
    assert!(seen.since.is_some_and(|since| begun <= since && since <= now()), "{seen:?}");
    if database.is_sqlite() {
        // Whoever runs on a file goes on in its term: it has to be stopped.
        assert!(take(&second, Duration::ZERO).await.unwrap_err().to_string().contains("stopped"));
        first.resign().await.unwrap();
        assert!(!second.leadership().await.unwrap().leads);
        assert_eq!(take(&second, Duration::ZERO).await.unwrap().term, 1);
        drop(second);
        assert_eq!(third.lead(&candidate("c/1"), 0).await.unwrap(), ours(1 + TERM_JUMP + 1));
        return;
    }
    let lease = candidate("b/1").lease;
    let before = take(&second, lease).await.unwrap();
    assert_eq!((before.holder.as_str(), before.leads, before.term), ("a/1", true, 1));
    let deposed = |error| matches!(error, StoreError::Deposed { leader } if leader == "b");
    assert!(deposed(first.commit(&[entry(1, now())]).await.unwrap_err()));
    assert!(deposed(first.renew_lease(&candidate("a/1")).await.unwrap_err()));
    let seen = third.leadership().await.unwrap();
    assert_eq!((seen.holder.as_str(), seen.leads, seen.term), ("b/", false, 1 + TERM_JUMP));
    // Neither another place nor one whose name begins alike.
    for other in ["a/2", "bb/1"] {
        assert_eq!(third.lead(&candidate(other), 0).await.unwrap(), Lead::Theirs { leader: "b".into() }, "{other}");
    }
    assert_eq!(second.lead(&candidate("b/2"), 0).await.unwrap(), ours(1 + TERM_JUMP + 1));
    let lines = second.audit(10).await.unwrap();
    let said: Vec<_> = lines.iter().map(|line| (line.verb.as_str(), line.detail.as_str())).collect();
    let led = ("take_lease", "term 1002; an operator has had b take over");
    assert_eq!(said, [led, (TAKE_OVER_VERB, "it hangs"), ("take_lease", "term 1; nobody has led before")]);

    // Where that brain does not come, any may lead once the time is over.
    let fourth = database.open().await;
    take(&fourth, lease).await.unwrap();
    assert!(matches!(third.lead(&candidate("a/2"), 0).await.unwrap(), Lead::Theirs { .. }));
    tokio::time::sleep(lease * 3 / 2).await;
    assert_eq!(third.lead(&candidate("a/2"), 0).await.unwrap(), ours(2 * (1 + TERM_JUMP) + 1));
}

async fn new_terms_for_agents_sake_are_counted_from_the_last_take_over_on(database: Database) {
    let store = database.open().await;
    let raise = |at: Timestamp| Audit { verb: RAISE_VERB.into(), ..taken(at) };
    let ago = |seconds: u64| now() - Duration::from_secs(seconds);
    let times = [ago(5000), ago(90), ago(60)];
    let lines: Vec<Entry> = times.iter().map(|at| Entry::Record(Box::new(Record::Audit(raise(*at))))).collect();
    store.commit(&lines).await.unwrap();
    store.commit(&[audit("something else", ago(50))]).await.unwrap();
    assert_eq!(store.raises(ago(3600)).await.unwrap(), times[1..]);
    store.take_over("b", Duration::ZERO, |_| taken(ago(75))).await.unwrap();
    assert_eq!(store.raises(ago(3600)).await.unwrap(), times[2..]);
    store.take_over("b", Duration::ZERO, |_| taken(now())).await.unwrap();
    assert_eq!(store.raises(ago(3600)).await.unwrap(), []);
}

async fn text_with_a_zero_character_is_no_reason_to_fail(database: Database) {
    let store = database.open().await;
    let state = gnomon_common::wire::VmState::Running;
    let named = Record::Vm { vm: vm(1), name: "a\0b".into(), host: None, state, at: now() };
    store.commit(&[Entry::Record(Box::new(named)), audit("a\0b", now())]).await.unwrap();
    assert_eq!(store.audit(1).await.unwrap()[0].detail, "a\u{fffd}b");
    assert_eq!(database.count("SELECT COUNT(*) FROM vm WHERE name = 'a\u{fffd}b'").await, 1);
}

async fn terms_only_rise_even_above_a_foreign_one_and_across_reopening(database: Database) {
    let store = database.open().await;
    assert_eq!(term(&store, 0).await, 1);
    assert_eq!(term(&store, 0).await, 2);
    assert_eq!(term(&store, 70).await, 71);
    drop(store);
    let store = database.open().await;
    assert_eq!(term(&store, 0).await, 72);
    assert!(matches!(store.lead(&candidate("a"), u64::MAX).await, Err(StoreError::TermsUsedUp(_))));
}

async fn a_batch_is_written_as_a_whole_and_tells_what_was_new(database: Database) {
    let store = database.open().await;
    let batch = [entry(1, now()), entry(2, now()), entry(1, now())];
    assert_eq!(store.commit(&batch).await.unwrap(), [true, true, false]);
    assert_eq!(store.acknowledged(&host("a"), AgentEpoch(1)).await.unwrap(), Sequence(2));
    assert_eq!(store.acknowledged(&host("a"), AgentEpoch(2)).await.unwrap(), Sequence(0));
    assert_eq!(store.acknowledged(&host("b"), AgentEpoch(1)).await.unwrap(), Sequence(0));
}

async fn reports_are_restored_oldest_first_and_one_that_no_longer_decodes_is_skipped(database: Database) {
    let store = database.open().await;
    let garbled = Entry::Report(StoredReport { payload: vec![0xff; 7], ..stored(9, now()) });
    let old = entry(1, now() - Duration::from_secs(3600));
    store.commit(&[entry(4, now()), garbled, entry(2, now()), old]).await.unwrap();
    let mut sequences = Vec::new();
    let since = now() - Duration::from_secs(60);
    store
        .restore(since, &mut |restored| {
            if let Restored::Report(report) = restored {
                sequences.push(report.sequence.0);
            }
        })
        .await
        .unwrap();
    assert_eq!(sequences, [2, 4]);
}

async fn reports_of_a_clock_that_was_far_ahead_are_not_restored_however_late_it_is_by_now(database: Database) {
    let store = database.open().await;
    // The window of a second that begins at `sequence` seconds, received when that was 299 or 300 seconds ahead.
    let received = |sequence: u64, ahead_s| Timestamp::from_unix_ms((sequence - ahead_s) * 1000);
    store.commit(&[entry(1000, received(1000, 299)), entry(1001, received(1001, 300))]).await.unwrap();
    let mut sequences = Vec::new();
    store
        .restore(Timestamp::default(), &mut |restored| {
            if let Restored::Report(report) = restored {
                sequences.push(report.sequence.0);
            }
        })
        .await
        .unwrap();
    assert_eq!(sequences, [1000]);
}

async fn pruning_takes_what_is_old_and_leaves_the_rest(database: Database) {
    let store = database.open().await;
    let ago = |hours: u64| now() - Duration::from_secs(hours * 3600);
    let old = (1..=200).map(|sequence| entry(sequence, ago(20 + sequence)));
    let entries: Vec<_> = old.chain([entry(201, ago(1)), audit("old", ago(50)), audit("new", ago(1))]).collect();
    store.commit(&entries).await.unwrap();
    assert_eq!(store.prune(ago(10), ago(40), ago(1)).await.unwrap(), 201, "200 reports and one line");
    assert_eq!(store.prune(ago(10), ago(40), ago(1)).await.unwrap(), 0);
    assert_eq!(database.count("SELECT sequence FROM report").await, 201);
    let lines = store.audit(10).await.unwrap();
    assert_eq!(lines.iter().map(|line| line.detail.as_str()).collect::<Vec<_>>(), ["new"]);
}

async fn hosts_and_vms_that_were_not_seen_for_long_are_forgotten_unless_something_open_is_about_them(
    database: Database,
) {
    let store = database.open().await;
    let ago = |hours: u64| now() - Duration::from_secs(hours * 3600);
    let commit = async |records: Vec<Record>| {
        let entries: Vec<_> = records.into_iter().map(|record| Entry::Record(Box::new(record))).collect();
        store.commit(&entries).await.unwrap();
    };
    let prune = async || store.prune(Timestamp::default(), ago(40), Timestamp::default()).await.unwrap();
    let at_host = |name, connected, hours| Record::Host {
        host: host(name),
        facts: hello(name, 1).facts,
        connected,
        at: ago(hours),
    };
    let of_vm = |number, at: Option<&str>, hours| {
        let (name, host, state) = (format!("vm{number}"), at.map(host), gnomon_common::wire::VmState::ShutOff);
        Record::Vm { vm: vm(number), name, host, state, at: ago(hours) }
    };
    let has = |number, hours| Record::Allocation {
        vm: vm(number),
        allocation: Allocation::default(),
        baselines: Vec::new(),
        at: ago(hours),
    };

    // A brain that was killed has left one as connected, and it has not come back.
    commit(vec![at_host("lost", true, 50)]).await;
    term(&store, 0).await;
    assert_eq!(database.count("SELECT COUNT(*) FROM host WHERE connected = 1").await, 0);
    prune().await;
    assert_eq!(database.count("SELECT COUNT(*) FROM host").await, 1, "it was not there a moment ago, nor was anybody");

    let paused = |scope, hold| Record::Scope { scope, hold };
    let drained = |since| Record::Drain { host: host("drained"), since };
    let set = |setting: Option<Setting>| Record::Setting { vm: vm(8), means: Means::Memory, setting };
    let cautious = |mode| Record::Mode { scope: Scope::Vm(vm(9)), mode };
    let command = |outcome: Option<Outcome>| {
        let action = Action::Release;
        let (id, fence, reason) = (CommandId { term: 1, number: 1 }, Fence { term: 1, generation: 1 }, String::new());
        let command = Command { id, vm: vm(10), action, fence, time_to_live_ms: 1, reason };
        let (host, issued, approved_by) = (host("a"), ago(1), None);
        Record::Command(CommandRecord {
            host,
            command,
            issued,
            outcome,
            unanswered: false,
            by_operator: false,
            approved_by,
        })
    };
    commit(vec![
        at_host("a", true, 50),
        at_host("gone", false, 50),
        at_host("late", false, 1),
        at_host("kept", false, 50),
        at_host("drained", false, 50),
        at_host("paused", false, 50),
        of_vm(1, Some("a"), 50),
        of_vm(2, Some("gone"), 50),
        of_vm(3, None, 50),
        of_vm(4, None, 1),
        of_vm(5, Some("late"), 50),
        of_vm(6, Some("forgotten"), 50),
        of_vm(7, Some("kept"), 50),
        of_vm(8, None, 50),
        of_vm(9, None, 50),
        of_vm(10, None, 50),
        has(1, 60),
        has(1, 50),
        has(2, 60),
        has(2, 50),
        paused(Scope::Vm(vm(7)), Some(Hold::Paused)),
        paused(Scope::Host(host("paused")), Some(Hold::Paused)),
        drained(Some(ago(50))),
        set(Some(Setting::Memory { bytes: 1 })),
        cautious(Some(Mode::Observe)),
        command(None),
    ])
    .await;
    prune().await;
    let left = async |table: &'static str| {
        let mut names = database.names(table).await;
        names.sort_unstable();
        names
    };
    assert_eq!(left("SELECT host FROM host").await, ["a", "drained", "kept", "late", "lost", "paused"]);
    assert_eq!(left("SELECT name FROM vm").await, ["vm1", "vm10", "vm4", "vm5", "vm7", "vm8", "vm9"]);
    assert_eq!(database.count("SELECT COUNT(*) FROM allocation").await, 1, "the newest of a VM that is there");

    let outcome = Outcome {
        id: CommandId { term: 1, number: 1 },
        vm: vm(10),
        at: ago(1),
        origin: Origin::Command,
        result: OutcomeResult::DryRun,
    };
    commit(vec![
        paused(Scope::Vm(vm(7)), None),
        paused(Scope::Host(host("paused")), None),
        drained(None),
        set(None),
        cautious(None),
        command(Some(outcome)),
    ])
    .await;
    prune().await;
    assert_eq!(left("SELECT host FROM host").await, ["a", "late", "lost"]);
    assert_eq!(left("SELECT name FROM vm").await, ["vm1", "vm4", "vm5"]);
}

async fn a_commit_gets_its_turn_while_much_is_pruned(database: Database) {
    const OLD: i64 = 12_000;
    let store = Arc::new(database.open().await);
    let old = now() - Duration::from_secs(7200);
    store.commit(&(1..=OLD as u64).map(|sequence| entry(sequence, old)).collect::<Vec<_>>()).await.unwrap();
    let pruning = store.clone();
    let (before, never) = (now() - Duration::from_secs(3600), Timestamp::default());
    let pruned = tokio::spawn(async move { pruning.prune(before, never, never).await });
    while database.count("SELECT COUNT(*) FROM report").await == OLD {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.commit(&[entry(OLD as u64 + 1, now())]).await.unwrap(), [true]);
    let left = database.count("SELECT COUNT(*) FROM report").await;
    assert!(left > 1, "all that was old went first");
    assert_eq!(pruned.await.unwrap().unwrap(), OLD as u64);
}

#[tokio::test]
async fn a_postgresql_that_cannot_serve_is_refused_with_what_to_do_and_without_the_password() {
    let Some(database) = Database::postgresql() else { return };
    database.open().await;
    database.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await;
    let Location::Postgres { url, password_file } = database.location().clone() else { panic!("not PostgreSQL") };
    let at = |database: &str, password_file: Option<&Path>| {
        let mut url = url.clone();
        url.set_path(database);
        Location::Postgres { url, password_file: password_file.map(Path::to_owned) }
    };
    let dir = tempfile::tempdir().unwrap();
    let (wrong, open, missing) = (dir.path().join("wrong"), dir.path().join("open"), dir.path().join("missing"));
    secret::write_new(&wrong, "hunter2").unwrap();
    secret::write_new_public(&open, "hunter2").unwrap();
    for (location, expected) in [
        (at("ascii", password_file.as_deref()), "ENCODING 'UTF8'"),
        (at("nowhere", password_file.as_deref()), "\"nowhere\" does not exist"),
        (at("postgres", Some(&wrong)), "password authentication failed"),
        (at("postgres", Some(&open)), "open"),
        (at("postgres", Some(&missing)), "missing"),
    ] {
        let message = SqlStore::open(&location).await.err().unwrap().to_string();
        assert!(message.contains(expected) && message.contains("postgres://gnomon@localhost/"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        assert!(!format!("{location:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brain.db");
    std::fs::write(&path, "this is no database, but a text of sufficient length to be looked at".repeat(20)).unwrap();
    let message = SqlStore::open_sqlite(&path).await.err().unwrap().to_string();
    assert!(message.contains("brain.db"), "{message}");
}

/// Somebody else holds the database's write lock: for the brain a store that fails, as a full disk would.
async fn lock(home: &Home) -> SqliteConnection {
    let mut db = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(home.database())).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.unwrap();
    db
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_fails_nothing_is_acknowledged_nor_commanded_and_afterwards_everything_is() {
    let home = Home::new();
    // Enough time to live to survive the failure.
    home.write_config(|text| text.replace("command_ttl_ms = 30000", "command_ttl_ms = 120000"));
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;

    let lock = lock(&home).await;
    agent.send(&report("a", 1, 2, now().unix_ms() + 1000, vm(1), 0.3)).await.unwrap();
    let (status, problem) = brain.post("/api/v1/release", json!({"scope": "fleet"})).await;
    assert_eq!(status, 503, "{problem}");
    brain.until("it says so", async |brain| brain.status("/healthz", None).await == 503).await;
    assert_eq!(brain.get("/api/v1/status").await["store_writable"], false, "reading still works");
    let heard = timeout(Duration::from_millis(500), agent.acknowledged()).await;
    assert!(heard.is_err(), "acknowledged without a sync: {heard:?}");
    let sent = "gnomon_brain_commands_sent_total{action=\"release\"}";
    assert_eq!(brain.metric(sent).await, 0.0, "commanded without a record");

    lock.close().await.unwrap();
    let ack = timeout(PATIENCE, agent.acknowledged()).await.unwrap().unwrap();
    assert_eq!(ack.sequence, Sequence(2));
    let stored = count(&home.database(), "SELECT COUNT(*) FROM report").await;
    assert_eq!(stored, 2);
    brain.until("the release is sent", async |brain| brain.metric(sent).await == 1.0).await;
    brain.until("it says so", async |brain| brain.status("/healthz", None).await == 200).await;
    brain.stop().await;
}
