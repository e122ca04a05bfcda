use super::*;

const EPOCH: AgentEpoch = AgentEpoch(3);
const SEGMENT: SegmentId = SegmentId(1);

fn id(sequence: u64) -> ReportAck {
    ReportAck { epoch: EPOCH, sequence: Sequence(sequence) }
}

/// A frame that shows its own sequence.
fn frame(sequence: u64, len: usize) -> Arc<[u8]> {
    let mut bytes = vec![0; len.max(8)];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes.into()
}

fn put(outbox: &mut Outbox, len: usize) -> u64 {
    let sequence = outbox.stamp().sequence.0;
    outbox.push(frame(sequence, len), Timestamp::default())
}

fn put_three(outbox: &mut Outbox) {
    for _ in 0..3 {
        put(outbox, 10);
    }
}

fn sent(outbox: &mut Outbox, stream: Stream) -> Vec<u64> {
    let next = || outbox.next_frame(stream).map(|frame| u64::from_le_bytes(frame[..8].try_into().unwrap()));
    std::iter::from_fn(next).collect()
}

/// The disk takes the oldest unstored report.
fn store(outbox: &mut Outbox) -> u64 {
    let sequence = outbox.to_store().unwrap().sequence;
    outbox.stored(sequence, SEGMENT, outbox.connection());
    sequence.0
}

fn stored(sequence: u64, segment: SegmentId) -> Stored {
    Stored { id: id(sequence), frame: frame(sequence, 10), segment }
}

#[test]
fn a_connection_gets_live_what_is_only_in_memory_and_then_what_is_made() {
    let mut outbox = Outbox::new(EPOCH);
    put_three(&mut outbox);
    store(&mut outbox);
    assert_eq!(sent(&mut outbox, Stream::Live), [0_u64; 0], "there is no connection");
    outbox.connect();
    put(&mut outbox, 10);
    assert_eq!(sent(&mut outbox, Stream::Live), [2, 3, 4], "1 is on disk");
    outbox.disconnect();
    assert_eq!(outbox.acknowledge(Stream::Live, id(2)), Err(NotAwaited(id(2))));
}

#[test]
fn what_is_acknowledged_before_it_is_stored_never_gets_to_the_disk() {
    let mut outbox = Outbox::new(EPOCH);
    outbox.connect();
    put_three(&mut outbox);
    sent(&mut outbox, Stream::Live);
    store(&mut outbox);
    assert_eq!(outbox.acknowledge(Stream::Live, id(2)), Ok(2));
    assert_eq!(outbox.take_freed(), BTreeMap::from([(SEGMENT, 1)]));
    assert_eq!(outbox.to_store().unwrap().sequence, Sequence(3));
}

#[test]
fn what_is_acknowledged_while_it_is_being_stored_is_freed_at_once() {
    let mut outbox = Outbox::new(EPOCH);
    let connection = outbox.connect();
    put(&mut outbox, 10);
    sent(&mut outbox, Stream::Live);
    let writing = outbox.to_store().unwrap().sequence;
    outbox.acknowledge(Stream::Live, id(1)).unwrap();
    outbox.stored(writing, SEGMENT, connection);
    assert_eq!(outbox.take_freed(), BTreeMap::from([(SEGMENT, 1)]));
}

#[test]
fn what_is_stored_while_a_connection_begins_is_freed_by_its_backlog_alone() {
    let mut outbox = Outbox::new(EPOCH);
    put(&mut outbox, 10);
    let writing = outbox.to_store().unwrap().sequence;
    let before = outbox.connection();
    let connection = outbox.connect();
    outbox.stored(writing, SEGMENT, before);
    outbox.add_backlog(connection, vec![stored(1, SEGMENT)]);
    assert_eq!((sent(&mut outbox, Stream::Live), sent(&mut outbox, Stream::Backlog)), (vec![1], vec![1]));
    outbox.acknowledge(Stream::Live, id(1)).unwrap();
    assert!(!outbox.has_freed());
    outbox.acknowledge(Stream::Backlog, id(1)).unwrap();
    assert_eq!(outbox.take_freed(), BTreeMap::from([(SEGMENT, 1)]));
}

#[test]
fn the_backlog_is_bounded_in_flight_and_never_holds_live_reports_up() {
    let mut outbox = Outbox::new(EPOCH);
    let connection = outbox.connect();
    let large = |sequence| Stored { frame: frame(sequence, BACKLOG_SENT_BYTES_MAX / 2), ..stored(sequence, SEGMENT) };
    outbox.add_backlog(connection, (100..104).map(large).collect());
    assert_eq!(outbox.backlog_room(), 0);
    assert_eq!(sent(&mut outbox, Stream::Backlog), [100, 101]);
    put(&mut outbox, 10);
    assert_eq!(sent(&mut outbox, Stream::Live), [1]);
    outbox.acknowledge(Stream::Backlog, id(100)).unwrap();
    assert_eq!(sent(&mut outbox, Stream::Backlog), [102]);
}

#[test]
fn the_backlog_of_an_ended_connection_is_not_taken_for_the_next_ones() {
    let mut outbox = Outbox::new(EPOCH);
    let before = outbox.connect();
    outbox.connect();
    outbox.add_backlog(before, vec![stored(1, SEGMENT)]);
    assert_eq!(sent(&mut outbox, Stream::Backlog), [0_u64; 0]);
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_on_that_stream_is_refused() {
    let mut outbox = Outbox::new(EPOCH);
    outbox.connect();
    put(&mut outbox, 10);
    assert_eq!(outbox.acknowledge(Stream::Live, id(1)), Err(NotAwaited(id(1))), "not sent yet");
    sent(&mut outbox, Stream::Live);
    assert_eq!(outbox.acknowledge(Stream::Backlog, id(1)), Err(NotAwaited(id(1))), "sent on the other");
    let other_life = ReportAck { epoch: AgentEpoch(2), ..id(1) };
    assert_eq!(outbox.acknowledge(Stream::Live, other_life), Err(NotAwaited(other_life)));
    assert_eq!(outbox.unstored(), 1);
}

#[test]
fn without_a_disk_the_oldest_go_and_later_reports_say_how_many() {
    let mut outbox = Outbox::new(EPOCH);
    let dropped: u64 = (0..5).map(|_| put(&mut outbox, UNSTORED_BYTES_MAX / 3)).sum();
    assert_eq!(dropped, 2);
    assert_eq!(outbox.stamp(), Stamp { sequence: Sequence(6), reports_dropped: 2 });
    assert!(outbox.is_short_of_memory());
    assert_eq!(store(&mut outbox), 3);
}

#[test]
fn a_connection_that_takes_nothing_is_told_to_have_stalled() {
    let mut outbox = Outbox::new(EPOCH);
    outbox.connect();
    for _ in 0..8 {
        put(&mut outbox, LIVE_WAITING_BYTES_MAX / 8);
        assert!(!outbox.is_stalled());
    }
    put(&mut outbox, 8);
    assert!(outbox.is_stalled());
}
