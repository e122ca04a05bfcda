//! How fast a guest writes to its memory, for which the `virt` crate has no safe calls.

use super::check;
use std::ffi::{CStr, c_int, c_longlong};
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// What QEMU says of its last measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host) enum Measurement {
    /// There is none, or it goes on.
    Pending,
    /// It has ended, with so many MiB written to each second.
    Done(u64),
}

/// Begins to measure for so many seconds, in which QEMU looks at a sample of the guest's pages twice. Asks QEMU. Blocks for that only.
pub(in crate::host) fn start(domain: &Domain, period_s: u8) -> Result<(), Error> {
    let mode = sys::VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING;
    // SAFETY: the domain is alive.
    check(unsafe { sys::virDomainStartDirtyRateCalc(domain.as_ptr(), period_s.into(), mode) })
}

/// What came of it. Asks QEMU. Blocks.
pub(in crate::host) fn read(domain: &Domain) -> Result<Measurement, Error> {
    // SAFETY: used only below, where the domain is alive.
    let mut domains = [unsafe { domain.as_ptr() }, std::ptr::null_mut()];
    let mut records: *mut sys::virDomainStatsRecordPtr = std::ptr::null_mut();
    // SAFETY: the list of domains, which are alive, ends with null; libvirt sets `records` to a list of its own.
    let count =
        unsafe { sys::virDomainListGetStats(domains.as_mut_ptr(), sys::VIR_DOMAIN_STATS_DIRTYRATE, &mut records, 0) };
    check(count)?;
    let records = Records(records);
    let (mut status, mut mib_per_s): (c_int, c_longlong) = (0, 0);
    // SAFETY: the list ends with null, also where it is empty, and `records` keeps it alive.
    if let Some(record) = unsafe { records.0.as_ref().and_then(|first| first.as_ref()) } {
        let name = |name: &CStr| name.as_ptr();
        // SAFETY: the parameters are as many as the record says, names end with 0, and the values are of the types that libvirt documents; what
        // is not there is left as it is.
        unsafe {
            let (list, length) = (record.params, record.nparams);
            sys::virTypedParamsGetInt(list, length, name(sys::VIR_DOMAIN_STATS_DIRTYRATE_CALC_STATUS), &mut status);
            let rate = name(sys::VIR_DOMAIN_STATS_DIRTYRATE_MEGABYTES_PER_SECOND);
            sys::virTypedParamsGetLLong(list, length, rate, &mut mib_per_s);
        }
    }
    let measured = u32::try_from(status).is_ok_and(|status| status == sys::VIR_DOMAIN_DIRTYRATE_MEASURED);
    Ok(if measured { Measurement::Done(u64::try_from(mib_per_s).unwrap_or(0)) } else { Measurement::Pending })
}

/// A list of records in libvirt's memory.
struct Records(*mut sys::virDomainStatsRecordPtr);

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: the list is libvirt's own, and is freed once.
        unsafe { sys::virDomainStatsRecordListFree(self.0) };
    }
}
