//! Long histories of VMs in the real store: what archives hand out comes back, whole, after a restart and after a kill.

use crate::agent::vm;
use crate::database::{Database, on_every_database};
use crate::process::Process;
use gnomon_brain::clock::now;
use gnomon_brain::store::{Entry, Journal, SqlStore, Store};
use gnomon_brain::telemetry::Telemetry;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::VmId;
use gnomon_core::archive::{Archive, BlockKey, Change, Kpi, Measurement, SealedBlock, Steps, Tier};
use gnomon_core::{Corrections, Lesson, Record, Restored};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DAY_S: u64 = 86_400;

on_every_database!(
    a_restart_gives_back_what_archives_handed_out_each_vms_blocks_together,
    a_block_replaces_the_one_of_its_key_and_a_forgotten_one_is_gone,
    pruning_takes_blocks_whose_time_is_long_over_whatever_vm_they_are_of,
    the_latest_lesson_about_a_vm_is_given_back_and_one_that_makes_no_sense_is_skipped,
    rows_that_are_no_blocks_are_skipped_and_the_others_restored,
);

fn record(vm: VmId, change: Change) -> Record {
    Record::History { vm, change }
}

fn keep(vm: VmId, key: BlockKey, bytes: &[u8]) -> Record {
    record(vm, Change::Persist(SealedBlock { key, bytes: bytes.into() }))
}

fn key(number: u64) -> BlockKey {
    BlockKey { kpi: Kpi::Cpu, tier: Tier::Hour1, number }
}

async fn commit(store: &SqlStore, records: impl IntoIterator<Item = Record>) {
    let entries: Vec<_> = records.into_iter().map(|record| Entry::Record(Box::new(record))).collect();
    store.commit(&entries).await.unwrap();
}

/// What a restart is told of histories, in order.
async fn restored(store: &SqlStore) -> Vec<(VmId, SealedBlock)> {
    let mut blocks = Vec::new();
    store
        .restore(now(), &mut |restored| {
            if let Restored::History { vm, block } = restored {
                blocks.push((vm, block));
            }
        })
        .await
        .unwrap();
    blocks
}

/// Five minutes' windows of a daily wave, with two hours of each week missing.
fn measure(archive: &mut Archive, kpi: Kpi, days: std::ops::Range<u64>, scale: f64) {
    for start_s in (days.start * DAY_S..days.end * DAY_S).step_by(300).filter(|s| s % (7 * DAY_S) > 7200) {
        let mean = scale * (1.5 + (start_s as f64 / DAY_S as f64 * std::f64::consts::TAU).sin());
        let start = Timestamp::from_unix_ms(start_s * 1000);
        let measurement = Measurement { start, length: Duration::from_mins(5), covered: 1.0, mean, max: mean * 1.5 };
        archive.add(kpi, &measurement);
    }
}

fn read(archive: &Archive, kpi: Kpi, days: u64) -> Vec<Steps> {
    let end = Timestamp::from_unix_ms(days * DAY_S * 1000);
    Tier::ALL.map(|tier| archive.read(kpi, Timestamp::default(), end, tier.step()).unwrap()).into()
}

async fn a_restart_gives_back_what_archives_handed_out_each_vms_blocks_together(database: Database) {
    const DAYS: u64 = 60;
    let mut archives: BTreeMap<VmId, Archive> = (1..=3).map(|number| (vm(number), Archive::default())).collect();
    let journal = Journal::start(Arc::new(database.open().await), Telemetry::new().journal);
    // Four times, the VMs in turns: open blocks are replaced by fuller ones, and those of the finest ring are forgotten.
    for days in (0..DAYS).step_by(15) {
        for (number, (&vm, archive)) in (1u32..).zip(&mut archives) {
            measure(archive, Kpi::Cpu, days..days + 15, f64::from(number));
            measure(archive, Kpi::Memory, days..days + 15, f64::from(number) * 1e9);
            let records = archive.changes().into_iter().map(|change| record(vm, change)).collect();
            journal.records(records).await.unwrap().await.unwrap();
        }
    }
    drop(journal);

    let store = database.open().await;
    let blocks = restored(&store).await;
    assert!(blocks.is_sorted_by_key(|(vm, block)| (*vm, block.key)));
    let mut anew: BTreeMap<VmId, Archive> = BTreeMap::new();
    for (vm, block) in blocks {
        anew.entry(vm).or_default().restore(block).unwrap();
    }
    for (vm, archive) in &mut archives {
        assert_eq!(read(&anew[vm], Kpi::Cpu, DAYS), read(archive, Kpi::Cpu, DAYS));
        // Memory's older blocks are in the store alone: they are fetched as a reader would.
        let end = Timestamp::from_unix_ms(DAYS * DAY_S * 1000);
        let away: Vec<BlockKey> = Tier::ALL
            .iter()
            .flat_map(|tier| archive.away(Kpi::Memory, Timestamp::default(), end, tier.step()))
            .collect();
        assert!(away.len() > 10, "only {} blocks are away", away.len());
        let fetched = store.blocks(*vm, away.clone()).await.unwrap();
        assert_eq!(fetched.iter().map(|block| block.key).collect::<Vec<_>>(), away);
        fetched.into_iter().for_each(|block| archive.restore(block).unwrap());
        assert_eq!(read(&anew[vm], Kpi::Memory, DAYS), read(archive, Kpi::Memory, DAYS));
        let measured = read(archive, Kpi::Memory, DAYS)[2].steps.iter().flatten().count() as u64;
        assert!(measured > (DAYS - 1) * 24 - 24, "{measured} hours");
    }
}

async fn a_block_replaces_the_one_of_its_key_and_a_forgotten_one_is_gone(database: Database) {
    let store = database.open().await;
    let other = BlockKey { tier: Tier::Minutes5, ..key(7) };
    commit(&store, [keep(vm(1), key(7), b"open"), keep(vm(1), other, b"other"), keep(vm(2), key(7), b"theirs")]).await;
    commit(&store, [keep(vm(1), key(7), b"fuller")]).await;
    let bytes = async |vm, keys: Vec<BlockKey>| {
        let blocks = store.blocks(vm, keys).await.unwrap();
        blocks.into_iter().map(|block| String::from_utf8(block.bytes.into_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(bytes(vm(1), vec![other, key(8), key(7)]).await, ["other", "fuller"]);
    commit(&store, [record(vm(1), Change::Forget(key(7))), record(vm(1), Change::Forget(key(9)))]).await;
    assert_eq!(bytes(vm(1), vec![key(7), other]).await, ["other"]);
    assert_eq!(bytes(vm(2), vec![key(7)]).await, ["theirs"]);
}

async fn pruning_takes_blocks_whose_time_is_long_over_whatever_vm_they_are_of(database: Database) {
    let store = database.open().await;
    let never = Timestamp::default();
    // Ends at the limit: it stays. One millisecond later it goes, and with it two hundred older ones.
    let limit = key(300).end();
    commit(&store, (100..=301).map(|number| keep(vm(u128::from(number)), key(number), b"block"))).await;
    assert_eq!(store.prune(never, never, limit).await.unwrap(), 200);
    assert_eq!(restored(&store).await.iter().map(|(_, block)| block.key.number).collect::<Vec<_>>(), [300, 301]);
    assert_eq!(store.prune(never, never, limit + Duration::from_millis(1)).await.unwrap(), 1);
    assert_eq!(database.count("SELECT number FROM block").await, 301);
}

async fn the_latest_lesson_about_a_vm_is_given_back_and_one_that_makes_no_sense_is_skipped(database: Database) {
    let store = database.open().await;
    let lesson = |number: u128, corrections: Corrections| {
        let lesson = Lesson::Corrections { vm: vm(number), corrections };
        Record::Lesson { lesson, at: Timestamp::from_unix_ms(1000) }
    };
    let corrected: Corrections =
        serde_json::from_value(serde_json::json!({"near": [0.5, 0.91, 0.96, 0.99], "far": [0.5, 0.9, 0.94, 0.99]}))
            .unwrap();
    commit(&store, [lesson(1, Corrections::default()), lesson(1, corrected), lesson(2, corrected)]).await;
    let spoilt = "UPDATE lesson SET lesson = '{\"lesson\":\"astrology\"}' WHERE subject LIKE '%2'";
    assert_eq!(database.execute(spoilt).await, 1);
    let mut lessons = Vec::new();
    let mut sink = |restored| {
        if let Restored::Lesson(lesson) = restored {
            lessons.push(lesson);
        }
    };
    store.restore(Timestamp::default(), &mut sink).await.unwrap();
    assert_eq!(lessons, [Lesson::Corrections { vm: vm(1), corrections: corrected }]);
    let never = Timestamp::default();
    assert_eq!(store.prune(never, never, Timestamp::from_unix_ms(1001)).await.unwrap(), 2);
}

async fn rows_that_are_no_blocks_are_skipped_and_the_others_restored(database: Database) {
    let store = database.open().await;
    commit(&store, (1..=8).map(|number| keep(vm(1), key(number), b"block"))).await;
    for damage in [
        "UPDATE block SET kpi = 200 WHERE number = 1",
        "UPDATE block SET kpi = -1 WHERE number = 2",
        "UPDATE block SET tier = 3 WHERE number = 3",
        "UPDATE block SET vm = 'nobody' WHERE number = 5",
        "UPDATE block SET number = -7 WHERE number = 7",
    ] {
        assert_eq!(database.execute(damage).await, 1, "{damage}");
    }
    // Only SQLite keeps a value that is not of its column's type.
    for damage in ["UPDATE block SET tier = 'x' WHERE number = 4", "UPDATE block SET bytes = 1.5 WHERE number = 6"] {
        let damage = if database.is_sqlite() {
            damage
        } else {
            "DELETE FROM block WHERE number = (SELECT MIN(number) FROM block WHERE number IN (4, 6))"
        };
        assert_eq!(database.execute(damage).await, 1, "{damage}");
    }
    assert_eq!(restored(&store).await, [(vm(1), SealedBlock { key: key(8), bytes: b"block".as_slice().into() })]);
}

/// Tells the process that is to be killed, which is this very test again, where to write and in which life.
const VICTIM: &str = "GNOMON_TEST_HISTORY_VICTIM";
/// Blocks in one submission: enough that most of a life is spent within a transaction.
const SUBMITTED: u64 = 40;

/// Writes the blocks of VM 0, 1, … and says which are acknowledged, until it is killed.
async fn write_until_killed(path: &Path, life: u8) -> ! {
    let journal = Journal::start(Arc::new(SqlStore::open_sqlite(path).await.unwrap()), Telemetry::new().journal);
    let mut waiting = VecDeque::new();
    for number in 0.. {
        let records = (0..SUBMITTED).map(|block| keep(vm(number), key(block), &[life; 1000])).collect();
        waiting.push_back((number, journal.records(records).await.unwrap()));
        if waiting.len() > 4
            && let Some((acknowledged, receipt)) = waiting.pop_front()
        {
            receipt.await.unwrap();
            println!("acknowledged {acknowledged}");
        }
    }
    unreachable!("it is killed before")
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_amid_transactions_loses_no_acknowledged_block_and_leaves_no_half_of_a_submission() {
    if let Ok(victim) = std::env::var(VICTIM) {
        let (life, path) = victim.split_once(' ').unwrap();
        write_until_killed(Path::new(path), life.parse().unwrap()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    for life in 1..=4u8 {
        let this = "history::kill_9_amid_transactions_loses_no_acknowledged_block_and_leaves_no_half_of_a_submission";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(VICTIM, format!("{life} {}", path.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut victim = Process(child);
        let number = |line: String| line.strip_prefix("acknowledged ").map(|number| number.parse::<u128>().unwrap());
        let enough = 10 + u128::from(life) * 7;
        let mut acknowledged =
            said.by_ref().filter_map(number).find(|number| *number >= enough).expect("it ended early");
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
        // What it said while it died counts, too.
        acknowledged = said.filter_map(number).max().unwrap_or(0).max(acknowledged);

        let mut lives: BTreeMap<VmId, Vec<u8>> = BTreeMap::new();
        for (vm, block) in restored(&SqlStore::open_sqlite(&path).await.unwrap()).await {
            assert_eq!((block.bytes.len(), block.bytes.iter().min()), (1000, block.bytes.iter().max()));
            lives.entry(vm).or_default().push(block.bytes[0]);
        }
        for number in 0..=acknowledged {
            assert_eq!(lives.get(&vm(number)), Some(&vec![life; SUBMITTED as usize]), "VM {number} of life {life}");
        }
        for (vm, lives) in lives {
            assert_eq!(lives, vec![lives[0]; SUBMITTED as usize], "half of what was submitted of VM {vm}");
        }
    }
}
