//! What VMs did with disks, added up as requests complete.

use super::atomic::add;
use super::request::Rq;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use gnomon_common::abi::block::{DISK_ACCOUNTS_MAX, Direction, DiskAccount, DiskKey, Request, VM_NONE, latency_bucket};

/// By VM and disk.
#[btf_map]
static DISK_ACCOUNTS: HashMap<DiskKey, DiskAccount, DISK_ACCOUNTS_MAX> = HashMap::new();

/// What a new account is made of: too large for the stack.
#[btf_map]
static EMPTY_ACCOUNT: Array<DiskAccount, 1> = Array::new();

/// Requests that ended without an entry, or found no account.
#[btf_map]
static REQUESTS_MISSED: Array<u64, 1> = Array::new();

/// How a request came out.
pub struct Outcome {
    pub now_ns: u64,
    pub bytes: u32,
    pub has_ended: bool,
}

/// Books a completion.
#[inline(always)]
pub fn book(rq: Rq, request: Option<Request>, outcome: Outcome) {
    let (major, minor) = rq.disk();
    let vm = match request {
        Some(request) => request.vm,
        None => VM_NONE,
    };
    let Some(account) = account_of(&DiskKey { vm, major, minor }) else {
        count_missed();
        return;
    };
    // SAFETY: a value of the map. Shared with other CPUs and with interrupts on this one, so all that follows is atomic.
    let direction = unsafe { if rq.is_read() { &raw mut (*account).read } else { &raw mut (*account).write } };
    // SAFETY: as above.
    unsafe { add(&raw mut (*direction).bytes, outcome.bytes.into()) };
    if !outcome.has_ended {
        return;
    }
    // SAFETY: as above.
    unsafe { add(&raw mut (*direction).operations, 1) };
    match request {
        Some(request) if request.issued_ns != 0 => {
            let device_ns = outcome.now_ns.saturating_sub(request.issued_ns);
            // SAFETY: as above.
            unsafe { add_times(direction, device_ns, request.issued_ns.saturating_sub(request.made_ns)) };
        }
        // Under way since before the probe was, or without room: its times are not known, and whose it was may not be.
        _ => count_missed(),
    }
}

#[inline(always)]
unsafe fn add_times(direction: *mut Direction, device_ns: u64, queued_ns: u64) {
    let bucket = latency_bucket(device_ns);
    // SAFETY: the caller's; the bucket is below their number by its definition.
    unsafe {
        add(&raw mut (*direction).device_ns, device_ns);
        add(&raw mut (*direction).queued_ns, queued_ns);
        add((&raw mut (*direction).device_log2).cast::<u64>().add(bucket), 1);
    }
}

#[inline(always)]
fn account_of(key: &DiskKey) -> Option<*mut DiskAccount> {
    if let Some(account) = DISK_ACCOUNTS.get_ptr_mut(key) {
        return Some(account);
    }
    let empty = EMPTY_ACCOUNT.get(0)?;
    // Another CPU may have been first, and then its account is the one.
    let _ = DISK_ACCOUNTS.insert(key, empty, u64::from(BPF_NOEXIST));
    DISK_ACCOUNTS.get_ptr_mut(key)
}

#[inline(always)]
fn count_missed() {
    if let Some(count) = REQUESTS_MISSED.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        unsafe { add(count, 1) };
    }
}
