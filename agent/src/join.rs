//! `gnomon-agent join`: from a token to an agent that can start.

use crate::config::{Config, ConfigError};
use crate::uplink::enrol::{self, EnrolError, Joined, Joining};
use crate::uplink::identity::{Files, Identity, IdentityError};
use gnomon_common::wire::{InvalidToken, Token};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Longest token that is read from standard input.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is none.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// The configuration that is there is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The brain, or the way to it.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The identity's files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file or a stream.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// What was done, and what is left to do.
pub struct Done {
    /// Where the identity is.
    pub files: Files,
    /// The identity.
    pub identity: Identity,
    /// The configuration was written: there was none.
    pub config_written: bool,
    /// What the configuration that was there lacks, as `key = value`.
    pub to_set: Option<String>,
}

/// Reads a token; `-` stands for standard input, where other users of this machine cannot see it.
pub fn token(argument: &str) -> Result<Token, JoinError> {
    if argument != "-" {
        return Ok(argument.parse()?);
    }
    let mut text = String::new();
    let read = io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|source| JoinError::Io { what: "reading the token".to_owned(), source })?;
    Ok(text.parse()?)
}

/// Joins the brain at `brain`. Who this host is and where its files go is in the configuration at `path`, or where there is none, in
/// the token and below `state_dir`; then a configuration is written.
pub async fn join(brain: &str, token: &Token, path: &Path, state_dir: &Path) -> Result<Done, JoinError> {
    let (config, new) = if path.exists() {
        (Config::load(path)?, None)
    } else {
        let text = minimal(brain, token, state_dir);
        (Config::parse(&text, path)?, Some(text))
    };
    let joining = Joining { brain, server_name: &config.brain.server_name, token, host: &config.host.name };
    let files = config.identity();
    // Before the token is spent.
    files.make_directories()?;
    let Joined { fresh, certificate, ca } = enrol::join(&joining).await?;
    let identity = files.replace(&fresh, &certificate, Some(&ca))?;
    let config_written = new.is_some();
    if let Some(text) = new {
        write_new(path, &text)
            .map_err(|source| JoinError::Io { what: format!("writing {}", path.display()), source })?;
    }
    let to_set =
        (!config.brain.address.0.iter().any(|known| known == brain)).then(|| format!("brain.address = {brain:?}"));
    Ok(Done { files, identity, config_written, to_set })
}

/// The shortest configuration that works.
fn minimal(brain: &str, token: &Token, state_dir: &Path) -> String {
    // Debug formatting quotes as TOML's basic strings do.
    format!(
        "# Gnomon's agent, as `gnomon-agent join` has set it up. Everything else that can be set, with its default, is in the\n\
         # commented example, agent.toml, of the release.\n\n\
         # Ledger of commands and, in identity/, the CA, this host's certificate and its key.\n\
         state_dir = {:?}\n\n\
         [host]\n# As in its certificate.\nname = {:?}\n\n\
         [brain]\n# HOST:PORT, UDP (QUIC).\naddress = {:?}\n",
        absolute(state_dir),
        token.host.as_str(),
        brain
    )
}

/// Relative paths in a configuration count from its own folder, those on a command line from the present one.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{CaPin, HostId, TokenId, TokenSecret};

    #[test]
    fn the_configuration_that_is_written_is_one_and_says_what_the_token_says() {
        let host = HostId::new("rack1-host7").unwrap();
        let token = Token { id: TokenId([1; 8]), ca: CaPin([2; 32]), secret: TokenSecret([3; 16]), host };
        let text = minimal("brain.example:7443", &token, Path::new("/var/lib/\"odd\" dir"));
        let config = Config::parse(&text, Path::new("/etc/gnomon/agent.toml")).unwrap();
        assert_eq!(config.host.name, token.host);
        assert_eq!(config.brain.address.0, ["brain.example:7443"]);
        assert_eq!(config.identity().key, Path::new("/var/lib/\"odd\" dir/identity/agent.key"));
    }
}
