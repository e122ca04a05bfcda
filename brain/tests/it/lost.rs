//! A database whose answers are lost. To a commit: the batch was written, and is neither written nor taken in a second time. To everything on
//! a connection: the next renewal of the lease takes another one.

use crate::agent::{report, vm};
use crate::database::{Database, on_every_database};
use gnomon_brain::clock::now;
use gnomon_brain::drive::Event;
use gnomon_brain::store::{Candidate, Entry, Journal, JournalMetrics, Lead, Location, Repeated, SqlStore, Store};
use gnomon_common::wire::frame;
use gnomon_core::{Audit, Input, Record};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// The name of PostgreSQL's socket in its directory.
const SOCKET: &str = ".s.PGSQL.5432";

/// A simple query that commits, and what the server says when it has (PostgreSQL, "Message Formats").
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// Stands before a server, and ends a connection between a commit and its answer when it is told to.
struct Cutter {
    dir: TempDir,
    /// Commits whose answers are still to be lost.
    to_cut: Arc<AtomicU32>,
    /// Connections that were made so far, and how many of them, from the first on, carry nothing any more.
    made: Arc<AtomicU32>,
    hushed: Arc<AtomicU32>,
}

impl Cutter {
    fn before(server: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let to_cut = Arc::new(AtomicU32::new(0));
        let (made, hushed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (cuts, count, hush) = (Arc::clone(&to_cut), Arc::clone(&made), Arc::clone(&hushed));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(server.join(SOCKET)).await.unwrap();
                let number = count.fetch_add(1, Ordering::Relaxed);
                let hush = Arc::clone(&hush);
                let is_hushed = move || number < hush.load(Ordering::Relaxed);
                tokio::spawn(relay(client, server, Arc::clone(&cuts), is_hushed));
            }
        });
        Self { dir, to_cut, made, hushed }
    }

    /// What has been connected until now stays so, and carries nothing any more.
    fn hush(&self) {
        self.hushed.store(self.made.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Passes on what either says, until one of them ends or the answer to a commit is withheld: then both are let go.
async fn relay(mut client: UnixStream, mut server: UnixStream, to_cut: Arc<AtomicU32>, is_hushed: impl Fn() -> bool) {
    let (mut asked, mut answered) = ([0; 1 << 14], [0; 1 << 14]);
    let mut is_cut = false;
    loop {
        tokio::select! {
            length = client.read(&mut asked) => {
                let Some(length) = length.ok().filter(|length| *length > 0) else { return };
                if is_hushed() {
                    continue;
                }
                let one_less = |left: u32| left.checked_sub(1);
                if contains(&asked[..length], COMMIT)
                    && to_cut.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
                {
                    is_cut = true;
                }
                server.write_all(&asked[..length]).await.unwrap();
            }
            length = server.read(&mut answered) => {
                let Some(length) = length.ok().filter(|length| *length > 0) else { return };
                if is_cut {
                    assert!(contains(&answered[..length], COMMITTED), "it was not committed");
                    return;
                }
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn line(detail: &str) -> Record {
    let (actor, verb, object) = ("test".to_owned(), "look".to_owned(), "fleet".to_owned());
    Record::Audit(Audit { at: now(), actor, verb, object, detail: detail.to_owned() })
}

/// Where a database is by another directory of its socket.
fn by(location: &Location, dir: &Path) -> Location {
    let Location::Postgres { url, password_file } = location else { panic!("{location}") };
    let mut url = url.clone();
    url.query_pairs_mut().clear().append_pair("host", dir.to_str().unwrap());
    Location::Postgres { url, password_file: password_file.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_before_its_answer_was_lost_is_acknowledged_and_taken_in_once() {
    let Some(database) = Database::postgresql() else { return };
    let cutter = Cutter::before(database.socket_dir());
    let store = Arc::new(SqlStore::open(&by(database.location(), cutter.dir.path())).await.unwrap());
    let mut registry = Registry::default();
    let metrics = JournalMetrics::register(&mut registry);
    let journal = Journal::start(store, metrics);
    let (places, mut taken_in) = mpsc::channel::<Event>(8);

    for sequence in 1..=3 {
        // The second one's answer is lost.
        cutter.to_cut.store(u32::from(sequence == 2), Ordering::Relaxed);
        let report = report("a", 1, sequence, now().unix_ms(), vm(1), 0.3);
        let payload = frame::encode(&report).unwrap()[frame::PREFIX_BYTES..].to_vec();
        let place = places.clone().reserve_owned().await.unwrap();
        let receipt = journal.report(report, payload, place).await.unwrap();
        timeout(PATIENCE, receipt).await.expect("it is not acknowledged").unwrap();
        let fed = timeout(PATIENCE, taken_in.recv()).await.expect("the core does not get it").unwrap();
        assert!(matches!(fed, Event::Input(Input::Report(report)) if report.sequence.0 == sequence));
        assert_eq!(cutter.to_cut.load(Ordering::Relaxed), 0, "nothing was cut");
    }
    // The same of records, of which nothing but that tells a second writing from another line.
    cutter.to_cut.store(1, Ordering::Relaxed);
    timeout(PATIENCE, journal.records(vec![line("once")]).await.unwrap()).await.unwrap().unwrap();
    assert_eq!(database.count("SELECT COUNT(*) FROM report").await, 3);
    assert_eq!(database.count("SELECT COUNT(*) FROM audit WHERE detail = 'once'").await, 1);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for said in ["answers_lost_total 2", "duplicates_total 0", "failures_total 2"] {
        assert!(text.contains(&format!("gnomon_brain_store_{said}\n")), "{said}: {text}");
    }
}

on_every_database!(a_batch_is_written_once_however_often_it_is_committed_again);

async fn a_batch_is_written_once_however_often_it_is_committed_again(database: Database) {
    let store = database.open().await;
    let other = database.open().await;
    let of = |record| Entry::Record(Box::new(record));
    let (one, two) = ([of(line("one"))], [of(line("two")), of(line("two"))]);
    let written = |entries, was_written| Repeated { fresh: vec![true; entries], was_written };
    store.commit(&one).await.unwrap();
    assert_eq!(store.commit_again(&one).await.unwrap(), written(1, true));
    store.commit(&two).await.unwrap();
    assert_eq!(store.commit_again(&two).await.unwrap(), written(2, true));
    // Another store's batch is another one, whatever its number.
    other.commit(&one).await.unwrap();
    assert_eq!(other.commit_again(&one).await.unwrap(), written(1, true));
    let of_detail = async |detail| {
        let lines = store.audit(100).await.unwrap();
        lines.iter().filter(|line| line.detail == detail).count()
    };
    assert_eq!((of_detail("one").await, of_detail("two").await), (2, 2));
    // One that failed is written by the second try.
    database.execute("ALTER TABLE audit RENAME TO hidden").await;
    store.commit(&two).await.unwrap_err();
    store.commit_again(&two).await.unwrap_err();
    database.execute("ALTER TABLE hidden RENAME TO audit").await;
    assert_eq!(store.commit_again(&two).await.unwrap(), written(2, false));
    assert_eq!(store.commit_again(&two).await.unwrap(), written(2, true));
    assert_eq!(of_detail("two").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_carries_nothing_any_more_costs_one_renewal_of_the_lease() {
    let Some(database) = Database::postgresql() else { return };
    let cutter = Cutter::before(database.socket_dir());
    let store = SqlStore::open(&by(database.location(), cutter.dir.path())).await.unwrap();
    let leader = Candidate { name: "a".to_owned(), lease: PATIENCE };
    assert!(matches!(store.lead(&leader, 0).await.unwrap(), Lead::Ours { .. }));
    store.renew_lease(&leader).await.unwrap();
    cutter.hush();
    let unanswered = timeout(Duration::from_millis(500), store.renew_lease(&leader)).await;
    assert!(unanswered.is_err(), "{unanswered:?}");
    timeout(PATIENCE / 2, store.renew_lease(&leader)).await.expect("it waits for the dead connection").unwrap();
}
