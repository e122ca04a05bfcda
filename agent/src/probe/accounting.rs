//! The maps that both objects share, and what is read from them.

use super::ProbeError;
use super::ledger::Ledger;
use super::load::take_map;
use super::table::Table;
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Stack};
use gnomon_common::abi::sched::{THREAD_GONE, THREAD_LIVE, THREAD_VACANT, TgidEntry, ThreadAccount};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// `BPF_EXIST` of `bpf(2)`: change an element, do not create one.
const BPF_EXIST: u64 = 2;

/// [`TgidEntry`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodEntry(TgidEntry);

// SAFETY: two `u32`, without padding.
unsafe impl aya::Pod for PodEntry {}

/// [`ThreadAccount`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodAccount(ThreadAccount);

// SAFETY: integers only; 40 + 20 + 4 + 128 bytes fill its 192 without padding.
unsafe impl aya::Pod for PodAccount {}

/// The accounts of a loaded probe.
pub(super) struct Accounting {
    table: Table,
    accounts: Array<MapData, PodAccount>,
    tgid_slot: HashMap<MapData, u32, PodEntry>,
    free_indexes: Stack<MapData, u32>,
    threads_unmeasured: PerCpuArray<MapData, u64>,
    pub(super) ledger: Ledger,
}

impl Accounting {
    /// Takes the maps out of a fresh object and fills the stack of free indexes.
    pub(super) fn of(ebpf: &mut Ebpf, threads_max: u32) -> Result<Self, ProbeError> {
        let Some(Map::Array(accounts)) = ebpf.map("ACCOUNTS") else {
            return Err(ProbeError::Missing { kind: "map", name: "ACCOUNTS" });
        };
        let table = Table::map(accounts.fd().as_fd(), threads_max)?;
        let mut free_indexes: Stack<MapData, u32> = take_map(ebpf, "FREE_INDEXES")?;
        // The lowest on top: the used part of the table is a prefix, and `drain` stops where it ends.
        for index in (0..threads_max).rev() {
            free_indexes.push(index, 0).map_err(map_error("FREE_INDEXES"))?;
        }
        Ok(Self {
            table,
            accounts: take_map(ebpf, "ACCOUNTS")?,
            tgid_slot: take_map(ebpf, "TGID_SLOT")?,
            free_indexes,
            threads_unmeasured: take_map(ebpf, "THREADS_UNMEASURED")?,
            ledger: Ledger::default(),
        })
    }

    /// Names a process as one of a VM.
    pub(super) fn add_process(&mut self, tgid: u32, slot: u32) -> Result<(), ProbeError> {
        self.tgid_slot.insert(tgid, PodEntry(TgidEntry { slot, settled: 0 }), 0).map_err(map_error("TGID_SLOT"))
    }

    /// Notes that a process was passed over once.
    pub(super) fn settle_process(&mut self, tgid: u32, slot: u32) -> Result<(), ProbeError> {
        // The kernel drops the entry when it sees the id used by another process: it must not come back then.
        match self.tgid_slot.insert(tgid, PodEntry(TgidEntry { slot, settled: 1 }), BPF_EXIST) {
            Err(error) if !is_not_found(&error) => Err(map_error("TGID_SLOT")(error)),
            _ => Ok(()),
        }
    }

    /// Takes processes out.
    pub(super) fn remove_processes(&mut self, tgids: &BTreeSet<u32>) -> Result<(), ProbeError> {
        for tgid in tgids {
            match self.tgid_slot.remove(tgid) {
                Err(error) if !is_not_found(&error) => return Err(map_error("TGID_SLOT")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The processes of VMs as the kernel has them.
    pub(super) fn processes(&self) -> Result<Vec<(u32, TgidEntry)>, ProbeError> {
        let entries = self.tgid_slot.iter().map(|entry| entry.map(|(tgid, PodEntry(entry))| (tgid, entry)));
        entries.collect::<Result<_, _>>().map_err(map_error("TGID_SLOT"))
    }

    /// Takes a free account and opens it for a thread that nobody measures yet; `None` if there is none left.
    pub(super) fn open_account(&mut self, tid: u32, slot: u32) -> Result<Option<u32>, ProbeError> {
        let index = match self.free_indexes.pop(0) {
            Ok(index) => index,
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(map_error("FREE_INDEXES")(error)),
        };
        self.write(index, |account| ThreadAccount {
            seq: account.seq.wrapping_add(2),
            generation: account.generation.wrapping_add(1),
            tid,
            slot: slot as u16,
            state: THREAD_LIVE,
            ..ThreadAccount::default()
        })?;
        Ok(Some(index))
    }

    /// Puts an account back that [`Self::open_account`] gave and that no thread came to own.
    pub(super) fn put_account_back(&mut self, index: u32) -> Result<(), ProbeError> {
        self.write(index, |account| ThreadAccount { state: THREAD_VACANT, ..account })?;
        self.free_indexes.push(index, 0).map_err(map_error("FREE_INDEXES"))
    }

    /// Whether any account is free.
    pub(super) fn has_free_account(&mut self) -> Result<bool, ProbeError> {
        match self.free_indexes.pop(0) {
            Ok(index) => self.free_indexes.push(index, 0).map(|()| true).map_err(map_error("FREE_INDEXES")),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(map_error("FREE_INDEXES")(error)),
        }
    }

    /// Writes an account that no thread owns: its index came from the stack of free ones.
    fn write(&mut self, index: u32, change: impl FnOnce(ThreadAccount) -> ThreadAccount) -> Result<(), ProbeError> {
        let before = self.table.copy(index).unwrap_or_default();
        self.accounts.set(index, PodAccount(change(before)), 0).map_err(map_error("ACCOUNTS"))
    }

    /// Closes those of the `known` accounts (index and generation) for which `is_met` says no: their threads ended, but the
    /// mark of that was lost. Without this their indexes would leak, and their last stretch would go on for ever.
    pub(super) fn close_unmet(&mut self, known: &[(u32, u32)], mut is_met: impl FnMut(u32, &ThreadAccount) -> bool) {
        let now_ns = now_ns();
        for &(index, generation) in known {
            if let Some(mut account) = self.table.copy(index)
                && account.generation == generation
                && !is_met(index, &account)
            {
                account.state = THREAD_GONE;
                self.ledger.observe(index, &account, now_ns);
            }
        }
    }

    /// Takes in all accounts. Returns whether any index was given back. An account that is being written is left for the next time:
    /// its counts come then.
    pub(super) fn drain(&mut self, taken_ns: u64) -> bool {
        let mut recycled = false;
        for index in 0..self.table.len() {
            let Some(account) = self.table.copy(index) else { continue };
            if account.generation == 0 {
                break;
            }
            if self.ledger.observe(index, &account, taken_ns) {
                recycled = true;
                if let Err(error) = self.free_indexes.push(index, 0) {
                    tracing::error!(index, %error, "an account cannot be given back to the kernel; it stays unused");
                }
            }
        }
        recycled
    }

    /// Threads of VMs that the kernel found no account for, since load; `None` if that cannot be read now.
    pub(super) fn unmeasured(&self) -> Option<u64> {
        match self.threads_unmeasured.get(&0, 0) {
            Ok(per_cpu) => Some(per_cpu.iter().sum()),
            Err(error) => {
                tracing::warn!(%error, "the count of unmeasured threads cannot be read");
                None
            }
        }
    }
}

/// The clock of the accounts: `bpf_ktime_get_ns` is `CLOCK_MONOTONIC`.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// An error of a map's, by its name.
pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |source| ProbeError::Map { map, source }
}

/// Whether an element was not there.
pub(super) fn is_not_found(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(e) => e.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
