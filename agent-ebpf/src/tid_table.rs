//! Which threads belong to VMs: a hash table keyed by thread id, for kernels without BTF or task storage.
//!
//! An entry does not end with its thread, as task storage does: the last switch of a thread removes it, and the birth of a thread
//! under the same id removes what a missed one left behind.

use crate::accounts::{self, Unclaimed};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use core::ptr::null_mut;
use gnomon_common::abi::sched::{THREADS_MAX, ThreadAccount, ThreadRef};

/// Where a VM thread's account is. Preallocated: entries are made and removed under run-queue locks.
#[btf_map]
static THREADS: HashMap<u32, ThreadRef, THREADS_MAX> = HashMap::new();

/// What is registered for a thread, if anything.
#[inline(always)]
pub fn registration_of(tid: u32) -> Option<ThreadRef> {
    // SAFETY: copied at once. An entry that is removed meanwhile is still valid memory.
    unsafe { THREADS.get(tid) }.copied()
}

/// A thread's account, null for a thread of no VM.
#[inline(always)]
pub fn account_of(tid: u32) -> *mut ThreadAccount {
    match registration_of(tid) {
        Some(reference) => accounts::account_at(reference.index),
        None => null_mut(),
    }
}

/// Gives a thread an account under `slot`.
///
/// # Errors
/// Why it has none; nothing is left behind then.
#[inline(always)]
pub fn claim(tid: u32, slot: u32) -> Result<(), Unclaimed> {
    // Passes are counted by task iterators, which this probe has none of.
    let Some((index, account)) = accounts::open(tid, slot, 0, 0) else {
        return Err(Unclaimed::TableFull);
    };
    if THREADS.insert(tid, ThreadRef { index, slot }, u64::from(BPF_NOEXIST)).is_ok() {
        return Ok(());
    }
    accounts::put_back(index, account);
    // There are as many entries as accounts, so it is not room that lacks.
    Err(if registration_of(tid).is_some() { Unclaimed::AlreadyOwned } else { Unclaimed::NotRemembered })
}

/// Takes a thread's account away.
#[inline(always)]
pub fn release(tid: u32, reference: ThreadRef) {
    forget(tid);
    accounts::close(reference.index);
}

/// Forgets a thread whose account is closed by other means.
#[inline(always)]
pub fn forget(tid: u32) {
    // It may already be gone, and that is what is wanted.
    let _ = THREADS.remove(tid);
}
