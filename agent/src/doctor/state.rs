//! The state directory, by writing to it.

use super::Check;
use crate::config::Config;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

pub(super) fn examine(config: &Config) -> Vec<Check> {
    vec![directory(&config.state_dir), spool(config)]
}

fn directory(dir: &Path) -> Check {
    let (signal, source) = ("state directory", dir.display().to_string());
    let enable = format!(
        "install -d -m 700 -o gnomon-agent {source} (systemd's StateDirectory= does so), and run as its owner or as root"
    );
    let check = match try_write(dir) {
        Ok(()) => Check::ok(signal, source, "takes files and syncs them"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Check::unavailable(signal, source, "is not there").enable(enable)
        }
        Err(error) => Check::unavailable(signal, source, error.to_string()).enable(enable),
    };
    check.needed()
}

fn try_write(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".doctor-{}", std::process::id()));
    let written = File::options().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(b"gnomon-agent doctor\n")?;
        file.sync_all()
    });
    // Also what could not be written whole is not left behind.
    let removed = fs::remove_file(&path);
    written.and(removed)
}

fn spool(config: &Config) -> Check {
    let (dir, bytes_max) = (config.spool_path(), config.spool.bytes_max);
    let (signal, source) = ("spool", dir.display().to_string());
    let used = match used_bytes(&dir) {
        Ok(used) => used,
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => {
            return Check::degraded(signal, source, error.to_string())
                .enable("run as the directory's owner, or as root");
        }
    };
    let why = format!("{} of at most {} KiB wait for the brain", used / 1024, bytes_max / 1024);
    let free = rustix::fs::statvfs(&config.state_dir).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    match free {
        Ok(free) if free < bytes_max.saturating_sub(used) => {
            Check::degraded(signal, source, format!("{why}; the disk has room for {} KiB", free / 1024))
                .enable("more disk space, or a smaller spool.bytes_max")
        }
        _ => Check::ok(signal, source, why),
    }
}

/// Size of the files in a directory; it has no deeper ones.
fn used_bytes(dir: &Path) -> io::Result<u64> {
    fs::read_dir(dir)?.try_fold(0u64, |sum, entry| Ok(sum.saturating_add(entry?.metadata()?.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_directory_that_takes_no_files_is_unavailable_and_one_that_does_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(dir.path()).state, State::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = directory(&dir.path().join("none"));
        assert_eq!((missing.state, missing.needed, missing.why.as_str()), (State::Unavailable, true, "is not there"));
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(directory(&dir.path().join("file")).state, State::Unavailable);
    }
}
