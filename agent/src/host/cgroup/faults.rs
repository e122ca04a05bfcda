//! How often a domain waited for a page to be read, version 2 only.

use super::super::kernel_file::{ReadError, read_value};
use super::DomainCgroup;

impl DomainCgroup {
    /// Page faults on the domain's memory that needed I/O since its group was made, whoever took them: with asynchronous page faults KVM has workers of
    /// the kernel's take them, which count in no process of the domain's (`virt/kvm/async_pf.c`). `None` where the domain has no version 2 group, or
    /// that does not account memory.
    pub fn major_faults(&self) -> Result<Option<u64>, ReadError> {
        let Some(dir) = &self.unified else { return Ok(None) };
        match read_value(&dir.join("memory.stat"), "a line `pgmajfault COUNT`", parse_major_faults) {
            Ok(faults) => Ok(Some(faults)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Documentation/admin-guide/cgroup-v2.rst, `memory.stat`.
fn parse_major_faults(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("pgmajfault "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn told(dir: Option<&Path>) -> Result<Option<u64>, ReadError> {
        let (usage, unified) = (None, dir.map(Into::into));
        let group =
            DomainCgroup { usage, bandwidth: Vec::new(), limited_threads: Vec::new(), block: Vec::new(), unified };
        group.major_faults()
    }

    #[test]
    fn the_groups_count_is_read_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told(None).unwrap(), None);
        assert_eq!(told(Some(dir.path())).unwrap(), None, "memory is not accounted");
        fs::write(dir.path().join("memory.stat"), "anon 4096\npgfault 70\npgmajfault 12\npgrefill 3\n").unwrap();
        assert_eq!(told(Some(dir.path())).unwrap(), Some(12));
        fs::write(dir.path().join("memory.stat"), "anon 4096\npgfault 70\n").unwrap();
        assert!(told(Some(dir.path())).is_err());
    }
}
