//! Copies of a running VM's disks, each on a thread of its own: begun, followed, or taken back.
//!
//! ```text
//!   nothing ──▶ a folder with a note and empty files ──▶ libvirt's backup into them ──▶ read once, noted as whole
//!      ▲              │ killed: found without a job            │ killed: found with its job, and followed
//!      └──────────────┴──────── given up, too late, failed ◀───┘
//! ```
//! Where they are to be on a host that does not see them, they are [sent](send) there then, and not kept here.
//!
//! Nothing is written to the VM's own disks: QEMU reads them, and holds a write of the guest's back until what it overwrites is in the copy.

use super::Task;
use super::copies::{Copies, Note, sha256};
use super::host::Backups;
use super::send;
use super::snag::{Snag, in_time};
use super::there::There;
use crate::host::libvirt::HypervisorError;
use crate::host::libvirt::backup::{BackupJob, is_into};
use gnomon_common::wire::{Base, Blueprint, DiskCopy, Imaged, Imaging, Unshadowable, VmId};
use std::fs::File;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often a backup is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How long a backup that was told to end may take for that.
const ABORT_MAX: Duration = Duration::from_secs(30);

/// How long after it was told so it is told again. libvirt ends whatever job there is: by then that may be the migration for which it was given up.
const ABORT_AGAIN: Duration = Duration::from_secs(5);

/// No disk is read slower than this, in bytes per second: QEMU takes 0 for no limit.
const SPEED_MIN: u64 = 64 << 10;

/// How often it is tried to have a copy made slower, before it is given up: it must not be made faster than it may.
const SPEED_TRIES: u32 = 10;

/// Why it is to be given up, once somebody says so.
pub(super) type GiveUp = OnceLock<&'static str>;

/// A copy that is to be.
pub(super) struct Order<'a> {
    pub(super) task: &'a Task,
    pub(super) imaging: &'a Imaging,
    /// When this life of the agent began with it.
    pub(super) begun: Instant,
    pub(super) give_up: &'a GiveUp,
}

impl Order<'_> {
    /// Why it is not gone on with, if it is not.
    pub(super) fn is_given_up(&self) -> Result<(), Snag> {
        if let Some(why) = self.give_up.get() {
            return Err(Snag::Busy(format!("given up: {why}")));
        }
        let timeout = Duration::from_millis(self.imaging.timeout_ms);
        if self.task.waited.saturating_add(self.begun.elapsed()) > timeout {
            return Err(Snag::Busy(format!("given up: not done after {} s", timeout.as_secs())));
        }
        Ok(())
    }

    /// The same while they are made, which takes room.
    fn is_over(&self, copies: &Copies) -> Result<(), Snag> {
        self.is_given_up()?;
        match copies.is_short()? {
            true => Err(Snag::Busy("given up: the room for copies runs out".to_owned())),
            false => Ok(()),
        }
    }
}

/// Has copies made of all disks of a VM that have no base, and sent where they are to be; says which there are. `tell` hears how far it has come, in
/// bytes done and in all: of what is copied, then of what is sent.
pub(super) fn image<H: Backups, T: There>(
    here: &mut H,
    there: &mut T,
    copies: &Copies,
    order: &Order<'_>,
    mut tell: impl FnMut(u64, u64),
) -> Result<Imaged, Snag> {
    let shadow = order.imaging.shadow;
    if let Some(to) = &order.imaging.send_to
        && copies.note(shadow)?.is_none()
    {
        send::may_begin(there, to, shadow)?;
    }
    let imaged = make(here, copies, order, &mut tell)?;
    let disks = match &order.imaging.send_to {
        Some(to) => send::send(there, copies, order, to, &imaged.disks, &send::PATIENCE, tell),
        None if copies.sending(shadow)?.is_some() => {
            Err(Snag::Busy("its copies were being sent elsewhere: they have to be deleted first".to_owned()))
        }
        None => return Ok(imaged),
    };
    match disks {
        Ok(disks) => Ok(Imaged { disks, ..imaged }),
        Err(error) => {
            take_back(here, copies, order);
            Err(error)
        }
    }
}

fn make<H: Backups>(
    here: &mut H,
    copies: &Copies,
    order: &Order<'_>,
    tell: impl FnMut(u64, u64),
) -> Result<Imaged, Snag> {
    let (vm, shadow) = (order.task.command.vm, order.imaging.shadow);
    match copies.note(shadow)? {
        Some(Note { of, made: Some(disks), .. }) if of == vm => {
            if copies.is_sent(shadow)? || disks.iter().all(|(_, copy)| is_there(copy)) {
                return Ok(Imaged { took_us: 0, disks });
            }
            tracing::warn!(%vm, %shadow, "copies of a VM's disks are not there any more: they are made anew");
        }
        Some(Note { made: Some(_), .. }) => return Err(Unshadowable::Taken.into()),
        _ => {}
    }
    let mut files = match here.backup_job(vm)? {
        BackupJob::Backup { targets, .. } if is_into(&targets, &copies.folder(shadow)) => {
            tracing::info!(%vm, %shadow, "the copying of a VM's disks goes on: it is followed");
            Vec::new()
        }
        BackupJob::Backup { .. } => return Err(Snag::Busy("another backup of it is under way".to_owned())),
        BackupJob::Other => return Err(Snag::Busy("libvirt has another job under way with it".to_owned())),
        BackupJob::None => {
            // Half a folder may be of another VM's disks.
            abandon(here, copies, shadow, Some(vm))?;
            in_time(order.task, order.begun)?;
            begin(here, copies, order).inspect_err(|_| take_back(here, copies, order))?
        }
    };
    // Also where it is followed: who began it may have been killed before this.
    let slowed = slow_down(here, copies, order);
    let made = slowed.and_then(|()| follow(here, copies, order, tell)).and_then(|()| finish(copies, order, &mut files));
    made.inspect_err(|_| take_back(here, copies, order))
}

/// Begins, and returns the files, opened: libvirt may give them to another user, who keeps them where the file system has no place to note whose
/// they were.
fn begin<H: Backups>(here: &mut H, copies: &Copies, order: &Order<'_>) -> Result<Vec<(String, File)>, Snag> {
    let (vm, shadow) = (order.task.command.vm, order.imaging.shadow);
    let blueprint = here.describe(vm)??;
    let disks = copyable(&blueprint);
    if disks.is_empty() {
        return Err(Unshadowable::Definition("it has no disk that is to be copied".to_owned()).into());
    }
    copies.has_room(disks.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes)))?;
    copies.begin(shadow, vm, &disks)?;
    let open = |(device, _): &(String, u64)| Ok((device.clone(), File::open(copies.file(shadow, device))?));
    let files = disks.iter().map(open).collect::<std::io::Result<Vec<_>>>()?;
    order.is_over(copies)?;
    let places: Vec<_> = disks.iter().map(|(device, _)| (device.clone(), copies.file(shadow, device))).collect();
    here.begin_backup(vm, &places)?;
    tracing::info!(%vm, %shadow, ?disks, reason = order.task.command.reason, "a VM's disks are being copied");
    Ok(files)
}

/// A backup has no speed; the jobs of its disks have.
fn slow_down<H: Backups>(here: &mut H, copies: &Copies, order: &Order<'_>) -> Result<(), Snag> {
    let Some(bytes_per_s) = order.imaging.bandwidth_bytes_per_s else { return Ok(()) };
    let disks = copies.note(order.imaging.shadow)?.map_or_else(Vec::new, |note| note.disks);
    let each = (bytes_per_s / disks.len().max(1) as u64).max(SPEED_MIN);
    for (device, _) in &disks {
        if !set_speed(here, order.task.command.vm, device, each)? {
            tracing::info!(vm = %order.task.command.vm, device, "its copy was there before it could be slowed down");
        }
    }
    Ok(())
}

/// QEMU refuses this of a disk whose copy has just become whole, until libvirt has seen that and says that there is no such job.
fn set_speed<H: Backups>(here: &mut H, vm: VmId, device: &str, bytes_per_s: u64) -> Result<bool, Snag> {
    for _ in 1..SPEED_TRIES {
        match here.set_backup_speed(vm, device, bytes_per_s) {
            Err(error) => tracing::debug!(%vm, device, %error, "its copying is not slowed down yet"),
            told => return Ok(told?),
        }
        std::thread::sleep(POLL);
    }
    Ok(here.set_backup_speed(vm, device, bytes_per_s)?)
}

fn is_there(copy: &DiskCopy) -> bool {
    std::fs::metadata(&copy.path).is_ok_and(|file| file.len() == copy.bytes)
}

fn copyable(blueprint: &Blueprint) -> Vec<(String, u64)> {
    let disks = blueprint.disks.iter().filter(|disk| disk.base == Base::Copyable);
    disks.map(|disk| (disk.device.clone(), disk.size_bytes)).collect()
}

/// Until it has ended, however. A libvirt that does not answer is asked again: QEMU copies without it.
fn follow<H: Backups>(
    here: &mut H,
    copies: &Copies,
    order: &Order<'_>,
    mut tell: impl FnMut(u64, u64),
) -> Result<(), Snag> {
    let (vm, folder) = (order.task.command.vm, copies.folder(order.imaging.shadow));
    loop {
        order.is_over(copies)?;
        match here.backup_job(vm) {
            Ok(BackupJob::Backup { targets, done_bytes, total_bytes }) if is_into(&targets, &folder) => {
                tell(done_bytes, total_bytes);
            }
            Ok(BackupJob::None) => match here.last_backup(vm) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => return Err(Snag::Busy(format!("its disks were not copied: {why}"))),
                Err(error) => is_unknown(vm, &error)?,
            },
            Ok(_) => return Err(Snag::Busy("somebody else has begun another job with it meanwhile".to_owned())),
            Err(error) => is_unknown(vm, &error)?,
        }
        std::thread::sleep(POLL);
    }
}

/// What is not known now is asked again, but for a VM that has ended or is gone.
fn is_unknown(vm: VmId, error: &HypervisorError) -> Result<(), Snag> {
    if error.is_of_no_process() {
        return Err(Snag::Busy(format!("its disks were not copied: {error}")));
    }
    tracing::debug!(%vm, %error, "how far its copying is is not known");
    Ok(())
}

/// Reads what was copied, and notes it down as whole.
fn finish(copies: &Copies, order: &Order<'_>, files: &mut Vec<(String, File)>) -> Result<Imaged, Snag> {
    let shadow = order.imaging.shadow;
    let note = copies.note(shadow)?.ok_or_else(|| Snag::Busy("the note of its copies is gone".to_owned()))?;
    if files.is_empty() {
        for (device, _) in &note.disks {
            files.push((device.clone(), File::open(copies.file(shadow, device))?));
        }
    }
    let mut disks = Vec::with_capacity(files.len());
    for (device, file) in files {
        file.sync_all()?;
        let Some((bytes, sha256)) = sha256(file, || order.is_over(copies).is_err())? else {
            order.is_over(copies)?;
            return Err(Snag::Busy("given up".to_owned()));
        };
        let path = copies.file(shadow, device).to_string_lossy().into_owned();
        disks.push((device.clone(), DiskCopy { path, bytes, sha256 }));
    }
    copies.finish(shadow, note, disks.clone())?;
    Ok(Imaged { took_us: 0, disks })
}

fn take_back<H: Backups>(here: &mut H, copies: &Copies, order: &Order<'_>) {
    let shadow = order.imaging.shadow;
    if let Err(error) = abandon(here, copies, shadow, Some(order.task.command.vm)) {
        tracing::warn!(%shadow, %error, "half copies of disks are not removed yet");
    }
}

/// Ends what still writes copies for a shadow, and removes them, whole or half. Nothing is removed before it is known that nobody writes to it. Where
/// there is no note of whose disks they are, it is who the order says.
pub(super) fn abandon<H: Backups>(
    here: &mut H,
    copies: &Copies,
    shadow: VmId,
    ordered_of: Option<VmId>,
) -> Result<(), Snag> {
    let of = match copies.note(shadow)? {
        // Only what is half can be written to.
        Some(Note { made: Some(_), .. }) => None,
        note => note.map(|note| note.of).or(ordered_of),
    };
    if let Some(of) = of {
        end_backup(here, of, copies, shadow)?;
    }
    if copies.remove(shadow)? {
        tracing::info!(%shadow, half_of = ?of, "copies of disks were deleted");
    }
    Ok(())
}

fn end_backup<H: Backups>(here: &mut H, vm: VmId, copies: &Copies, shadow: VmId) -> Result<(), Snag> {
    let (folder, until) = (copies.folder(shadow), Instant::now() + ABORT_MAX);
    let mut told: Option<Instant> = None;
    loop {
        match here.backup_job(vm) {
            Ok(BackupJob::Backup { targets, .. }) if is_into(&targets, &folder) => {}
            // It has none of ours, or does not run.
            Ok(_) => return Ok(()),
            Err(error) if error.is_of_no_process() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if told.is_none_or(|told| told.elapsed() >= ABORT_AGAIN) {
            told = Some(Instant::now());
            if let Err(error) = here.abort_job(vm) {
                tracing::debug!(%vm, %error, "its backup is not told to end: it may have ended by itself");
            }
        }
        if Instant::now() >= until {
            return Err(Snag::Busy(format!("its backup has not ended after {} s", ABORT_MAX.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests;
