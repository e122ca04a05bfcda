//! Files that hold secrets: written for their owner only, refused when others could read them.

use rustls::crypto::ring;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bits of a mode that let the group or others in.
const MODE_NOT_OWNER: u32 = 0o077;

/// Why a secret cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error("{path} holds a secret and may be read by others than its owner (mode {mode:04o}); run: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system gave no entropy.
    #[error("the operating system's random source failed")]
    Entropy,
}

/// Reads a secret, refusing a file that group or others may touch.
pub fn read(path: &Path) -> Result<String, SecretError> {
    let fail = |source| SecretError::Io { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(fail)?.permissions().mode() & 0o7777;
    if mode & MODE_NOT_OWNER != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    fs::read_to_string(path).map_err(fail)
}

/// Writes a new secret with mode 0600; an existing file is never overwritten.
pub fn write_new(path: &Path, contents: &str) -> Result<(), SecretError> {
    write_new_with_mode(path, contents, 0o600)
}

/// Writes a new public file with mode 0644; an existing file is never overwritten.
pub fn write_new_public(path: &Path, contents: &str) -> Result<(), SecretError> {
    write_new_with_mode(path, contents, 0o644)
}

fn write_new_with_mode(path: &Path, contents: &str, mode: u32) -> Result<(), SecretError> {
    let fail = |source| SecretError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(fail)?;
    // The umask may have narrowed the mode; a certificate that its daemon cannot read helps nobody.
    file.set_permissions(Permissions::from_mode(mode)).map_err(fail)?;
    file.write_all(contents.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
}

/// 256 bits from the operating system, as 64 hexadecimal digits.
pub fn token() -> Result<String, SecretError> {
    let mut bytes = [0; 32];
    ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| SecretError::Entropy)?;
    Ok(bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_written_for_its_owner_only_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write_new(&path, "two"), Err(SecretError::Io { .. })));
        assert_eq!(read(&path).unwrap(), "one");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new_public(&path, "one").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
    }

    #[test]
    fn tokens_are_64_hexadecimal_digits_and_differ() {
        let (a, b) = (token().unwrap(), token().unwrap());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }
}
