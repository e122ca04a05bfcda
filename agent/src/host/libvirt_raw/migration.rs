//! Jobs of migrations and the memory of a host, for which the `virt` crate has no safe calls (its own for jobs ends the process where there is
//! none).

use super::check;
use super::parameters::{Parameter, parameter};
use std::ffi::c_int;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// More kinds of memory than any libvirt tells (five in 9.0): a reply that announces more is cut.
const MEMORY_KINDS_MAX: c_int = 16;

/// What libvirt says of a job: its type (`VIR_DOMAIN_JOB_...`) and its parameters.
pub(in crate::host) struct RawJob {
    pub(in crate::host) kind: u32,
    pub(in crate::host) parameters: Vec<Parameter>,
}

/// The job that is under way, or with `completed` the last one that has ended, which stays known. Blocks.
pub(in crate::host) fn job(domain: &Domain, completed: bool) -> Result<RawJob, Error> {
    let flags =
        if completed { sys::VIR_DOMAIN_JOB_STATS_COMPLETED | sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED } else { 0 };
    let (mut kind, mut count): (c_int, c_int) = (0, 0);
    let mut list: sys::virTypedParameterPtr = std::ptr::null_mut();
    // SAFETY: the domain is alive; libvirt sets `list` to an array of its own with `count` entries, or leaves it null.
    check(unsafe { sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut list, &mut count, flags) })?;
    let length = if list.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
    let parameters = if length == 0 {
        Vec::new()
    } else {
        // SAFETY: the array has `count` entries and is not changed until it is freed below.
        unsafe { std::slice::from_raw_parts(list, length) }.iter().map(parameter).collect()
    };
    // SAFETY: the list is libvirt's own, or null, and is freed once.
    unsafe { sys::virTypedParamsFree(list, count) };
    Ok(RawJob { kind: u32::try_from(kind).unwrap_or(0), parameters })
}

/// Asks the job that is under way to end; it does so a little later. Blocks.
pub(in crate::host) fn abort(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is alive.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })
}

/// What the host of a connection tells of its memory, in KiB by kind: `free`, `buffers`, `cached`. Blocks.
pub(in crate::host) fn node_memory(connect: &Connect) -> Result<Vec<(String, u64)>, Error> {
    let cells = sys::VIR_NODE_MEMORY_STATS_ALL_CELLS;
    let mut count: c_int = 0;
    // SAFETY: the connection is alive; with a count of 0 and no array libvirt only tells how many there are.
    check(unsafe { sys::virNodeGetMemoryStats(connect.as_ptr(), cells, std::ptr::null_mut(), &mut count, 0) })?;
    let mut count = count.clamp(0, MEMORY_KINDS_MAX);
    // SAFETY: it is plain data, for which all zeros (no name, no bytes) is a value.
    let empty: sys::virNodeMemoryStats = unsafe { std::mem::zeroed() };
    let mut list = vec![empty; usize::try_from(count).unwrap_or(0)];
    // SAFETY: as above, and the array has room for `count` entries, of which libvirt fills at most that many and says how many.
    check(unsafe { sys::virNodeGetMemoryStats(connect.as_ptr(), cells, list.as_mut_ptr(), &mut count, 0) })?;
    let filled = usize::try_from(count).unwrap_or(0).min(list.len());
    let name = |raw: &sys::virNodeMemoryStats| {
        let bytes: Vec<u8> = raw.field.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(list[..filled].iter().map(|raw| (name(raw), raw.value)).collect())
}
