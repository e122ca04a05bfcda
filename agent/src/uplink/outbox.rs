//! Reports between their making and the brain's acknowledgement: pure, no clock, no socket.
//!
//! A report gets the next sequence when it is put in, stays until it or a later one is acknowledged, and is sent once per connection, in
//! order. Over the bound the oldest go first and are counted; the count travels in every later report. What is kept are encoded frames,
//! so that the queue's place can be taken by files: a spool needs `push`, `next_frame`, `acknowledge` and `resume`, and nothing else.

use gnomon_common::wire::Sequence;
use std::collections::VecDeque;
use std::sync::Arc;

/// Memory for unacknowledged reports: with 50 VMs a report is about 12 KiB, so this is seven hours of a brain that is away.
pub const OUTBOX_BYTES_MAX: usize = 32 << 20;

/// What the next report must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its sequence.
    pub sequence: Sequence,
    /// Reports dropped so far.
    pub reports_dropped: u64,
}

/// The brain acknowledged what it was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the brain acknowledges report {acknowledged:?}, but the newest is {newest:?}")]
pub struct NeverMade {
    /// What it claims to have.
    pub acknowledged: Sequence,
    /// The newest there is.
    pub newest: Sequence,
}

/// The queue. Sequences start at 1, without gaps but for those dropped.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<(u64, Arc<[u8]>)>,
    bytes: usize,
    bytes_max: usize,
    newest: u64,
    acknowledged: u64,
    sent: u64,
    dropped: u64,
}

impl Outbox {
    /// An empty queue for frames of at most `bytes_max` bytes together (the newest is always kept).
    pub fn new(bytes_max: usize) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, bytes_max, newest: 0, acknowledged: 0, sent: 0, dropped: 0 }
    }

    /// What to write into the report that is put in next.
    pub fn stamp(&self) -> Stamp {
        Stamp { sequence: Sequence(self.newest + 1), reports_dropped: self.dropped }
    }

    /// Puts an encoded report in. Returns how many old ones had to go for it.
    pub fn push(&mut self, frame: Arc<[u8]>) -> u64 {
        self.newest += 1;
        self.bytes += frame.len();
        self.queue.push_back((self.newest, frame));
        let before = self.dropped;
        while self.bytes > self.bytes_max && self.queue.len() > 1 {
            self.pop();
            self.dropped += 1;
        }
        self.dropped - before
    }

    /// Counts a report that could not be encoded and so never gets a sequence.
    pub fn count_unsendable(&mut self) {
        self.dropped += 1;
    }

    /// The next frame to send on this connection.
    pub fn next_frame(&mut self) -> Option<Arc<[u8]>> {
        let first = self.queue.partition_point(|(sequence, _)| *sequence <= self.sent);
        let (sequence, frame) = self.queue.get(first)?;
        self.sent = *sequence;
        Some(Arc::clone(frame))
    }

    /// Forgets everything up to and including `sequence`. Returns how many reports that were.
    pub fn acknowledge(&mut self, sequence: Sequence) -> Result<u64, NeverMade> {
        if sequence.0 > self.newest {
            return Err(NeverMade { acknowledged: sequence, newest: Sequence(self.newest) });
        }
        self.acknowledged = self.acknowledged.max(sequence.0);
        let before = self.queue.len();
        while self.queue.front().is_some_and(|(oldest, _)| *oldest <= self.acknowledged) {
            self.pop();
        }
        Ok((before - self.queue.len()) as u64)
    }

    /// Begins a new connection to a brain that has everything up to `acknowledged`: what is left is sent again.
    pub fn resume(&mut self, acknowledged: Sequence) -> Result<u64, NeverMade> {
        let forgotten = self.acknowledge(acknowledged)?;
        self.sent = 0;
        Ok(forgotten)
    }

    /// Reports waiting for acknowledgement.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes waiting for acknowledgement.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn pop(&mut self) {
        if let Some((_, frame)) = self.queue.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame that shows its own sequence.
    fn frame(sequence: u64, len: usize) -> Arc<[u8]> {
        let mut bytes = vec![0; len.max(8)];
        bytes[..8].copy_from_slice(&sequence.to_le_bytes());
        bytes.into()
    }

    fn sequence_of(frame: &[u8]) -> u64 {
        u64::from_le_bytes(frame[..8].try_into().unwrap())
    }

    fn sent(outbox: &mut Outbox) -> Vec<u64> {
        std::iter::from_fn(|| outbox.next_frame().map(|frame| sequence_of(&frame))).collect()
    }

    fn filled(reports: u64, bytes_max: usize) -> Outbox {
        let mut outbox = Outbox::new(bytes_max);
        for _ in 0..reports {
            let stamp = outbox.stamp();
            outbox.push(frame(stamp.sequence.0, 10));
        }
        outbox
    }

    #[test]
    fn a_new_connection_gets_everything_after_what_the_brain_has() {
        let mut outbox = filled(5, 1_000);
        assert_eq!(sent(&mut outbox), [1, 2, 3, 4, 5]);
        assert_eq!(outbox.acknowledge(Sequence(2)), Ok(2));
        assert_eq!(sent(&mut outbox), [0_u64; 0], "once per connection");
        assert_eq!(outbox.resume(Sequence(3)), Ok(1));
        assert_eq!(sent(&mut outbox), [4, 5]);
    }

    #[test]
    fn over_the_bound_the_oldest_go_and_later_reports_say_how_many() {
        let mut outbox = filled(5, 30);
        assert_eq!(outbox.stamp(), Stamp { sequence: Sequence(6), reports_dropped: 2 });
        assert_eq!(sent(&mut outbox), [3, 4, 5]);
        assert_eq!(outbox.bytes(), 30);
    }

    #[test]
    fn a_brain_that_lost_its_store_gets_what_is_still_here() {
        let mut outbox = filled(4, 1_000);
        outbox.acknowledge(Sequence(2)).unwrap();
        outbox.resume(Sequence(0)).unwrap();
        assert_eq!(sent(&mut outbox), [3, 4]);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_made_is_refused() {
        let mut outbox = filled(2, 1_000);
        let wrong = NeverMade { acknowledged: Sequence(3), newest: Sequence(2) };
        assert_eq!(outbox.acknowledge(Sequence(3)), Err(wrong));
        assert_eq!(outbox.resume(Sequence(3)), Err(wrong));
        assert_eq!(outbox.len(), 2);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Send,
        Acknowledge(u64),
        Reconnect(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (8..40_usize).prop_map(Step::Push),
            4 => Just(Step::Send),
            2 => (0..60_u64).prop_map(Step::Acknowledge),
            1 => (0..60_u64).prop_map(Step::Reconnect),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_reordered_sent_twice_or_lost_uncounted(steps in prop::collection::vec(step(), 0..120), bytes_max in 8..400_usize) {
            let mut outbox = Outbox::new(bytes_max);
            let (mut made, mut acknowledged, mut dropped) = (0, 0, 0);
            let mut last_sent = 0;
            for step in steps {
                match step {
                    Step::Push(len) => {
                        let stamp = outbox.stamp();
                        made += 1;
                        prop_assert_eq!(stamp, Stamp { sequence: Sequence(made), reports_dropped: dropped });
                        let before = outbox.bytes();
                        let gone = outbox.push(frame(made, len));
                        prop_assert!(gone == 0 || before + len > bytes_max, "dropped within the bound");
                        dropped += gone;
                    }
                    Step::Send => if let Some(frame) = outbox.next_frame() {
                        let sequence = sequence_of(&frame);
                        prop_assert!(sequence > last_sent && sequence > acknowledged);
                        last_sent = sequence;
                    },
                    Step::Acknowledge(sequence) => {
                        let result = outbox.acknowledge(Sequence(sequence));
                        prop_assert_eq!(result.is_err(), sequence > made);
                        if result.is_ok() { acknowledged = acknowledged.max(sequence); }
                    }
                    Step::Reconnect(sequence) => if outbox.resume(Sequence(sequence)).is_ok() {
                        acknowledged = acknowledged.max(sequence);
                        last_sent = 0;
                    },
                }
                prop_assert!(outbox.bytes() <= bytes_max || outbox.len() == 1);
            }
            // Whatever was neither acknowledged nor dropped is still here, in order, up to the newest.
            outbox.resume(Sequence(0)).unwrap();
            let left = sent(&mut outbox);
            prop_assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            prop_assert!(made == acknowledged || left.last() == Some(&made));
            prop_assert!(left.len() as u64 >= (made - acknowledged).saturating_sub(dropped));
        }
    }
}
