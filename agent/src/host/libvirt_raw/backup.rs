//! Backup jobs, for which the `virt` crate has no safe calls.

use super::check;
use std::ffi::{CStr, c_ulong};
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// Begins to back up a running domain's disks into files that are there already, and returns at once. Blocks shortly.
pub(in crate::host) fn begin(domain: &Domain, xml: &CStr) -> Result<(), Error> {
    let flags = sys::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL;
    // SAFETY: the domain is alive, and the text ends with 0; without a checkpoint there is no second one.
    check(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), std::ptr::null(), flags) })
}

/// The description of the backup that is under way. Blocks shortly.
pub(in crate::host) fn describe(domain: &Domain) -> Result<String, Error> {
    // SAFETY: the domain is alive.
    let text = unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) };
    if text.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: it ends with 0.
    let xml = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: libvirt allocates what it returns here with malloc, and leaves it to the caller, who frees it once.
    unsafe { libc::free(text.cast()) };
    Ok(xml)
}

/// How fast the job of one disk may read, in bytes per second. Blocks shortly.
pub(in crate::host) fn set_speed(domain: &Domain, disk: &CStr, bytes_per_s: u64) -> Result<(), Error> {
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES;
    let speed = c_ulong::try_from(bytes_per_s).unwrap_or(c_ulong::MAX);
    // SAFETY: the domain is alive, and the name ends with 0.
    check(unsafe { sys::virDomainBlockJobSetSpeed(domain.as_ptr(), disk.as_ptr(), speed, flags) })
}
