//! How `gnomon` fails: in words, and as an exit status.

use std::path::PathBuf;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The brain said no, or something went wrong.
    #[error("{0}")]
    Refused(String),
    /// Something else is under way: the same may be possible in a moment.
    #[error("{0}")]
    Conflict(String),
    /// The command line does not make sense.
    #[error("{0}")]
    Usage(String),
    /// There is no brain at that address.
    #[error("cannot reach the brain at {url}: {reason}; is gnomon-brain running there? (--url or GNOMON_URL)")]
    Unreachable {
        /// The address tried.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The brain does not know the token.
    #[error("not authorised: {0}")]
    Unauthorised(String),
    /// There is no usable token.
    #[error("no token: {path}: {reason}; name the brain's token file with --token-file or GNOMON_TOKEN_FILE")]
    NoToken {
        /// The file tried.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Failure {
    /// The process's exit status.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Conflict(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Unauthorised(_) | Self::NoToken { .. } => 4,
        }
    }
}
