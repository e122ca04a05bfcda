//! Where a store is.

use super::StoreError;
use crate::secret;
use std::fmt;
use std::path::{Path, PathBuf};
use url::Url;

/// A database. Shown without its password, which is read when it is needed and kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// SQLite, in this file.
    Sqlite(PathBuf),
    /// PostgreSQL.
    Postgres {
        /// `postgres://USER@HOST/DATABASE`, without a password.
        url: Url,
        /// The file that has it, where there is one.
        password_file: Option<PathBuf>,
    },
}

impl Location {
    /// The address for the driver, with everything that is secret in it.
    pub(super) fn address(&self) -> Result<Url, StoreError> {
        match self {
            Self::Sqlite(path) => {
                let open = |source: std::io::Error| self.cannot_open(source.into());
                // The driver takes URLs, in which `..` is resolved as text; so links are resolved before.
                let name = path.file_name().ok_or_else(|| open(std::io::ErrorKind::InvalidFilename.into()))?;
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let path = folder.canonicalize().map_err(open)?.join(name);
                let path = path.to_str().ok_or_else(|| open(std::io::ErrorKind::InvalidFilename.into()))?;
                let mut url = Url::parse("sqlite:///").map_err(|error| self.cannot_open(configuration(error)))?;
                url.set_path(&as_is(path));
                Ok(url)
            }
            Self::Postgres { url, password_file } => {
                let mut url = url.clone();
                if let Some(path) = password_file {
                    let password = secret::read(path).map_err(|error| self.cannot_open(configuration(error)))?;
                    url.set_password(Some(&as_is(password.trim_end())))
                        .map_err(|()| self.cannot_open(configuration("a URL without a host takes no password")))?;
                }
                Ok(url)
            }
        }
    }

    pub(super) fn cannot_open(&self, source: sqlx::Error) -> StoreError {
        StoreError::Open { location: Box::new(self.clone()), source }
    }
}

/// Text for a part of a URL, which encodes by itself whatever else means something there.
fn as_is(text: &str) -> String {
    text.replace('%', "%25")
}

fn configuration(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Configuration(error.into())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres { url, .. } => url.fmt(f),
        }
    }
}
