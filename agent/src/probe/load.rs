//! The programs for kernels with BTF and task storage: from object to kernel; and what loading any object has in common.

use super::ProbeError;
use super::btf::Types;
use aya::maps::{Map, MapError};
use aya::programs::{BtfTracePoint, Iter, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use std::fs;
use std::io::{self, ErrorKind};

/// Where the kernel publishes its own type information.
pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Globals of the object, and the member of `struct task_struct` whose offset each wants.
const TASK_OFFSETS: [(&str, &str); 5] = [
    ("TASK_PID_OFFSET", "pid"),
    ("TASK_TGID_OFFSET", "tgid"),
    ("TASK_STATE_OFFSET", "__state"),
    ("TASK_ON_CPU_OFFSET", "on_cpu"),
    ("TASK_BPF_STORAGE_OFFSET", "bpf_storage"),
];

/// How much of the verifier's log an error repeats: its end says what was refused.
const LOG_LINES_SHOWN: usize = 20;

/// A tracing program and the tracepoint it is for.
pub(super) type Tracing = (&'static str, &'static str);

/// The object in the kernel: maps made, programs not yet loaded.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    btf: Btf,
}

impl Object {
    /// Makes the maps, with room for `threads_max` threads.
    pub(super) fn open(threads_max: u32) -> Result<Self, ProbeError> {
        let blob = fs::read(BTF_PATH).map_err(|source| ProbeError::NoBtf { path: BTF_PATH, source })?;
        let wrong = |source| ProbeError::Btf { path: BTF_PATH, source };
        let types = Types::parse(&blob).map_err(wrong)?;
        let offsets = TASK_OFFSETS.map(|(_, member)| types.member_offset("task_struct", member));
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::AttachPoint { what: "the kernel", source })?;
        let mut loader = EbpfLoader::new();
        // aya can make a map of task storage, but has no type for it in user space, where none is needed.
        loader.btf(Some(&btf)).allow_unsupported_maps();
        loader.map_max_entries("ACCOUNTS", threads_max).map_max_entries("FREE_INDEXES", threads_max);
        for ((global, _), offset) in TASK_OFFSETS.iter().zip(&offsets) {
            loader.override_global(global, offset.as_ref().map_err(|e| wrong(e.clone()))?, true);
        }
        let ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sched"))).map_err(object_error)?;
        drop(loader);
        Ok(Self { ebpf, btf })
    }

    /// Loads and attaches tracing programs, in this order.
    pub(super) fn attach(&mut self, programs: &[Tracing]) -> Result<(), ProbeError> {
        let Self { ebpf, btf } = self;
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
        let Self { ebpf, btf } = self;
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
