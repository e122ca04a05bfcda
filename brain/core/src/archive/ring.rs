//! One KPI at one resolution: a bounded ring of steps, its newest block open, the others sealed.
//!
//! Blocks are aligned to the epoch, so that a block that is written again (its tail went on, a gap was filled) has the key that it had.

mod runs;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use super::Measurement;
use super::block::{self, BlockKey, Pair};
use super::kpi::{Kpi, Tier};
use runs::Runs;

/// A step counts as measured when at least this share of it was covered.
const COVERED_SHARE_MIN: f64 = 0.5;

/// A step while it is being measured.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    measured_ms: f64,
    sum: f64,
    max: f64,
}

impl Open {
    fn add(&mut self, measurement: &Measurement, measured_ms: f64) {
        self.measured_ms += measured_ms;
        self.sum += measurement.mean * measured_ms;
        self.max = self.max.max(measurement.max);
    }

    fn close(self, kpi: Kpi, step_ms: u64) -> Pair {
        if self.measured_ms < COVERED_SHARE_MIN * step_ms as f64 {
            return Pair::GAP;
        }
        let pair = Pair::of(self.sum / self.measured_ms, self.max);
        if kpi.is_estimate() { pair.coarse() } else { pair }
    }
}

/// A sealed block in memory.
#[derive(Clone, Debug)]
struct Sealed {
    bytes: Box<[u8]>,
    /// The owner has it as it is.
    persisted: bool,
    /// Some step of it is not known.
    has_gap: bool,
}

/// A sealed block that late measurements are filling.
#[derive(Clone, Debug)]
struct Unpacked {
    number: u64,
    steps: Vec<Pair>,
    changed: bool,
}

/// The steps of one KPI at one resolution. Step `i` covers `i * step_ms ..` since the epoch.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    kpi: Kpi,
    tier: Tier,
    /// Sealed blocks in memory, by number.
    blocks: BTreeMap<u64, Sealed>,
    /// Numbers of blocks that are in the store alone.
    away: Runs,
    /// Steps of the open block, from its start to `next`.
    tail: Vec<Pair>,
    /// The open step; `None` before the first measurement.
    next: Option<u64>,
    open: Open,
    /// The closed step that late measurements are filling, and what they told of it so far.
    filling: Option<(u64, Open)>,
    unpacked: Option<Unpacked>,
    /// The open block has steps that the owner has not got.
    tail_changed: bool,
    /// Numbers of blocks that the owner is to forget, if it ever asked for any.
    forgotten: BTreeSet<u64>,
    has_owner: bool,
    sealed_bytes: usize,
}

impl Ring {
    pub(super) fn new(kpi: Kpi, tier: Tier) -> Self {
        Self {
            kpi,
            tier,
            blocks: BTreeMap::new(),
            away: Runs::default(),
            tail: Vec::new(),
            next: None,
            open: Open::default(),
            filling: None,
            unpacked: None,
            tail_changed: false,
            forgotten: BTreeSet::new(),
            has_owner: false,
            sealed_bytes: 0,
        }
    }

    fn block_steps(&self) -> u64 {
        self.tier.block_steps(self.kpi)
    }

    fn key(&self, number: u64) -> BlockKey {
        BlockKey { kpi: self.kpi, tier: self.tier, number }
    }

    /// Adds what continues the series. O(1) amortised: a step is closed once and a block packed once.
    pub(super) fn add(&mut self, measurement: &Measurement) {
        let step_ms = self.tier.step_ms();
        let (start, end) = measurement.span_ms();
        let next = *self.next.get_or_insert(start / step_ms);
        if self.tail.is_empty() {
            self.begin_tail(next);
        }
        self.close_before(start / step_ms);
        // Of a window longer than the ring, the end is all that is kept.
        let kept_ms = self.tier.steps_kept() * step_ms;
        let mut at = start.max(self.next.unwrap_or(0) * step_ms).max(end.saturating_sub(kept_ms));
        while at < end {
            let index = at / step_ms;
            self.close_before(index);
            let step_end = (index + 1) * step_ms;
            self.open.add(measurement, (end.min(step_end) - at) as f64 * measurement.covered);
            at = step_end;
        }
        self.close_before(end / step_ms);
    }

    /// Adds what its host measured before the newest that was heard of: fills gaps, touches nothing known. Late measurements come in their
    /// order, so one block is unpacked at a time, once. Says whether anything was filled.
    pub(super) fn fill(&mut self, measurement: &Measurement) -> bool {
        let step_ms = self.tier.step_ms();
        let (start, end) = measurement.span_ms();
        let Some(next) = self.next else { return false };
        // What is older than the ring is not walked through: a window of years costs no more than the ring.
        let first = (start / step_ms).max(next.saturating_sub(self.tier.steps_kept()));
        let mut filled = false;
        for index in first..end.div_ceil(step_ms).min(next + 1) {
            let part_ms = end.min((index + 1) * step_ms) - start.max(index * step_ms);
            filled |= self.fill_step(index, measurement, part_ms as f64 * measurement.covered);
        }
        filled
    }

    fn fill_step(&mut self, index: u64, measurement: &Measurement, measured_ms: f64) -> bool {
        let (kpi, step_ms) = (self.kpi, self.tier.step_ms());
        let Some(next) = self.next else { return false };
        if index == next {
            let room_ms = step_ms as f64 - self.open.measured_ms;
            if room_ms > 0.0 {
                self.open.add(measurement, measured_ms.min(room_ms));
            }
            return room_ms > 0.0;
        }
        let known = self.filling.filter(|&(step, _)| step == index).map(|(_, open)| open);
        let Some(slot) = self.slot(index, known.is_some()) else { return false };
        if known.is_none() && !slot.is_gap() {
            return false;
        }
        let mut open = known.unwrap_or_default();
        let room_ms = step_ms as f64 - open.measured_ms;
        if room_ms <= 0.0 {
            return false;
        }
        open.add(measurement, measured_ms.min(room_ms));
        let closed = open.close(kpi, step_ms);
        let changed = !closed.is_gap() && *slot != closed;
        if changed {
            *slot = closed;
        }
        self.filling = Some((index, open));
        if index / self.block_steps() == self.tail_number() {
            self.tail_changed |= changed;
        } else if let Some(unpacked) = &mut self.unpacked {
            unpacked.changed |= changed;
        }
        true
    }

    /// A closed step's place: in the open block, or in a sealed one, which is unpacked. `None` when that is in the store alone, or has no
    /// gap (unless a step of it `is_filling`).
    fn slot(&mut self, index: u64, is_filling: bool) -> Option<&mut Pair> {
        let number = index / self.block_steps();
        let place = (index % self.block_steps()) as usize;
        if number == self.tail_number() {
            return self.tail.get_mut(place);
        }
        if self.unpacked.as_ref().is_none_or(|unpacked| unpacked.number != number) {
            if self.away.contains(number)
                || self.blocks.get(&number).is_some_and(|sealed| !sealed.has_gap && !is_filling)
            {
                return None;
            }
            self.settle();
            let mut steps = self.steps_of(number);
            steps.resize(self.block_steps() as usize, Pair::GAP);
            self.unpacked = Some(Unpacked { number, steps, changed: false });
        }
        self.unpacked.as_mut().and_then(|unpacked| unpacked.steps.get_mut(place))
    }

    /// Packs the block that was being filled, if that changed it.
    fn settle(&mut self) {
        if let Some(unpacked) = self.unpacked.take().filter(|unpacked| unpacked.changed) {
            self.seal(unpacked.number, &unpacked.steps);
        }
    }

    fn seal(&mut self, number: u64, steps: &[Pair]) {
        let sealed = block::encode(self.key(number), steps);
        let has_gap = steps.len() < self.block_steps() as usize || steps.iter().any(|pair| pair.is_gap());
        self.put(number, Sealed { bytes: sealed.bytes, persisted: false, has_gap });
    }

    fn put(&mut self, number: u64, sealed: Sealed) {
        self.sealed_bytes += sealed.bytes.len();
        if let Some(replaced) = self.blocks.insert(number, sealed) {
            self.sealed_bytes -= replaced.bytes.len();
        }
    }

    fn tail_number(&self) -> u64 {
        self.next.unwrap_or(0) / self.block_steps()
    }

    /// Starts the open block anew, with a gap from its start to `next`.
    fn begin_tail(&mut self, next: u64) {
        let before = (next % self.block_steps()) as usize;
        self.tail.clear();
        self.tail.reserve_exact(self.block_steps() as usize);
        self.tail.resize(before, Pair::GAP);
    }

    /// Closes every step before `index`.
    fn close_before(&mut self, index: u64) {
        let Some(next) = self.next.filter(|&next| index > next) else { return };
        let closed = std::mem::take(&mut self.open).close(self.kpi, self.tier.step_ms());
        self.push(closed, next);
        // A leap over whole blocks leaves no blocks: what is not there is a gap.
        let block_steps = self.block_steps();
        if index / block_steps > (next + 1) / block_steps {
            if (next + 1) % block_steps != 0 {
                self.seal_tail();
            }
            self.next = Some(index);
            self.begin_tail(index);
            self.drop_old();
        } else {
            for at in next + 1..index {
                self.push(Pair::GAP, at);
            }
        }
    }

    /// Appends the step `at` to the open block, and seals that when it is full.
    fn push(&mut self, pair: Pair, at: u64) {
        self.tail.push(pair);
        self.tail_changed |= !pair.is_gap();
        if (at + 1).is_multiple_of(self.block_steps()) {
            self.seal_tail();
            self.next = Some(at + 1);
            self.begin_tail(at + 1);
            self.drop_old();
        } else {
            self.next = Some(at + 1);
        }
    }

    /// Seals the open block as it is; `next` must still be within it.
    fn seal_tail(&mut self) {
        let number = self.tail_number();
        let tail = std::mem::take(&mut self.tail);
        if tail.iter().any(|pair| !pair.is_gap()) {
            self.seal(number, &tail);
        }
        self.tail = tail;
        self.tail_changed = false;
    }

    /// Forgets blocks that are too old.
    fn drop_old(&mut self) {
        let oldest = self.next.unwrap_or(0).saturating_sub(self.tier.steps_kept()) / self.block_steps();
        if self.unpacked.as_ref().is_some_and(|unpacked| unpacked.number < oldest) {
            self.unpacked = None;
        }
        let first = |ring: &Self| ring.first_block().filter(|&number| number < oldest);
        while let Some(number) = first(self) {
            self.forget(number);
        }
    }

    /// The oldest block that there is, in memory or not.
    fn first_block(&self) -> Option<u64> {
        self.blocks.first_key_value().map(|(&number, _)| number).into_iter().chain(self.away.first()).min()
    }

    fn forget(&mut self, number: u64) {
        if let Some(sealed) = self.blocks.remove(&number) {
            self.sealed_bytes -= sealed.bytes.len();
        }
        self.away.remove(number);
        if self.has_owner {
            self.forgotten.insert(number);
        }
    }

    /// Forgets the oldest block that is in memory; false when there is none.
    pub(super) fn forget_oldest(&mut self) -> bool {
        let oldest = self.blocks.first_key_value().map(|(&number, _)| number);
        oldest.inspect(|&number| self.forget(number)).is_some()
    }

    /// Forgets everything from `at_ms` on: the clock was set back.
    pub(super) fn forget_from(&mut self, at_ms: u64) {
        let index = at_ms / self.tier.step_ms();
        let Some(next) = self.next.filter(|&next| index < next) else {
            self.open = Open::default();
            return;
        };
        self.settle();
        let number = index / self.block_steps();
        let place = (index % self.block_steps()) as usize;
        if number == next / self.block_steps() {
            self.tail.truncate(place);
        } else {
            let kept = self.steps_of(number);
            let mut later: Vec<u64> = self.blocks.range(number..).map(|(&number, _)| number).collect();
            later.extend(self.away.within(number..self.tail_number()));
            later.push(self.tail_number());
            later.into_iter().for_each(|number| self.forget(number));
            self.begin_tail(index);
            self.tail.iter_mut().zip(kept).for_each(|(tail, kept)| *tail = kept);
        }
        self.tail_changed = true;
        self.next = Some(index);
        self.open = Open::default();
        self.filling = None;
    }

    /// Steps of a block in memory; none where it is not.
    fn steps_of(&self, number: u64) -> Vec<Pair> {
        self.blocks
            .get(&number)
            .and_then(|sealed| block::decode(self.key(number), &sealed.bytes).ok())
            .unwrap_or_default()
    }

    /// The oldest step that is kept (in memory or not) and the open one.
    pub(super) fn span(&self) -> Option<(u64, u64)> {
        let next = self.next?;
        let oldest = next.saturating_sub(self.tier.steps_kept());
        let steps = |number: u64| number * self.block_steps();
        let first = self.first_block().map_or(next - self.tail.len() as u64, steps);
        let unpacked = self.unpacked.as_ref().map_or(first, |unpacked| steps(unpacked.number));
        Some((first.min(unpacked).max(oldest), next))
    }

    /// The oldest step that was measured, to a block.
    pub(super) fn measured_since(&self) -> Option<u64> {
        let (first, next) = self.span()?;
        let gaps = self.tail.iter().take_while(|pair| pair.is_gap()).count() as u64;
        Some(if self.first_block().is_some() { first } else { (first + gaps).min(next) })
    }

    /// Closed steps from `from` to before `to`, by index, those that are measured and in memory, in order of time.
    pub(super) fn measured(&self, from: u64, to: u64, mut visit: impl FnMut(u64, Pair)) {
        let block_steps = self.block_steps();
        let Some((first, next)) = self.span() else { return };
        let (from, to) = (from.max(first), to.min(next));
        for number in from / block_steps..to.div_ceil(block_steps) {
            let decoded;
            let steps = if number == self.tail_number() {
                &self.tail
            } else if let Some(unpacked) = self.unpacked.as_ref().filter(|unpacked| unpacked.number == number) {
                &unpacked.steps
            } else {
                decoded = self.steps_of(number);
                &decoded
            };
            for (index, &pair) in (number * block_steps..).zip(steps) {
                if !pair.is_gap() && (from..to).contains(&index) {
                    visit(index, pair);
                }
            }
        }
    }

    /// Bytes in memory of sealed blocks.
    pub(super) fn sealed_bytes(&self) -> usize {
        self.sealed_bytes
    }

    /// Bytes in memory beside the ring itself, entries of the map by estimate.
    pub(super) fn memory_bytes(&self) -> usize {
        let pair = size_of::<Pair>();
        let unpacked = self.unpacked.as_ref().map_or(0, |unpacked| unpacked.steps.capacity() * pair);
        let entries = self.blocks.len() * BLOCK_BYTES + self.forgotten.len() * NUMBER_BYTES + self.away.memory_bytes();
        self.sealed_bytes + entries + self.tail.capacity() * pair + unpacked
    }
}

/// What a number costs in a set, whose nodes are two thirds full.
const NUMBER_BYTES: usize = size_of::<u64>() * 3 / 2;

/// What a sealed block costs beside its bytes: its entry in the map, and the allocator's overhead.
const BLOCK_BYTES: usize = (size_of::<u64>() + size_of::<Sealed>()) * 3 / 2 + 16;
