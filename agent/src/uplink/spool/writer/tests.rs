use super::*;
use crate::uplink::outbox::{Outbox, Stream};
use crate::uplink::spool::Bounds;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{ReportAck, Sequence};
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use tempfile::TempDir;
use tokio::sync::Notify;

type Id = (u64, u64);

/// The spool without its thread: turns are taken when the test says so.
struct Bench {
    writer: Writer,
    shared: Arc<Shared>,
    epoch: AgentEpoch,
    sent: [Vec<Id>; 2],
}

const STREAMS: [Stream; 2] = [Stream::Live, Stream::Backlog];

impl Bench {
    fn open(dir: &Path, epoch: u64, bytes_max: u64) -> Self {
        let epoch = AgentEpoch(epoch);
        let state = State { outbox: Outbox::new(epoch), on_disk: 0, stopping: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            live: Notify::new(),
            backlog: Notify::new(),
            stalled: Notify::new(),
        });
        let bounds = Bounds { bytes_max, age_max: Duration::from_secs(1 << 40) };
        let mut shelf = Shelf::new(dir.to_owned(), bounds, Box::new(|_| true));
        shelf.open().unwrap();
        let metrics = Metrics::register(&mut Registry::default());
        let writer = Writer::new(shelf, epoch, Arc::clone(&shared), metrics);
        Self { writer, shared, epoch, sent: Default::default() }
    }

    fn push(&self, payload_bytes: usize) -> Id {
        let outbox = &mut self.shared.lock().outbox;
        let id = (self.epoch.0, outbox.stamp().sequence.0);
        let mut frame = vec![0; PREFIX_BYTES];
        frame.extend(id.0.to_le_bytes());
        frame.extend(id.1.to_le_bytes());
        frame.resize(PREFIX_BYTES + payload_bytes.max(16), 0);
        outbox.push(frame.into(), Timestamp::default());
        id
    }

    fn turn(&mut self) {
        let work = take_work(self.shared.lock());
        self.writer.work(&work);
    }

    fn send(&mut self, stream: usize) -> bool {
        let Some(frame) = self.shared.lock().outbox.next_frame(STREAMS[stream]) else { return false };
        let long = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
        self.sent[stream].push((long(PREFIX_BYTES), long(PREFIX_BYTES + 8)));
        true
    }

    /// Acknowledges the first `count` of what was sent on a stream; returns them.
    fn acknowledge(&mut self, stream: usize, count: usize) -> Vec<Id> {
        let count = count.min(self.sent[stream].len());
        let acknowledged: Vec<Id> = self.sent[stream].drain(..count).collect();
        if let Some(&(epoch, sequence)) = acknowledged.last() {
            let id = ReportAck { epoch: AgentEpoch(epoch), sequence: Sequence(sequence) };
            self.shared.lock().outbox.acknowledge(STREAMS[stream], id).unwrap();
        }
        acknowledged
    }

    fn connect(&mut self) {
        self.shared.lock().outbox.connect();
        self.sent = Default::default();
    }

    fn disconnect(&mut self) {
        self.shared.lock().outbox.disconnect();
        self.sent = Default::default();
    }

    fn unstored(&self) -> BTreeSet<Id> {
        let mut outbox = std::mem::replace(&mut self.shared.lock().outbox, Outbox::new(self.epoch));
        let mut ids = BTreeSet::new();
        while let Some(sequence) = outbox.to_store().map(|unstored| unstored.sequence) {
            ids.insert((self.epoch.0, sequence.0));
            outbox.drop_unstored(sequence);
        }
        ids
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Turn,
    Send(usize),
    Acknowledge(usize, usize),
    Connect,
    Disconnect,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (16..90_usize).prop_map(Step::Push),
        8 => Just(Step::Turn),
        6 => (0..2_usize).prop_map(Step::Send),
        4 => (0..2_usize, 1..4_usize).prop_map(|(stream, count)| Step::Acknowledge(stream, count)),
        1 => Just(Step::Connect),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_every_report_that_got_to_the_disk_is_acknowledged_in_the_end_and_in_order(
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let dir = TempDir::new().unwrap();
        // So small that segments are full after a few records, and so large that none is dropped.
        let mut bench = Bench::open(dir.path(), 1, 16 * 300 * 100);
        let (mut owed, mut acknowledged) = (BTreeSet::new(), BTreeSet::new());
        let mut connected = false;
        for step in steps {
            match step {
                Step::Push(bytes) => drop(owed.insert(bench.push(bytes))),
                Step::Turn => bench.turn(),
                Step::Send(stream) => drop(bench.send(stream)),
                Step::Acknowledge(stream, count) => acknowledged.extend(bench.acknowledge(stream, count)),
                Step::Connect => { bench.connect(); connected = true; }
                Step::Disconnect => { bench.disconnect(); connected = false; }
                Step::Kill => {
                    owed = &owed - &bench.unstored();
                    bench = Bench::open(dir.path(), bench.epoch.0 + 1, 16 * 300 * 100);
                    connected = false;
                }
            }
            for sent in &bench.sent {
                prop_assert!(sent.is_sorted(), "sent out of order: {:?}", sent);
            }
        }
        // At last a brain that takes everything.
        if !connected { bench.connect(); }
        let mut idle = 0;
        while idle < 3 {
            bench.turn();
            let sent = [0, 1].map(|stream| std::iter::from_fn(|| bench.send(stream).then_some(())).count());
            acknowledged.extend(bench.acknowledge(0, usize::MAX));
            acknowledged.extend(bench.acknowledge(1, usize::MAX));
            idle = if sent == [0, 0] { idle + 1 } else { 0 };
        }
        // What this connection gave to an earlier one's backlog waits for the next.
        bench.connect();
        for _ in 0..owed.len() + 3 {
            bench.turn();
            while bench.send(0) || bench.send(1) {}
            acknowledged.extend(bench.acknowledge(0, usize::MAX));
            acknowledged.extend(bench.acknowledge(1, usize::MAX));
        }
        bench.turn();
        prop_assert!(owed.is_subset(&acknowledged), "never sent: {:?}", &owed - &acknowledged);
        prop_assert_eq!((bench.writer.shelf.waiting(), bench.writer.shelf.bytes()), (0, 0));
        prop_assert_eq!(bench.shared.lock().outbox.unstored(), 0);
    }
}

#[test]
fn a_disk_that_fails_is_said_once_tried_again_and_written_in_order_when_it_works() {
    let dir = TempDir::new().unwrap();
    let spool = dir.path().join("spool");
    let mut bench = Bench::open(&spool, 1, 1 << 20);
    std::fs::write(&spool, "a file where the directory should be").unwrap();
    for _ in 0..3 {
        bench.push(100);
        bench.turn();
    }
    assert_eq!((bench.writer.metrics.spool_failing.get(), bench.writer.metrics.spool_write_failures.get()), (1, 1));
    std::fs::remove_file(&spool).unwrap();
    bench.turn();
    assert_eq!(bench.shared.lock().outbox.unstored(), 3, "it is not tried at every turn");
    bench.writer.failing_until = Some(Instant::now());
    (0..3).for_each(|_| bench.turn());
    assert_eq!(bench.writer.metrics.spool_failing.get(), 0);
    bench.connect();
    bench.turn();
    while bench.send(1) {}
    assert_eq!(bench.sent[1], [(1, 1), (1, 2), (1, 3)]);
}

#[test]
fn when_memory_is_short_too_the_oldest_on_disk_go_first() {
    let dir = TempDir::new().unwrap();
    let spool = dir.path().join("spool");
    let mut bench = Bench::open(&spool, 1, 1 << 30);
    bench.push(100);
    bench.turn();
    // No longer a directory: what is open can still be removed, but nothing new be made.
    bench.writer.shelf.begin();
    std::fs::rename(&spool, dir.path().join("elsewhere")).unwrap();
    std::fs::write(&spool, "").unwrap();
    while !bench.shared.lock().outbox.is_short_of_memory() {
        bench.push(1 << 20);
    }
    bench.turn();
    assert_eq!(bench.writer.shelf.waiting(), 0);
    assert_eq!(bench.writer.metrics.reports_dropped.get(), 1);
    assert_eq!(bench.shared.lock().outbox.stamp().reports_dropped, 1, "later reports tell");
}

#[test]
fn the_thread_writes_what_is_left_when_it_is_told_to_finish() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::open(dir.path(), 1, 1 << 20);
    let Bench { writer, shared, epoch, .. } = bench;
    let ids: Vec<Id> = {
        let bench = Bench { writer, shared, epoch, sent: Default::default() };
        let ids = (0..20).map(|_| bench.push(100)).collect();
        bench.shared.lock().stopping = true;
        bench.writer.run();
        ids
    };
    let mut later = Bench::open(dir.path(), 2, 1 << 20);
    later.connect();
    later.turn();
    while later.send(1) {}
    assert_eq!(later.sent[1], ids);
}

/// Prints what the module's documentation says; run it with `--run-ignored all` and TMPDIR on the disk in question.
#[test]
#[ignore = "a measurement"]
fn one_report_costs_microseconds() {
    const REPORTS: u32 = 2_000;
    let dir = TempDir::new().unwrap();
    let mut bench = Bench::open(dir.path(), 1, 1 << 30);
    let mut measure = |what: &str, each: &mut dyn FnMut(&mut Bench)| {
        let started = Instant::now();
        (0..REPORTS).for_each(|_| {
            bench.push(12 << 10);
            bench.turn();
            each(&mut bench);
        });
        let cost = started.elapsed() / REPORTS;
        println!("{what}: {cost:?} a report of 12 KiB");
        cost
    };
    let away = measure("brain away, no sync", &mut |_| ());
    measure("brain away, a sync for each", &mut |bench| bench.writer.sync());
    measure("brain there: written, acknowledged, emptied", &mut |bench| {
        if bench.shared.lock().outbox.connection() == Connection::default() {
            bench.connect();
            bench.turn();
        }
        bench.send(0);
        bench.acknowledge(0, 1);
        bench.turn();
    });
    assert!(away < Duration::from_millis(1), "{away:?} for a write to the page cache");
}
