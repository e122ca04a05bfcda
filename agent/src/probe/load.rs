//! The programs for kernels with BTF and task storage: from object to kernel; and what loading any object has in common.

use super::ProbeError;
use super::btf::{BtfError, Types};
use aya::maps::{Map, MapError};
use aya::programs::{BtfTracePoint, Iter, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use std::fs;
use std::io::{self, ErrorKind};

/// Where the kernel publishes its own type information.
pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Gives the memory back to the system that reading the kernel's types took for a moment: 38 MiB, which the C library would else keep for as long as the
/// agent lives. For after all probes were loaded, since each that is loaded later uses it again.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no memory that is in use, and is as safe from several threads as malloc.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Globals of the object, and the member of `struct task_struct` whose offset each wants.
const TASK_OFFSETS: [(&str, &str); 7] = [
    ("TASK_PID_OFFSET", "pid"),
    ("TASK_TGID_OFFSET", "tgid"),
    ("TASK_STATE_OFFSET", "__state"),
    ("TASK_ON_CPU_OFFSET", "on_cpu"),
    ("TASK_BPF_STORAGE_OFFSET", "bpf_storage"),
    ("TASK_GROUP_LEADER_OFFSET", "group_leader"),
    ("TASK_COMM_OFFSET", "comm"),
];

/// Where a thread's own count of its run time is.
const EXEC_PATH: MemberPath = &[("task_struct", "se"), ("sched_entity", "sum_exec_runtime")];

/// What an offset is added up of: a member of a structure, and where that is one itself, a member of that.
pub(super) type MemberPath = &'static [(&'static str, &'static str)];

/// The offset of the last member from the start of the first structure.
pub(super) fn offset(types: &Types<'_>, path: MemberPath) -> Result<u32, BtfError> {
    path.iter().try_fold(0u32, |sum, &(of, member)| Ok(sum.saturating_add(types.member_offset(of, member)?)))
}

/// How the kernel tells that a thread is held back by its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Throttling {
    /// By a member of `struct task_struct` at this offset (since 6.18).
    Thread(u32),
    /// By the run-queue of its group: the offset of the pointer to it, and that of the count in it.
    Group(u32, u32),
}

impl Throttling {
    /// What this kernel's types allow; `None` where it has no bandwidth control, or one that is not known here.
    fn of(types: &Types<'_>) -> Option<Self> {
        types.member_offset("task_struct", "throttled").map(Self::Thread).ok().or_else(|| Self::group_of(types))
    }

    fn group_of(types: &Types<'_>) -> Option<Self> {
        let entity = types.member_offset("task_struct", "se").ok()?;
        let run_queue = types.member_offset("sched_entity", "cfs_rq").ok()?;
        let count = types.member_offset("cfs_rq", "throttle_count").ok()?;
        Some(Self::Group(entity.checked_add(run_queue)?, count))
    }
}

/// How much of the verifier's log an error repeats: its end says what was refused.
const LOG_LINES_SHOWN: usize = 20;

/// A tracing program and the tracepoint it is for.
pub(super) type Tracing = (&'static str, &'static str);

/// The object in the kernel: maps made, programs not yet loaded.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    btf: Btf,
    pub(super) throttling: Option<Throttling>,
}

impl Object {
    /// Makes the maps, with room for `threads_max` threads. With `by_group`, threads are not asked whether their quota holds
    /// them back, but their groups, as on kernels where threads do not tell.
    pub(super) fn open(threads_max: u32, by_group: bool) -> Result<Self, ProbeError> {
        let blob = fs::read(BTF_PATH).map_err(|source| ProbeError::NoBtf { path: BTF_PATH, source })?;
        let wrong = |source| ProbeError::Btf { path: BTF_PATH, source };
        let types = Types::parse(&blob).map_err(wrong)?;
        let offsets = TASK_OFFSETS.map(|(_, member)| types.member_offset("task_struct", member));
        let exec = offset(&types, EXEC_PATH);
        let throttling = if by_group { Throttling::group_of(&types) } else { Throttling::of(&types) };
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::AttachPoint { what: "the kernel", source })?;
        let mut loader = EbpfLoader::new();
        // aya can make a map of task storage, but has no type for it in user space, where none is needed.
        loader.btf(Some(&btf)).allow_unsupported_maps();
        loader.map_max_entries("ACCOUNTS", threads_max).map_max_entries("FREE_INDEXES", threads_max);
        for ((global, _), offset) in TASK_OFFSETS.iter().zip(&offsets) {
            loader.override_global(global, offset.as_ref().map_err(|e| wrong(e.clone()))?, true);
        }
        loader.override_global("TASK_EXEC_OFFSET", exec.as_ref().map_err(|e| wrong(e.clone()))?, true);
        match &throttling {
            Some(Throttling::Thread(member)) => {
                loader.override_global("TASK_THROTTLED_OFFSET", member, true);
            }
            Some(Throttling::Group(run_queue, count)) => {
                loader.override_global("TASK_CFS_RQ_OFFSET", run_queue, true);
                loader.override_global("CFS_RQ_THROTTLE_COUNT_OFFSET", count, true);
            }
            None => {}
        }
        let ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sched"))).map_err(object_error)?;
        drop(loader);
        Ok(Self { ebpf, btf, throttling })
    }

    /// Loads and attaches tracing programs, in this order.
    pub(super) fn attach(&mut self, programs: &[Tracing]) -> Result<(), ProbeError> {
        let Self { ebpf, btf, .. } = self;
        for &(name, tracepoint) in programs {
            program::<BtfTracePoint>(ebpf, name)?.load(tracepoint, btf).map_err(|e| program_error(name, e))?;
        }
        for &(name, _) in programs {
            program::<BtfTracePoint>(ebpf, name)?.attach().map_err(|e| program_error(name, e))?;
        }
        Ok(())
    }

    /// Loads a program that runs over all tasks.
    pub(super) fn load_task_iterator(&mut self, name: &'static str) -> Result<(), ProbeError> {
        let Self { ebpf, btf, .. } = self;
        program::<Iter>(ebpf, name)?.load("task", btf).map_err(|e| program_error(name, e))
    }
}

/// Takes a map out of an object.
pub(super) fn take_map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, ProbeError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing { kind: "map", name })?;
    map.try_into().map_err(|source| ProbeError::Map { map: name, source })
}

/// A program of the object, by name and type.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ProbeError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing = ProbeError::Missing { kind: "program", name };
    ebpf.program_mut(name).ok_or(missing)?.try_into().map_err(|e| program_error(name, e))
}

/// What an error of an object's means to the operator.
pub(super) fn object_error(error: EbpfError) -> ProbeError {
    let denied = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => is_denied(io_error),
        EbpfError::BtfError(aya::BtfError::LoadError { io_error, .. }) => is_denied(io_error),
        _ => false,
    };
    if denied { ProbeError::NotPermitted { what: "making eBPF maps" } } else { ProbeError::Object(Box::new(error)) }
}

/// What an error of a program's means to the operator.
pub(super) fn program_error(program: &'static str, error: ProgramError) -> ProbeError {
    match error {
        // Without the right the verifier is not even started, and its log is empty.
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            if is_denied(&io_error) && log.trim().is_empty() {
                return ProbeError::NotPermitted { what: "loading eBPF programs" };
            }
            ProbeError::Refused { program, source: io_error, log_end: end_of(&log) }
        }
        ProgramError::SyscallError(error) if is_denied(&error.io_error) => {
            ProbeError::NotPermitted { what: "attaching eBPF programs" }
        }
        ProgramError::Btf(source) => ProbeError::AttachPoint { what: program, source },
        source => ProbeError::Attach { program, source: Box::new(source) },
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_only_the_end_of_the_verifiers_log() {
        let log: String = (0..1_000).map(|line| format!("line {line}\n")).collect();
        let end = end_of(&log);
        assert_eq!(end.lines().count(), LOG_LINES_SHOWN);
        assert!(end.ends_with("line 999"));
        assert_eq!(end_of("only one"), "only one");
    }
}
