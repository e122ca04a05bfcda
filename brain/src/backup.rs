//! `gnomon-brain backup` and `gnomon-brain restore`: copies of an SQLite store.

use crate::ConfigFile;
use crate::admissions::{said, utc};
use anyhow::{Context, Result, bail, ensure};
use gnomon_brain::config::Config;
use gnomon_brain::secret;
use gnomon_brain::store::{Location, SqlStore, TERM_JUMP, leader_lock};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Copies the store of a running brain, or of one that is not running.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn back_up(file: &Path, config: &ConfigFile) -> Result<()> {
    ensure!(!file.exists(), "{} exists, and a back-up overwrites nothing", file.display());
    let store = SqlStore::open(&Config::load(&config.config)?.store.location()).await?;
    // Under its own name only once it is whole; readable by its owner alone from the beginning.
    let partial = beside(file, ".partial");
    secret::write_new(&partial, "").context("a back-up that was interrupted may have left it; remove it")?;
    let copied = async {
        store.back_up(&partial).await?;
        File::open(&partial)?.sync_all()?;
        ensure!(!file.exists(), "{} exists, and a back-up overwrites nothing", file.display());
        fs::rename(&partial, file)?;
        sync_folder(file)
    };
    let copied = copied.await;
    if copied.is_err() {
        let _ = fs::remove_file(&partial);
    }
    copied.with_context(|| format!("backing up into {}", file.display()))?;
    println!("{}: {} bytes", file.display(), fs::metadata(file)?.len());
    Ok(())
}

/// Puts a back-up in the store's place, and keeps what was there.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn restore(file: &Path, config: &ConfigFile) -> Result<()> {
    let Location::Sqlite(path) = Config::load(&config.config)?.store.location() else {
        bail!("the store is in PostgreSQL, which is restored by pg_restore; see docs/brains.md")
    };
    let Some(_lock) = leader_lock(&path)? else {
        bail!("a brain runs on {}; stop it first", path.display());
    };
    let new = beside(&path, ".restoring");
    let _ = fs::remove_file(&new);
    secret::write_new(&new, "")?;
    fs::copy(file, &new).with_context(|| format!("copying {}", file.display()))?;
    fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let store = SqlStore::open_backup(&new).await.with_context(|| format!("restoring {}", file.display()))?;
    // A store that cannot be read may be why there is a restore.
    let present = match SqlStore::open_backup(&path).await {
        Ok(present) => {
            let term = present.term().await.unwrap_or(0);
            // What its write-ahead log has goes into the file, which is whole without it then.
            present.close().await;
            term
        }
        Err(_) => 0,
    };
    let term = store.term().await?.max(present) + TERM_JUMP;
    let line = said("restore", "store".to_owned(), format!("from {}; term {term} from here on", file.display()));
    let at = utc(line.at);
    store.conclude_restore(term, &line).await?;
    File::open(&new)?.sync_all()?;
    // At no moment is there no store: a brain that found none would begin one anew.
    let aside = |suffix: &str| (beside(&path, suffix), beside(&path, &format!(".before-{at}{suffix}")));
    let (present, kept) = aside("");
    if present.exists() {
        fs::hard_link(&present, &kept).with_context(|| format!("putting {} aside", present.display()))?;
    }
    for (there, kept) in ["-wal", "-shm"].map(aside) {
        if there.exists() {
            fs::rename(&there, &kept).with_context(|| format!("putting {} aside", there.display()))?;
        }
    }
    fs::rename(&new, &path)?;
    sync_folder(&path)?;
    println!("{} is what {} was; what was there before is beside it, .before-{at}", path.display(), file.display());
    println!("the next brain leads with a term above {term}: agents obey nothing older");
    Ok(())
}

/// A path with something appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Makes a rename last.
fn sync_folder(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(folder)?.sync_all()?)
}
