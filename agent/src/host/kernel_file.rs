//! Reading the kernel's small text files (`/proc`, cgroupfs) without trusting their content.
//!
//! The parsers of this stage are our own: they must survive any bytes (the `procfs` crate's parser of `stat` indexes by the
//! position of a parenthesis and can panic, and its `mountinfo` keeps the octal escapes), and each needs three or four fields.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The most that is read of one file: `mountinfo` of a host with thousands of mounts has some hundred KiB, all else far less.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a kernel file gave no value.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What it describes (a process, a thread, a cgroup) no longer exists: the normal end of a VM.
    #[error("{} is gone", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// It is there and cannot be read.
    #[error("cannot read {}: {source} (the agent needs to run as root on the host)", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It does not contain what this kind of file contains.
    #[error("{} does not contain {expected}: is it the kernel's own file?", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
}

impl ReadError {
    /// Whether the thing itself is gone, rather than its file unreadable.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        // ESRCH: a /proc file was opened in time and its process exited before the read. ENODEV: same for a cgroup file.
        let gone = source.kind() == io::ErrorKind::NotFound
            || matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENODEV));
        if gone { Self::Gone { path: path.to_owned() } } else { Self::Io { path: path.to_owned(), source } }
    }
}

/// The bytes of a kernel file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| ReadError::from_io(path, source))?;
    Ok(bytes)
}

/// A kernel file as text; what is not UTF-8 (a process may name itself anything) is replaced, never refused.
pub(crate) fn read_text(path: &Path) -> Result<String, ReadError> {
    read(path)
        .map(|bytes| String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// A value that `parse` finds in a kernel file.
pub(crate) fn read_value<T>(
    path: &Path,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ReadError> {
    parse(&read_text(path)?).ok_or_else(|| ReadError::Malformed { path: path.to_owned(), expected })
}

/// The value behind `key` in lines of `key value` or `key: value`, as in `cpu.stat`, `status` and `meminfo`.
pub(super) fn keyed_u64(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        // A key that only begins with ours ("nr_throttled" for "nr_thro") has no blank here.
        rest.starts_with([' ', '\t']).then(|| rest.split_ascii_whitespace().next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_found_whole_or_not_at_all() {
        let text = "nr_periods 7\nnr_throttled 3\nVmRSS:\t  1234 kB\n";
        assert_eq!(keyed_u64(text, "nr_throttled"), Some(3));
        assert_eq!(keyed_u64(text, "VmRSS"), Some(1234));
        assert_eq!(keyed_u64(text, "nr_thro"), None);
        assert_eq!(keyed_u64("nr_periods -1", "nr_periods"), None);
    }

    #[test]
    fn a_missing_file_is_gone_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("x")).unwrap_err().is_gone());
        assert!(!read(dir.path()).unwrap_err().is_gone());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_key_search_panic(text in "\\PC*", key in "[a-z_]{1,12}") {
            let _ = keyed_u64(&text, &key);
        }
    }
}
