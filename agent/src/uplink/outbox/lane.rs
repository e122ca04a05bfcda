//! One report stream of one connection: what is to be sent on it and what waits for its acknowledgement, both in order.

use gnomon_common::wire::ReportAck;
use std::collections::VecDeque;
use std::sync::Arc;

/// The brain acknowledged what does not wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the brain acknowledges report {} of epoch {}, which does not wait for it on this stream", .0.sequence.0, .0.epoch.0
)]
pub struct NotAwaited(pub ReportAck);

/// A report to be sent. `place` tells where it lies until it is acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Item<P> {
    pub(super) id: ReportAck,
    pub(super) frame: Arc<[u8]>,
    pub(super) place: P,
}

#[derive(Debug)]
struct Sent<P> {
    id: ReportAck,
    bytes: usize,
    place: P,
}

#[derive(Debug)]
pub(super) struct Lane<P> {
    waiting: VecDeque<Item<P>>,
    waiting_bytes: usize,
    sent: VecDeque<Sent<P>>,
    sent_bytes: usize,
    sent_bytes_max: usize,
}

impl<P> Lane<P> {
    /// An empty lane that has at most `sent_bytes_max` sent and not acknowledged, but always one report.
    pub(super) fn new(sent_bytes_max: usize) -> Self {
        Self { waiting: VecDeque::new(), waiting_bytes: 0, sent: VecDeque::new(), sent_bytes: 0, sent_bytes_max }
    }

    pub(super) fn push(&mut self, item: Item<P>) {
        self.waiting_bytes += item.frame.len();
        self.waiting.push_back(item);
    }

    /// The next frame to send, if there is one and room for it.
    pub(super) fn next_frame(&mut self) -> Option<Arc<[u8]>> {
        let bytes = self.waiting.front()?.frame.len();
        if !self.sent.is_empty() && self.sent_bytes + bytes > self.sent_bytes_max {
            return None;
        }
        let Item { id, frame, place } = self.waiting.pop_front()?;
        self.waiting_bytes -= bytes;
        self.sent_bytes += bytes;
        self.sent.push_back(Sent { id, bytes, place });
        Some(frame)
    }

    /// Forgets everything sent up to and including `id`; returns where it lies.
    pub(super) fn acknowledge(&mut self, id: ReportAck) -> Result<Vec<(ReportAck, P)>, NotAwaited> {
        let last = self.sent.iter().position(|sent| sent.id == id).ok_or(NotAwaited(id))?;
        let acknowledged = self.sent.drain(..=last).map(|sent| {
            self.sent_bytes -= sent.bytes;
            (sent.id, sent.place)
        });
        Ok(acknowledged.collect())
    }

    /// Bytes waiting to be sent.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }
}
