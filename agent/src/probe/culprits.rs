//! Who ran while VMs waited: the kernel's table of waits, read from shared memory, and the columns of host tasks' commands.
//!
//! Only the rows and columns of tracked VMs are read: the table is 3 MiB, of which a host with few VMs touches little.

use super::ProbeError;
use super::accounting::{is_not_found, map_error};
use super::columns::{Admission, Columns};
use super::load::take_map;
use super::mapping::Mapping;
use crate::reading::{Culprit, WaitCauses};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use gnomon_common::abi::sched::{Command, OTHER_COMMANDS_COLUMN, QUOTA_COLUMN, VM_SLOTS_MAX, WAIT_COLUMNS, WaitRow};
use gnomon_common::wire::VmId;
use rustix::mm::ProtFlags;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// [`Command`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodCommand(Command);

// SAFETY: two `u64`, without padding.
unsafe impl aya::Pod for PodCommand {}

/// The waits of a loaded probe.
pub(super) struct Waits {
    rows: Mapping<WaitRow>,
    commands: HashMap<MapData, PodCommand, u32>,
    newcomers: HashMap<MapData, PodCommand, u32>,
    columns: Columns,
    /// Whether this kernel tells that a quota holds a thread back.
    tells_quota: bool,
}

impl Waits {
    /// Takes the maps out of a fresh object.
    pub(super) fn of(ebpf: &mut Ebpf, tells_quota: bool) -> Result<Self, ProbeError> {
        let Some(Map::Array(waits)) = ebpf.map("WAITS") else {
            return Err(ProbeError::Missing { kind: "map", name: "WAITS" });
        };
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        Ok(Self {
            rows: Mapping::of(waits.fd().as_fd(), VM_SLOTS_MAX as u32, rights)?,
            commands: take_map(ebpf, "COMMANDS")?,
            newcomers: take_map(ebpf, "NEWCOMERS")?,
            columns: Columns::new(),
            tells_quota,
        })
    }

    /// Empties a slot that is about to be given away. Its last owner's threads are gone, so nobody adds to it.
    pub(super) fn clear(&self, slot: u32) {
        for column in 0..WAIT_COLUMNS as u32 {
            self.cell(slot, column).store(0, Ordering::Relaxed);
        }
        self.clear_column(slot);
    }

    /// The waits of these VMs with their slots, in the order of their ids.
    pub(super) fn read(&mut self, slots: &[(VmId, u32)], now_ns: u64) -> BTreeMap<VmId, WaitCauses> {
        if let Err(error) = self.admit_newcomers(now_ns) {
            tracing::warn!(%error, "commands that are new on this host are counted among the others");
        }
        let commands: Vec<(Command, u32)> = self.columns.known().collect();
        let mut waited_ns = vec![0; commands.len()];
        let mut all = BTreeMap::new();
        for &(vm, row) in slots {
            let read = |column| self.cell(row, column).load(Ordering::Relaxed);
            let mut culprits = Vec::new();
            for &(other, slot) in slots {
                let ns = read(slot);
                if ns > 0 && slot != row {
                    culprits.push((Culprit::Vm(other), ns));
                }
            }
            for (&(command, column), waited_ns) in commands.iter().zip(&mut waited_ns) {
                let ns = read(column);
                if ns > 0 {
                    culprits.push((Culprit::Task(command), ns));
                    *waited_ns += ns;
                }
            }
            let causes = WaitCauses {
                own_quota_ns: self.tells_quota.then(|| read(QUOTA_COLUMN)),
                own_ns: read(row),
                culprits,
                other_tasks_ns: read(OTHER_COMMANDS_COLUMN),
            };
            all.insert(vm, causes);
        }
        self.columns.note(&waited_ns, now_ns);
        all
    }

    /// Gives columns to commands that the kernel has met and does not know.
    fn admit_newcomers(&mut self, now_ns: u64) -> Result<(), ProbeError> {
        self.columns.begin();
        let newcomers = self.newcomers.keys().collect::<Result<Vec<_>, _>>().map_err(map_error("NEWCOMERS"))?;
        for PodCommand(command) in newcomers {
            match self.columns.admit(command, now_ns) {
                Admission::Column(column) => {
                    self.clear_column(column);
                    self.commands.insert(PodCommand(command), column, 0).map_err(map_error("COMMANDS"))?;
                    remove(&mut self.newcomers, command, "NEWCOMERS")?;
                }
                Admission::After(idle) => remove(&mut self.commands, idle, "COMMANDS")?,
                Admission::Full => break,
            }
        }
        Ok(())
    }

    fn clear_column(&self, column: u32) {
        for row in 0..VM_SLOTS_MAX as u32 {
            let cell = self.cell(row, column);
            // A store would make the kernel give memory to a page that nobody has touched.
            if cell.load(Ordering::Relaxed) != 0 {
                cell.store(0, Ordering::Relaxed);
            }
        }
    }

    fn cell(&self, row: u32, column: u32) -> &AtomicU64 {
        assert!((column as usize) < WAIT_COLUMNS, "column {column} is outside the row");
        // SAFETY: in bounds of the mapping, which lives as long as `self`; aligned; the kernel adds atomically.
        unsafe { AtomicU64::from_ptr(self.rows.at(row).cast::<u64>().add(column as usize)) }
    }
}

fn remove(map: &mut HashMap<MapData, PodCommand, u32>, command: Command, name: &'static str) -> Result<(), ProbeError> {
    match map.remove(&PodCommand(command)) {
        Err(error) if !is_not_found(&error) => Err(map_error(name)(error)),
        _ => Ok(()),
    }
}
