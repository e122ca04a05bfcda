//! The array of accounts, mapped read-only: consistent copies without a system call.

use super::ProbeError;
use super::mapping::Mapping;
use gnomon_common::abi::sched::ThreadAccount;
use rustix::mm::ProtFlags;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How often a copy is tried again. A writer is at it for some 10 ns, so even two in a row are rare; only one that was
/// preempted while it set the account up takes longer, and then the next drain will do.
const COPY_ATTEMPTS: u32 = 100;

/// The accounts, indexed as in the kernel.
pub(super) struct Table(Mapping<ThreadAccount>);

impl Table {
    /// Maps a BPF array of `accounts` accounts.
    pub(super) fn map(array: BorrowedFd<'_>, accounts: u32) -> Result<Self, ProbeError> {
        Mapping::of(array, accounts, ProtFlags::READ).map(Self)
    }

    /// How many accounts there are.
    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    /// A copy of one account as it was at one instant, or `None` if the kernel was writing it all the time.
    pub(super) fn copy(&self, index: u32) -> Option<ThreadAccount> {
        // SAFETY: in bounds of the mapping, which lives as long as `self`.
        unsafe { copy_consistent(self.0.at(index)) }
    }
}

/// The reader of the sequence lock.
///
/// # Safety
/// `account` is valid for reads, and whoever writes it makes `seq` odd before and even after.
unsafe fn copy_consistent(account: *mut ThreadAccount) -> Option<ThreadAccount> {
    // SAFETY: aligned and valid by the contract; written by others only as whole words.
    let seq = unsafe { AtomicU64::from_ptr(&raw mut (*account).seq) };
    for _ in 0..COPY_ATTEMPTS {
        let before = seq.load(Ordering::Acquire);
        if before % 2 == 0 {
            // SAFETY: valid by the contract. The bytes may change under the copy; it is used only if they did not.
            let copy = unsafe { account.read_volatile() };
            fence(Ordering::Acquire);
            if seq.load(Ordering::Relaxed) == before {
                return Some(copy);
            }
        }
        std::hint::spin_loop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    #[test]
    fn an_account_that_is_being_written_is_not_read() {
        let mut account = ThreadAccount { seq: 7, ..Default::default() };
        // SAFETY: a local value.
        assert_eq!(unsafe { copy_consistent(&raw mut account) }, None);
        account.seq = 8;
        // SAFETY: a local value.
        assert_eq!(unsafe { copy_consistent(&raw mut account) }, Some(account));
    }

    struct Shared(*mut ThreadAccount);
    // SAFETY: the test's two sides keep to the sequence lock.
    unsafe impl Sync for Shared {}

    #[test]
    fn no_copy_mixes_two_states_while_a_writer_is_at_it() {
        let mut account = ThreadAccount::default();
        let shared = &Shared(&raw mut account);
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut value = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    // SAFETY: the account outlives the scope; every other access is `copy_consistent`.
                    unsafe {
                        let account = shared.0;
                        let seq = AtomicU64::from_ptr(&raw mut (*account).seq);
                        seq.fetch_add(1, Ordering::SeqCst);
                        (&raw mut (*account).run_ns).write_volatile(value);
                        (&raw mut (*account).wait_ns).write_volatile(value);
                        (&raw mut (*account).wait_log2[31]).write_volatile(value as u32);
                        seq.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            let (mut copies, mut last) = (0, 0);
            // On a busy machine the writer may get a CPU only later.
            let deadline = Instant::now() + Duration::from_secs(30);
            while (copies < 100_000 || last <= 1_000) && Instant::now() < deadline {
                // SAFETY: the account outlives the scope.
                let Some(copy) = (unsafe { copy_consistent(shared.0) }) else { continue };
                assert_eq!((copy.run_ns, u64::from(copy.wait_log2[31])), (copy.wait_ns, copy.wait_ns));
                assert!(copy.run_ns >= last, "went back from {last} to {}", copy.run_ns);
                last = copy.run_ns;
                copies += 1;
            }
            stop.store(true, Ordering::Relaxed);
            assert!(last > 1_000, "the writer hardly ran: {last} rounds prove nothing");
        });
    }
}
