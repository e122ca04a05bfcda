//! How long a domain's threads waited for memory: pressure stall information (PSI, Linux 4.20), version 2 only.

use super::super::kernel_file::{ReadError, read_value};
use super::DomainCgroup;

impl DomainCgroup {
    /// Time in which at least one thread of the domain was stalled on memory since its group was made, in microseconds. `None`
    /// where the domain has no version 2 group, or the kernel no PSI.
    pub fn memory_stalled_us(&self) -> Result<Option<u64>, ReadError> {
        let Some(dir) = &self.unified else { return Ok(None) };
        match read_value(&dir.join("memory.pressure"), "a line `some ... total=MICROSECONDS`", parse_stalled_us) {
            Ok(stalled_us) => Ok(Some(stalled_us)),
            Err(error) if error.is_gone() => Ok(None),
            // EOPNOTSUPP: the kernel has PSI and was booted without it (psi=0).
            Err(ReadError::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Documentation/accounting/psi.rst: `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`.
fn parse_stalled_us(text: &str) -> Option<u64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("total="))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    const MIB: u64 = 1 << 20;
    /// What a process may have, and what it reads through the page cache, which does not fit.
    const LIMIT: u64 = 32 * MIB;
    const FILE: u64 = 512 * MIB;

    /// A group of version 2 for the pressure, and one that limits memory: the same, or of version 1 where memory is there.
    struct Groups {
        unified: PathBuf,
        limited: PathBuf,
    }

    impl Groups {
        fn make(name: &str) -> Option<Self> {
            let root = Path::new("/sys/fs/cgroup");
            let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
            let has_memory = controllers.split_whitespace().any(|controller| controller == "memory");
            let (unified, limited, limit) = if has_memory {
                (root.to_owned(), root.to_owned(), "memory.max")
            } else {
                (root.join("unified"), root.join("memory"), "memory.limit_in_bytes")
            };
            let ready = unified.join("memory.pressure").exists() || unified.join("cgroup.pressure").exists();
            if !ready || !limited.join("cgroup.procs").exists() {
                println!("skipped: no pressure in control groups, or no groups for memory");
                return None;
            }
            let name = format!("gnomon-pressure-{name}-{}", std::process::id());
            let groups = Self { unified: unified.join(&name), limited: limited.join(&name) };
            for path in groups.paths() {
                fs::create_dir(path).inspect_err(|error| println!("skipped: {}: {error}", path.display())).ok()?;
            }
            fs::write(groups.limited.join(limit), LIMIT.to_string()).unwrap();
            Some(groups)
        }

        fn paths(&self) -> impl Iterator<Item = &PathBuf> {
            [&self.unified, &self.limited].into_iter().take(if self.unified == self.limited { 1 } else { 2 })
        }

        /// A process in them that reads its input, then the file.
        fn start(&self, file: &Path) -> Child {
            let mut command = Command::new("cat");
            command.arg("-").arg(file).stdin(Stdio::piped()).stdout(Stdio::null());
            let child = command.spawn().unwrap();
            for path in self.paths() {
                fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            child
        }

        fn stalled_us(&self) -> u64 {
            let group = DomainCgroup {
                usage: None,
                bandwidth: Vec::new(),
                limited_threads: Vec::new(),
                block: Vec::new(),
                unified: Some(self.unified.as_path().into()),
            };
            group.memory_stalled_us().unwrap().unwrap()
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            for path in self.paths() {
                // Made only in part where the machine did not allow it.
                let _ = fs::remove_dir(path);
            }
        }
    }

    #[test]
    fn a_group_at_its_limit_waits_for_memory_and_its_neighbour_does_not() {
        let Some((tight, idle)) = Groups::make("tight").zip(Groups::make("idle")) else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(FILE).unwrap();
        let (mut reader, mut neighbour) = (tight.start(file.path()), idle.start(Path::new("/dev/null")));
        let before = (tight.stalled_us(), idle.stalled_us());
        let began = Instant::now();
        // The end of its input, behind which it reads the file.
        drop(reader.stdin.take());
        assert!(reader.wait().unwrap().success());
        let wall_us = began.elapsed().as_micros() as u64;
        let waited_us = tight.stalled_us() - before.0;
        println!("{waited_us} of {wall_us} us");
        assert!(waited_us > 1_000 && waited_us <= wall_us, "{waited_us} of {wall_us} us");
        assert_eq!(idle.stalled_us(), before.1, "the neighbour wanted nothing");
        drop(neighbour.stdin.take());
        assert!(neighbour.wait().unwrap().success());
    }

    #[test]
    fn the_total_of_the_line_some_is_read() {
        let text =
            "some avg10=0.12 avg60=0.00 avg300=0.00 total=4711\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse_stalled_us(text), Some(4711));
        assert_eq!(parse_stalled_us("full avg10=0.00 total=9\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "some [ -~\\n]{0,100}") {
            let _ = parse_stalled_us(&text);
        }
    }
}
