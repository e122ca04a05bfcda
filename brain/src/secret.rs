//! Files that hold secrets: written for their owner only, refused when others could read them.

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
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

/// Replaces a file that may be there, so that whoever opens it finds either all of the old or all of the new.
pub fn replace(path: &Path, contents: &str, mode: u32) -> Result<(), SecretError> {
    let fail = |source| SecretError::Io { path: path.to_owned(), source };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // What an interrupted attempt may have left.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    write_new_with_mode(&new, contents, mode)?;
    fs::rename(&new, path).map_err(fail)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], SecretError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Entropy)?;
    Ok(bytes)
}

/// SHA-256: what may be stored of a random secret, and what a CA is known by.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// 256 bits from the operating system, as 64 hexadecimal digits.
pub fn token() -> Result<String, SecretError> {
    let bytes: [u8; 32] = random()?;
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
    fn a_replaced_file_has_the_new_contents_and_mode_whatever_an_interrupted_attempt_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new_public(&path, "one").unwrap();
        fs::write(dir.path().join("key.new"), "half").unwrap();
        replace(&path, "two", 0o600).unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
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
