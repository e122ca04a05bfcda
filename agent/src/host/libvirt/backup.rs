//! Copies of a running domain's disks as they are at one moment: libvirt's backup job, in push mode. QEMU reads the disks, and puts aside in the copy what
//! the guest is about to overwrite before it does.

use super::devices::children;
use super::{Hypervisor, HypervisorError};
use crate::host::libvirt_raw::backup as raw;
use crate::host::libvirt_raw::migration::{self as job, RawJob};
use crate::host::libvirt_raw::parameters::Value;
use gnomon_common::wire::VmId;
use roxmltree::Document;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

/// What a domain's jobs are at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupJob {
    /// It has none.
    None,
    /// A backup into these files.
    Backup {
        /// The files that it writes.
        targets: Vec<PathBuf>,
        /// Copied so far, in bytes.
        done_bytes: u64,
        /// What there is to copy, in bytes.
        total_bytes: u64,
    },
    /// Another one: a migration, a snapshot, a dump.
    Other,
}

/// The files that a backup writes, by its description.
fn targets(xml: &str) -> Vec<PathBuf> {
    let Ok(document) = Document::parse(xml) else { return Vec::new() };
    let disks = children(document.root_element(), "disks").flat_map(|disks| children(disks, "disk"));
    let target = |disk| children(disk, "target").next().and_then(|target| target.attribute("file"));
    disks.filter_map(target).map(PathBuf::from).collect()
}

/// The description of a backup of these disks into these qcow2 files, and of no others.
fn description(disks: &[(String, PathBuf)]) -> Result<String, HypervisorError> {
    let mut xml = "<domainbackup mode='push'><disks>".to_owned();
    for (device, file) in disks {
        let file = file.to_str().filter(|file| file.bytes().all(is_plain));
        let (Some(file), true) = (file, device.bytes().all(is_plain)) else {
            return Err(HypervisorError::Unsupported(format!("no backup of the disk {device:?} into such a file")));
        };
        xml += &format!(
            "<disk name='{device}' backup='yes' type='file'><driver type='qcow2'/><target file='{file}'/></disk>"
        );
    }
    Ok(xml + "</disks></domainbackup>")
}

/// What stands for itself in XML.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"<>&'\"".contains(&byte) || byte == b' '
}

impl Hypervisor {
    /// Begins to copy disks, by their devices (`vda`), as they are now, into qcow2 files of their sizes that are there. Blocks shortly.
    pub fn begin_backup(&self, vm: VmId, disks: &[(String, PathBuf)]) -> Result<(), HypervisorError> {
        let xml = text_for_libvirt(description(disks)?)?;
        raw::begin(&self.domain(vm)?, &xml).map_err(|e| HypervisorError::call("copy its disks", &e))
    }

    /// Lets the copying of a disk read at most so many bytes per second. `false` where that disk is not being copied any more. Blocks shortly.
    pub fn set_backup_speed(&self, vm: VmId, device: &str, bytes_per_s: u64) -> Result<bool, HypervisorError> {
        let call = |e: Error| HypervisorError::call("slow the copying of its disks down", &e);
        let device = text_for_libvirt(device.to_owned())?;
        match raw::set_speed(&self.domain(vm)?, &device, bytes_per_s) {
            Ok(()) => Ok(true),
            Err(error) if error.code().is_known_and(|code| code == ErrorNumber::InvalidArg) => Ok(false),
            Err(error) => Err(call(error)),
        }
    }

    /// Which job a running domain has. An error that is not [of no process](HypervisorError::is_of_no_process) leaves that open, and the next
    /// call may tell. Blocks shortly.
    pub fn backup_job(&self, vm: VmId) -> Result<BackupJob, HypervisorError> {
        let domain = self.domain(vm).map_err(unknown)?;
        let call = |e| no_answer(&domain, vm, "tell of its jobs", &e);
        let job = job::job(&domain, false).map_err(call)?;
        if job.kind == sys::VIR_DOMAIN_JOB_NONE {
            return Ok(BackupJob::None);
        }
        if number(&job, sys::VIR_DOMAIN_JOB_OPERATION) != Some(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP.into()) {
            return Ok(BackupJob::Other);
        }
        let of = |name| number(&job, name).unwrap_or(0);
        let (done_bytes, total_bytes) = (of(sys::VIR_DOMAIN_JOB_DISK_PROCESSED), of(sys::VIR_DOMAIN_JOB_DISK_TOTAL));
        match raw::describe(&domain) {
            Ok(xml) => Ok(BackupJob::Backup { targets: targets(&xml), done_bytes, total_bytes }),
            // Also where libvirt knows of no backup: its job says that there is one, which begins or ends.
            Err(error) => Err(call(error)),
        }
    }

    /// How the domain's last job has ended, if that was a backup: well, or why not. Blocks shortly.
    pub fn last_backup(&self, vm: VmId) -> Result<Result<(), String>, HypervisorError> {
        let domain = self.domain(vm).map_err(unknown)?;
        let call = |e| no_answer(&domain, vm, "tell how its last job has ended", &e);
        let job = job::job(&domain, true).map_err(call)?;
        let is_backup =
            number(&job, sys::VIR_DOMAIN_JOB_OPERATION) == Some(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP.into());
        Ok(match (is_backup, job.kind) {
            (true, sys::VIR_DOMAIN_JOB_COMPLETED) => Ok(()),
            (true, sys::VIR_DOMAIN_JOB_CANCELLED) => Err("it was cancelled".to_owned()),
            (true, _) => Err(text(&job, sys::VIR_DOMAIN_JOB_ERRMSG).unwrap_or("libvirt does not say why").to_owned()),
            (false, _) => Err("nothing is known of it".to_owned()),
        })
    }
}

/// What an error of libvirt's says of a domain's jobs: that it does not run and has none, or nothing. It says "invalid" of other things as well.
fn no_answer(domain: &Domain, vm: VmId, what: &'static str, error: &Error) -> HypervisorError {
    let is_invalid = error.code().is_known_and(|code| code == ErrorNumber::OperationInvalid);
    match is_invalid && matches!(domain.is_active(), Ok(false)) {
        true => HypervisorError::NotRunning(vm),
        false => unknown(HypervisorError::call(what, error)),
    }
}

/// What failed says nothing of jobs: it is to be asked again.
pub(super) fn unknown(error: HypervisorError) -> HypervisorError {
    match error {
        HypervisorError::Call { what, message, .. } => HypervisorError::Call { what, message, retryable: true },
        other => other,
    }
}

fn text_for_libvirt(text: String) -> Result<CString, HypervisorError> {
    CString::new(text).map_err(|_| HypervisorError::Unsupported("no name in libvirt has a zero byte".to_owned()))
}

fn find<'a>(job: &'a RawJob, name: &CStr) -> Option<&'a Value> {
    let found = job.parameters.iter().find(|parameter| parameter.name.as_bytes() == name.to_bytes())?;
    Some(&found.value)
}

fn number(job: &RawJob, name: &CStr) -> Option<u64> {
    match find(job, name)? {
        Value::Number(number) => Some(*number),
        _ => None,
    }
}

fn text<'a>(job: &'a RawJob, name: &CStr) -> Option<&'a str> {
    match find(job, name)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Whether a job is a backup into files of this folder, and of no other.
pub fn is_into(targets: &[PathBuf], folder: &Path) -> bool {
    !targets.is_empty() && targets.iter().all(|target| target.parent() == Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backup_writes_is_what_was_asked_for() {
        let disks = [("vda".to_owned(), PathBuf::from("/c/x/vda.qcow2")), ("vdb".to_owned(), "/c/x/vdb.qcow2".into())];
        let told = targets(&description(&disks).unwrap());
        assert_eq!(told, [PathBuf::from("/c/x/vda.qcow2"), "/c/x/vdb.qcow2".into()]);
        assert!(
            is_into(&told, Path::new("/c/x")) && !is_into(&told, Path::new("/c")) && !is_into(&[], Path::new("/c"))
        );
        assert!(!is_into(&[told[0].clone(), "/c/y/vda.qcow2".into()], Path::new("/c/x")));
        for bad in [("vda'", "/c/x"), ("vda", "/c/<x"), ("vda", "/c/x&y")] {
            assert!(description(&[(bad.0.to_owned(), bad.1.into())]).is_err());
        }
        // As libvirt tells it.
        let xml = "<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file' backupmode='full' index='2'>\
            <driver type='qcow2'/><target file='/c/x/vda.qcow2'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>";
        assert_eq!(targets(xml), [PathBuf::from("/c/x/vda.qcow2")]);
        assert!(targets("<domainbackup").is_empty());
    }
}
