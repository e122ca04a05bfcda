//! Where the fields of classic tracepoints lie: their `format` files in tracefs.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Where tracefs is mounted by convention, the present one first.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why a tracepoint's fields are not known.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// Neither place has it.
    #[error(
        "tracefs is mounted neither at /sys/kernel/tracing nor at /sys/kernel/debug/tracing: \
         mount -t tracefs nodev /sys/kernel/tracing"
    )]
    NotMounted,
    /// It is there for others.
    #[error("{path} may not be read: tracefs is root's alone; run the agent as root or with CAP_DAC_READ_SEARCH")]
    NotPermitted {
        /// What was asked for.
        path: PathBuf,
    },
    /// The kernel has no such tracepoint, or does not let it be read.
    #[error("reading {path}: {source}; this kernel lacks the tracepoint")]
    Read {
        /// Its format.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tracepoint lacks a field, or it has another size.
    #[error("{path} has no field {field} of 4 or 8 bytes; this kernel is not supported, please report it")]
    Field {
        /// Its format.
        path: PathBuf,
        /// Which field.
        field: &'static str,
    },
}

/// A mounted tracefs.
#[derive(Clone, Debug)]
pub struct Tracefs {
    root: PathBuf,
}

impl Tracefs {
    /// Finds it.
    ///
    /// # Errors
    /// If it is mounted nowhere, or not for this process.
    pub fn find() -> Result<Self, TracefsError> {
        Self::find_in(&MOUNT_POINTS.map(PathBuf::from))
    }

    fn find_in(places: &[PathBuf]) -> Result<Self, TracefsError> {
        let mut denied = None;
        for root in places {
            // The mount point is there, and empty, where nothing is mounted.
            match fs::read_dir(root.join("events")) {
                Ok(_) => return Ok(Self { root: root.clone() }),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    denied.get_or_insert_with(|| root.clone());
                }
                Err(_) => {}
            }
        }
        Err(denied.map_or(TracefsError::NotMounted, |path| TracefsError::NotPermitted { path }))
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The offset of a field in the record of a tracepoint (`sched`, `sched_switch`), in bytes.
    ///
    /// # Errors
    /// If there is no such tracepoint or field.
    pub fn field_offset(&self, category: &str, event: &str, field: &'static str) -> Result<u32, TracefsError> {
        let path = self.root.join("events").join(category).join(event).join("format");
        let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => TracefsError::NotPermitted { path: path.clone() },
            _ => TracefsError::Read { path: path.clone(), source },
        })?;
        offset_in(&text, field).ok_or(TracefsError::Field { path, field })
    }
}

/// Finds `field` in a format: lines like `field:pid_t next_pid;  offset:56;  size:4;  signed:1;`. Only fields of 4 or 8 bytes are
/// wanted: ids, flags and states.
fn offset_in(format: &str, field: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().split(';').map(str::trim);
        let declaration = parts.next()?.strip_prefix("field:")?;
        if declaration.split_whitespace().last()? != field {
            return None;
        }
        let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
        let size: u32 = parts.next()?.strip_prefix("size:")?.parse().ok()?;
        matches!(size, 4 | 8).then_some(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: &str = "name: sched_switch\nID: 300\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;\n\
        \tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n\
        \tfield:long prev_state;\toffset:32;\tsize:8;\tsigned:1;\n\
        \tfield:pid_t next_pid;\toffset:56;\tsize:4;\tsigned:1;\n\n\
        print fmt: \"prev_pid=%d next_pid=%d\", REC->prev_pid, REC->next_pid\n";

    #[test]
    fn fields_are_found_where_the_format_says() {
        assert_eq!(offset_in(FORMAT, "prev_state"), Some(32));
        assert_eq!(offset_in(FORMAT, "next_pid"), Some(56));
        assert_eq!(offset_in(FORMAT, "pid"), None, "half a name is none");
        assert_eq!(offset_in(FORMAT, "common_type"), None, "two bytes are no id");
    }

    #[test]
    fn a_missing_mount_a_missing_event_and_a_missing_field_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("tracing");
        fs::create_dir(&place).unwrap();
        let find = || Tracefs::find_in(&[dir.path().join("none"), place.clone()]);
        assert!(matches!(find(), Err(TracefsError::NotMounted)));
        fs::create_dir_all(place.join("events/sched/sched_switch")).unwrap();
        let tracefs = find().unwrap();
        assert!(matches!(tracefs.field_offset("sched", "sched_switch", "next_pid"), Err(TracefsError::Read { .. })));
        fs::write(place.join("events/sched/sched_switch/format"), FORMAT).unwrap();
        assert_eq!(tracefs.field_offset("sched", "sched_switch", "next_pid").unwrap(), 56);
        let error = tracefs.field_offset("sched", "sched_switch", "next_tid").unwrap_err().to_string();
        assert!(error.contains("sched_switch/format has no field next_tid"), "{error}");
    }

    proptest! {
        #[test]
        fn no_format_makes_the_parser_panic(text in "(field:|offset:|size:|;|[ -~\\n]){0,60}", field in "[a-z_]{1,8}") {
            let _ = offset_in(&text, &field);
        }
    }
}
