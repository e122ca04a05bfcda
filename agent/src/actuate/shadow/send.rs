//! Copies that are whole are sent to a host that does not see them, by way of its libvirt, and deleted here once it has them.
//!
//! ```text
//!   whole here ──▶ files made there, each written down before and after ──▶ sent part by part, each written down ──▶ deleted here
//!      ▲                                        │ killed, or the line broke: gone on with what is there, from the last part
//!      └── nothing is left on either side ◀─────┴── given up, too late, nothing came over for long
//! ```
//! There only what is known to have been made by this order is written to or removed, as is a file of this shadow's that an earlier life has asked for:
//! before that there was none. What else may have been made, and what cannot be removed since that host does not answer, its own agent deletes when its
//! shadow is retired.

use super::copies::Copies;
use super::image::Order;
use super::snag::Snag;
use super::there::{NotMade, NotSent, Part, There};
use crate::host::libvirt::upload::{Folder, PoolFile};
use gnomon_common::wire::{DiskCopy, Receiving, Unshadowable, VmId, received_prefix};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is sent before it is written down, in bytes: gone on with is from there. At most what ten seconds take.
const PART_BYTES_MAX: u64 = 32 << 20;
const PART_BYTES_MIN: u64 = 1 << 20;
const PART_S: u64 = 10;

/// How long is waited for what does not come.
pub(super) struct Patience {
    /// Where nothing has come over for so long it is given up.
    pub(super) quiet_max: Duration,
    /// After so long it is tried again.
    pub(super) pause: Duration,
}

/// A part takes ten seconds, but for a line that is slower than policy thinks.
pub(super) const PATIENCE: Patience = Patience { quiet_max: Duration::from_secs(120), pause: Duration::from_secs(2) };

/// How often what was made there is tried to be removed.
const REMOVALS_MAX: u32 = 2;

/// This share of the file system there stays free, as where a migration copies disks.
const RESERVE_SHARE: f64 = 0.05;

/// How far copies are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sending {
    /// Where to.
    pub(super) to: Receiving,
    /// So many files, from the first on, are known to have been made there.
    pub(super) made: usize,
    /// So many were asked for: of the one after those that are made it is not known whether it is there.
    pub(super) begun: usize,
    /// So much is there of all files, one after the other, in bytes.
    pub(super) bytes: u64,
    /// Everything is there, and nothing is to be kept here.
    pub(super) is_whole: bool,
}

/// Whether copies for a shadow may be sent there at all, as far as can be told before they are made.
pub(super) fn may_begin<T: There>(there: &mut T, to: &Receiving, shadow: VmId) -> Result<(), Snag> {
    let folder = there.folder(to).map_err(|error| no_answer(to, &error))?;
    fits(folder, to, Some(shadow), 0)
}

/// Sends copies, and says where they are then. What was made there is removed again if that comes to nothing.
pub(super) fn send<T: There>(
    there: &mut T,
    copies: &Copies,
    order: &Order<'_>,
    to: &Receiving,
    made: &[(String, DiskCopy)],
    patience: &Patience,
    mut tell: impl FnMut(u64, u64),
) -> Result<Vec<(String, DiskCopy)>, Snag> {
    let shadow = order.imaging.shadow;
    let at_target = |(device, copy): &(String, DiskCopy)| {
        (device.clone(), DiskCopy { path: to.file(shadow, device), ..copy.clone() })
    };
    let targets: Vec<(String, DiskCopy)> = made.iter().map(at_target).collect();
    let mut sending = match copies.sending(shadow)? {
        Some(sending) if sending.to != *to => {
            return Err(Snag::Busy("its copies were being sent elsewhere: they have to be deleted first".to_owned()));
        }
        Some(sending) if sending.is_whole => {
            // It may have been killed before that.
            copies.remove_files(shadow, made)?;
            return Ok(targets);
        }
        Some(sending) => {
            tracing::info!(%shadow, to = to.uri, bytes = sending.bytes, "the sending of copies of a VM's disks goes on");
            sending
        }
        None => Sending { to: to.clone(), made: 0, begun: 0, bytes: 0, is_whole: false },
    };
    let mut journey = Journey { there, copies, order, to, made, targets: &targets, patience };
    let sent = journey.make(&mut sending).and_then(|()| journey.parts(&mut sending, &mut tell));
    if let Err(error) = sent {
        return Err(journey.take_back(&sending, error));
    }
    sending.is_whole = true;
    copies.note_sending(shadow, &sending)?;
    copies.remove_files(shadow, made)?;
    tracing::info!(%shadow, to = to.uri, bytes = sending.bytes, "copies of a VM's disks were sent, and deleted here");
    Ok(targets)
}

/// One sending.
struct Journey<'a, T> {
    there: &'a mut T,
    copies: &'a Copies,
    order: &'a Order<'a>,
    to: &'a Receiving,
    made: &'a [(String, DiskCopy)],
    targets: &'a [(String, DiskCopy)],
    patience: &'a Patience,
}

impl<T: There> Journey<'_, T> {
    /// Makes the files there that are not made yet, empty.
    fn make(&mut self, sending: &mut Sending) -> Result<(), Snag> {
        let (shadow, total) = (self.order.imaging.shadow, bytes(self.made));
        if self.copies.sending(shadow)?.is_none() {
            let folder = self.folder()?;
            fits(folder, self.to, Some(shadow), total)?;
        }
        self.copies.note_sending(shadow, sending)?;
        if sending.made >= self.targets.len() {
            return Ok(());
        }
        while let Some((_, copy)) = self.targets.get(sending.made) {
            self.order.is_given_up()?;
            self.make_one(sending, copy)?;
            self.copies.note_sending(shadow, sending)?;
        }
        // Somebody else may have done the same meanwhile: now that the files are there each sees the other's.
        let folder = self.folder()?;
        fits(folder, self.to, None, 0)
    }

    /// Makes the next file. One that an earlier life has asked for may be there: nothing of this shadow's was there before that.
    fn make_one(&mut self, sending: &mut Sending, copy: &DiskCopy) -> Result<(), Snag> {
        let (shadow, was_begun) = (self.order.imaging.shadow, sending.begun > sending.made);
        if !(was_begun && self.is_there(copy)?) {
            sending.begun = sending.made + 1;
            self.copies.note_sending(shadow, sending)?;
            // Where it fails, whose a file of that name would be is not known.
            match self.there.make(self.to, Path::new(&copy.path), copy.bytes) {
                Ok(()) => {}
                // What was asked for then may have been made only now.
                Err(NotMade::Refused(_)) if was_begun && self.is_there(copy)? => {}
                Err(NotMade::Refused(error)) => {
                    sending.begun = sending.made;
                    self.copies.note_sending(shadow, sending)?;
                    return Err(Snag::Busy(format!("{} was not made on the target: {error}", copy.path)));
                }
                Err(NotMade::Unclear(error)) => {
                    sending.begun = sending.made;
                    return Err(Snag::Busy(format!("making {} on the target: {error}", copy.path)));
                }
            }
        }
        sending.made += 1;
        sending.begun = sending.made;
        Ok(())
    }

    /// Whether a file that was asked for is there.
    fn is_there(&mut self, copy: &DiskCopy) -> Result<bool, Snag> {
        let folder = self.folder()?;
        let name = Path::new(&copy.path).file_name();
        let is_it = |file: &PoolFile| name.is_some_and(|name| name == file.name.as_str()) && file.bytes == copy.bytes;
        Ok(folder.is_some_and(|folder| folder.files.iter().any(is_it)))
    }

    fn folder(&mut self) -> Result<Option<Folder>, Snag> {
        let begun = Instant::now();
        loop {
            self.order.is_given_up()?;
            match self.there.folder(self.to) {
                Ok(folder) => return Ok(folder),
                Err(error) if begun.elapsed() > self.patience.quiet_max => return Err(no_answer(self.to, &error)),
                Err(error) => tracing::debug!(to = self.to.uri, error, "the host that copies go to is asked again"),
            }
            std::thread::sleep(self.patience.pause);
        }
    }

    /// Sends what is not there yet.
    fn parts(&mut self, sending: &mut Sending, tell: &mut impl FnMut(u64, u64)) -> Result<(), Snag> {
        let (shadow, total, order) = (self.order.imaging.shadow, bytes(self.made), self.order);
        let quiet_max = self.patience.quiet_max;
        let (mut progressed, mut why) = (Instant::now(), None::<String>);
        while let Some(part) = self.next(sending.bytes) {
            let (before, mut most) = (sending.bytes, 0);
            let mut watch = |sent: u64| {
                if sent > most {
                    (most, progressed) = (sent, Instant::now());
                }
                tell(before.saturating_add(sent), total);
                order.is_given_up()?;
                match progressed.elapsed() > quiet_max {
                    true => Err(Snag::Busy(quiet(quiet_max, why.as_deref()))),
                    false => Ok(()),
                }
            };
            watch(0)?;
            match self.there.send(self.to, &part, &mut watch) {
                Ok(()) => {
                    sending.bytes = before.saturating_add(part.bytes.end - part.bytes.start);
                    self.copies.note_sending(shadow, sending)?;
                    (progressed, why) = (Instant::now(), None);
                }
                Err(NotSent::Over(snag)) => return Err(snag),
                Err(NotSent::Never(error)) => return Err(Snag::Busy(format!("its copies were not sent: {error}"))),
                Err(NotSent::Again(error)) => {
                    tracing::debug!(%shadow, to = self.to.uri, error, "a part of a copy is sent again");
                    why = Some(error);
                    std::thread::sleep(self.patience.pause);
                }
            }
        }
        tell(total, total);
        Ok(())
    }

    /// What is sent next, where so much is there.
    fn next(&self, sent: u64) -> Option<Part> {
        let bytes_per_s = self.order.imaging.bandwidth_bytes_per_s;
        let most = bytes_per_s
            .map_or(PART_BYTES_MAX, |speed| speed.saturating_mul(PART_S).clamp(PART_BYTES_MIN, PART_BYTES_MAX));
        let mut begin = 0u64;
        for ((device, copy), (_, target)) in self.made.iter().zip(self.targets) {
            let end = begin.saturating_add(copy.bytes);
            if sent < end {
                let from = self.copies.file(self.order.imaging.shadow, device);
                let at = sent - begin;
                let bytes = at..copy.bytes.min(at.saturating_add(most));
                return Some(Part { from, to: PathBuf::from(&target.path), bytes, bytes_per_s });
            }
            begin = end;
        }
        None
    }

    /// Removes what was made there, and says what is left.
    fn take_back(&mut self, sending: &Sending, error: Snag) -> Snag {
        // One that an earlier life has asked for is removed like those that are there.
        let begun = sending.begun.max(sending.made).min(self.targets.len());
        let (ours, unclear) = self.targets.split_at(begun);
        let mut left: Vec<&str> = ours.iter().map(|(_, copy)| copy.path.as_str()).collect();
        for attempt in 0..REMOVALS_MAX {
            if attempt > 0 && !left.is_empty() {
                std::thread::sleep(self.patience.pause);
            }
            // A host that does not answer for one of them does not for the next either.
            while let Some(file) = left.last() {
                if let Err(error) = self.there.remove(self.to, Path::new(file)) {
                    tracing::warn!(file, error, "half a copy of a disk is still on the host that it was sent to");
                    break;
                }
                left.pop();
            }
        }
        if left.is_empty() {
            return error;
        }
        tracing::warn!(made = left.len(), unclear = unclear.len(), "what is left there its agent has to delete");
        Snag::Busy(format!("{error}; left there until its agent deletes it: {}", left.join(", ")))
    }
}

/// Whether the folder there has room for so much more, and nothing yet for a new shadow.
fn fits(folder: Option<Folder>, to: &Receiving, new: Option<VmId>, more_bytes: u64) -> Result<(), Snag> {
    let no_room = |why: String| Err(Unshadowable::NoRoom(why).into());
    let (directory, uri) = (&to.directory, &to.uri);
    let Some(Folder { pool, files }) = folder else {
        return no_room(format!("no storage pool of the libvirt at {uri} is active over {directory}"));
    };
    let of_shadow = |shadow: VmId| files.iter().find(|file| file.name.starts_with(&received_prefix(shadow)));
    if let Some(file) = new.and_then(of_shadow) {
        let why = format!("{directory}/{} is at {uri} already, and nothing is overwritten", file.name);
        return Err(Snag::Busy(why));
    }
    let sum = |of: fn(&PoolFile) -> u64| files.iter().fold(0u64, |sum, file| sum.saturating_add(of(file)));
    let there = sum(|file| file.bytes).saturating_add(more_bytes);
    if there > to.bytes_max || more_bytes == 0 && new.is_some() && there >= to.bytes_max {
        let most = to.bytes_max;
        return no_room(format!("copies in {directory} at {uri} would have {there} bytes, and may have {most}"));
    }
    // What was begun and is not written yet takes its room, too.
    let to_come = sum(|file| file.bytes.saturating_sub(file.allocated_bytes)).saturating_add(more_bytes);
    let reserve = (pool.capacity_bytes as f64 * RESERVE_SHARE) as u64;
    if pool.available_bytes < to_come.saturating_add(reserve) {
        let free = pool.available_bytes;
        return no_room(format!(
            "{free} bytes are free in {directory} at {uri}, copies need {to_come}, and {reserve} are to stay free"
        ));
    }
    Ok(())
}

fn no_answer(to: &Receiving, error: &str) -> Snag {
    Snag::Busy(format!("the libvirt at {}, which the copies go to: {error}", to.uri))
}

fn quiet(quiet_max: Duration, why: Option<&str>) -> String {
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    format!("its copies were not sent: nothing has come over for {} s{why}", quiet_max.as_secs())
}

fn bytes(made: &[(String, DiskCopy)]) -> u64 {
    made.iter().fold(0, |sum: u64, (_, copy)| sum.saturating_add(copy.bytes))
}

#[cfg(test)]
mod tests;
