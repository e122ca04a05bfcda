//! A ring's dealings with the store: what to persist, what to forget, what is there alone, and what comes back.

use super::{Ring, Sealed};
use crate::archive::Change;
use crate::archive::block::{self, BlockError, BlockKey, SealedBlock};

/// How long a host may hold back what it measured while it was cut off (`spool.age_max_s` by default): gaps younger than that may still
/// be filled, so blocks that have one are not sent away.
const BACKLOG_MS: u64 = 7 * 24 * 3_600_000;

impl Ring {
    /// What the owner has to persist or to forget since the last time, the open block among it. With `away`, blocks that the owner then
    /// has and that cannot be filled any more leave memory.
    pub(in crate::archive) fn changes(&mut self, away: bool, changes: &mut Vec<Change>) {
        self.settle();
        self.has_owner = true;
        let forgotten = std::mem::take(&mut self.forgotten);
        let key = |number| BlockKey { kpi: self.kpi, tier: self.tier, number };
        for (&number, sealed) in &mut self.blocks {
            if !sealed.persisted {
                sealed.persisted = true;
                changes.push(Change::Persist(SealedBlock { key: key(number), bytes: sealed.bytes.clone() }));
            }
        }
        let tail_number = self.tail_number();
        let has_tail = self.tail.iter().any(|pair| !pair.is_gap());
        if self.tail_changed && has_tail {
            changes.push(Change::Persist(block::encode(key(tail_number), &self.tail)));
        }
        self.tail_changed = false;
        // What was forgotten and is there again was told above: the store replaces it.
        let is_there = |number: &u64| self.blocks.contains_key(number) || has_tail && *number == tail_number;
        changes
            .extend(forgotten.into_iter().filter(|number| !is_there(number)).map(|number| Change::Forget(key(number))));
        if away {
            self.send_away();
        }
    }

    /// Takes out of memory what the owner has and what cannot be filled any more. A clock that is set back into such a block forgets all of it.
    pub(in crate::archive) fn send_away(&mut self) {
        let block_ms = self.block_steps() * self.tier.step_ms();
        let now_ms = self.next.unwrap_or(0) * self.tier.step_ms();
        let is_fillable =
            |number: u64, sealed: &Sealed| sealed.has_gap && (number + 1) * block_ms + BACKLOG_MS > now_ms;
        let (sealed_bytes, away) = (&mut self.sealed_bytes, &mut self.away);
        self.blocks.retain(|&number, sealed| {
            let stays = !sealed.persisted || is_fillable(number, sealed);
            if !stays {
                *sealed_bytes -= sealed.bytes.len();
                away.insert(number);
            }
            stays
        });
    }

    /// Keys of blocks that are in the store alone and touch the steps from `from` to before `to`.
    pub(in crate::archive) fn away(&self, from: u64, to: u64) -> impl Iterator<Item = BlockKey> + '_ {
        let block_steps = self.block_steps();
        let first = from / block_steps;
        self.away.within(first..to.div_ceil(block_steps).max(first)).map(|number| self.key(number))
    }

    /// Takes a block back: one that was sent away, or one from before a restart, in any order.
    ///
    /// # Errors
    /// A block that cannot be read is refused, and one whose place is taken by what was measured since.
    pub(in crate::archive) fn restore(&mut self, block: SealedBlock) -> Result<(), BlockError> {
        let number = block.key.number;
        let block_steps = self.block_steps();
        let steps = block::decode(block.key, &block.bytes)?;
        let end_ms = (number.checked_add(2)).and_then(|after| after.checked_mul(block_steps * self.tier.step_ms()));
        if end_ms.is_none() {
            return Err(BlockError::Header { what: "number" });
        }
        let end = number * block_steps + steps.len() as u64;
        let has_gap = steps.len() < block_steps as usize || steps.iter().any(|pair| pair.is_gap());
        if self.next.is_some_and(|next| end <= next) {
            let oldest = self.next.unwrap_or(0).saturating_sub(self.tier.steps_kept()) / block_steps;
            let is_unpacked = self.unpacked.as_ref().is_some_and(|unpacked| unpacked.number == number);
            if self.blocks.contains_key(&number) || number == self.tail_number() || is_unpacked || number < oldest {
                return Err(BlockError::Outdated);
            }
            self.away.remove(number);
            self.put(number, Sealed { bytes: block.bytes, persisted: true, has_gap });
            return Ok(());
        }
        if self.open.measured_ms > 0.0 || self.tail_changed {
            return Err(BlockError::Outdated);
        }
        self.has_owner = true;
        // It is newer than what was given back so far, the newest of which is open: that is closed, as the owner has it.
        let open = self.tail_number();
        if self.tail.iter().any(|pair| !pair.is_gap()) {
            self.seal_tail();
            if let Some(sealed) = self.blocks.get_mut(&open) {
                sealed.persisted = true;
            }
        }
        self.next = Some(end);
        self.begin_tail(end);
        if steps.len() as u64 == block_steps {
            self.put(number, Sealed { bytes: block.bytes, persisted: true, has_gap });
        } else {
            self.tail.copy_from_slice(&steps);
        }
        self.drop_old();
        Ok(())
    }
}
