//! `gnomon-brain token ...` and `gnomon-brain host ...`: who may connect.
//!
//! They change the brain's database, whether or not a brain is running on it; a running one sees it within a second.

use crate::ConfigFile;
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use gnomon_brain::ca::Ca;
use gnomon_brain::clock;
use gnomon_brain::config::Config;
use gnomon_brain::secret;
use gnomon_brain::store::{AdmissionsOffice, SqlStore, StoredToken};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{EnrolRefusal, HostId, Token, TokenId, TokenSecret};
use gnomon_core::Audit;
use jiff::{Span, SpanRelativeTo};
use std::time::Duration;

/// A token that is good for longer is a password on a piece of paper.
const TTL_MAX: Duration = Duration::from_secs(7 * 86_400);

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token that lets one host join, once: prints it
    ///
    /// On the host: gnomon-agent join BRAIN:PORT TOKEN. The token tells the host which brain to believe and proves to the
    /// brain that the host was invited. Whoever has it can join as that host, so hand it over as you would a password.
    Create {
        /// The host's name, as it will be in its configuration
        #[arg(long)]
        host: HostId,
        /// How long it is good for: 30s, 15m, 1h, 2d; at most 7d
        #[arg(long, default_value = "1h", value_parser = ttl)]
        ttl: Duration,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Show tokens (not their secrets), newest first
    List {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Take a token back that no host has joined with
    Revoke {
        /// Which, from `token list`
        id: TokenId,
        #[command(flatten)]
        config: ConfigFile,
    },
}

#[derive(Subcommand)]
pub(crate) enum HostCommand {
    /// Shut a host out: its connection ends within two seconds, and no certificate it has is accepted any more
    ///
    /// For good: what is let in again is the host, by a new token and with a new key, never the old certificate. Limits on
    /// its VMs stay as they are; `gnomon-agent release --all` on the host restores them.
    Revoke {
        /// Which
        host: HostId,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Show the hosts that have joined, how long their certificates last, and which were shut out
    List {
        #[command(flatten)]
        config: ConfigFile,
    },
}

impl TokenCommand {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Create { host, ttl, config } => create(host, ttl, &config),
            Self::List { config } => list(&config),
            Self::Revoke { id, config } => revoke(id, &config),
        }
    }
}

impl HostCommand {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Revoke { host, config } => revoke_host(&host, &config),
            Self::List { config } => list_hosts(&config),
        }
    }
}

fn create(host: HostId, ttl: Duration, file: &ConfigFile) -> Result<()> {
    let config = Config::load(&file.config)?;
    let Some(ca) = &config.ca else {
        bail!("{} has no [ca]: this brain lets no host join; see the commented example", file.config.display());
    };
    let pin = Ca::load(&config.tls.ca, &ca.key)?.pin();
    let now = clock::now();
    let token = Token { id: TokenId(secret::random()?), ca: pin, secret: TokenSecret(secret::random()?), host };
    let stored = StoredToken {
        id: token.id,
        host: token.host.clone(),
        secret_sha256: secret::sha256(&token.secret.0),
        created: now,
        expires: now + ttl,
        spent: None,
        revoked: None,
    };
    let line = said("create_token", format!("host {}", token.host), format!("token {}, good for {ttl:?}", token.id));
    on_store(&config, async |store| Ok(store.create_token(&stored, &line).await?))?;
    println!("{token}");
    let port = config.listen.address.port();
    eprintln!("good for {ttl:?} and once; on {}:  gnomon-agent join THIS_BRAIN:{port} TOKEN", token.host);
    Ok(())
}

fn list(file: &ConfigFile) -> Result<()> {
    let tokens = on_store(&Config::load(&file.config)?, async |store| Ok(store.tokens().await?))?;
    let now = clock::now();
    println!("{:<16}  {:<24}  {:<20}  STATE", "TOKEN", "HOST", "MADE");
    for token in tokens {
        let state = match token.admits(&token.host, now) {
            Ok(()) => format!("good for {:?} more", Duration::from_secs(token.expires.since(now).as_secs())),
            Err(EnrolRefusal::Spent) => format!("used {}", token.spent.map(utc).unwrap_or_default()),
            Err(EnrolRefusal::Revoked) => format!("revoked {}", token.revoked.map(utc).unwrap_or_default()),
            Err(_) => format!("expired {}", utc(token.expires)),
        };
        println!("{:<16}  {:<24}  {:<20}  {state}", token.id.to_string(), token.host.as_str(), utc(token.created));
    }
    Ok(())
}

fn revoke(id: TokenId, file: &ConfigFile) -> Result<()> {
    let now = clock::now();
    let line = said("revoke_token", format!("token {id}"), "before any host joined with it".to_owned());
    let config = Config::load(&file.config)?;
    let before = on_store(&config, async |store| Ok(store.revoke_token(id, now, &line).await?))?;
    let before = before.with_context(|| format!("there is no token {id}; `gnomon-brain token list` shows them"))?;
    match before.admits(&before.host, now) {
        Ok(()) => println!("token {id} for {} is of no use any more", before.host),
        Err(EnrolRefusal::Spent) => bail!(
            "host {0} has joined with token {id} already; to shut it out: gnomon-brain host revoke {0}",
            before.host
        ),
        Err(_) => println!("token {id} for {} was of no use already", before.host),
    }
    Ok(())
}

fn revoke_host(host: &HostId, file: &ConfigFile) -> Result<()> {
    let line =
        said("revoke_host", format!("host {host}"), "its certificates and unused tokens count no more".to_owned());
    let config = Config::load(&file.config)?;
    let revoked = on_store(&config, async |store| Ok(store.revoke_host(host, line.at, &line).await?))?;
    println!("{host} is shut out; {} unused tokens of it were taken back", revoked.tokens);
    if !revoked.known {
        eprintln!("note: no host of that name has ever joined or connected here; is it spelt right?");
    }
    eprintln!("to let it in again:  gnomon-brain token create --host {host}");
    Ok(())
}

fn list_hosts(file: &ConfigFile) -> Result<()> {
    let hosts = on_store(&Config::load(&file.config)?, async |store| Ok(store.hosts().await?))?;
    println!("{:<24}  {:<32}  {:<20}  {:<20}  SHUT OUT", "HOST", "CERTIFICATE", "ISSUED", "ENDS");
    for (certificate, revoked) in hosts {
        let shut_out = match revoked {
            Some(at) if at >= certificate.issued => format!("since {}", utc(at)),
            Some(at) => format!("until it joined again; what it had before {} is void", utc(at)),
            None => "-".to_owned(),
        };
        let (issued, expires) = (utc(certificate.issued), utc(certificate.expires));
        let host = certificate.host.as_str();
        println!("{host:<24}  {:<32}  {issued:<20}  {expires:<20}  {shut_out}", certificate.serial.to_string());
    }
    Ok(())
}

/// Opens the brain's database for one piece of work.
#[tokio::main(flavor = "current_thread")]
async fn on_store<T>(config: &Config, work: impl AsyncFnOnce(&SqlStore) -> Result<T>) -> Result<T> {
    let store = SqlStore::open(&config.store.location()).await?;
    work(&store).await
}

/// An audit line of a person at this machine, of whom nothing is known but the user id.
pub(crate) fn said(verb: &str, object: String, detail: String) -> Audit {
    let actor = format!("uid {}", rustix::process::getuid().as_raw());
    Audit { at: clock::now(), actor, verb: verb.to_owned(), object, detail }
}

pub(crate) fn utc(at: Timestamp) -> String {
    let at_s = i64::try_from(at.unix_ms() / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(at_s).map_or_else(|_| at.to_string(), |at| at.to_string())
}

/// Reads a duration like `30s`, `1h` or `2d`.
fn ttl(text: &str) -> Result<Duration> {
    let span: Span = text.parse().with_context(|| format!("{text:?} is not a duration like 30s, 15m, 1h or 2d"))?;
    let ttl = Duration::try_from(span.to_duration(SpanRelativeTo::days_are_24_hours())?)
        .with_context(|| format!("{text:?} is negative"))?;
    ensure!(!ttl.is_zero() && ttl <= TTL_MAX, "{text:?} is not within 1s to 7d");
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_duration_as_people_write_it_and_has_a_limit() {
        assert_eq!(ttl("1h").unwrap(), Duration::from_secs(3600));
        assert_eq!(ttl("2d").unwrap(), Duration::from_secs(2 * 86_400));
        assert_eq!(ttl("30s").unwrap(), Duration::from_secs(30));
        for bad in ["", "1", "h", "-1h", "0s", "8d", "1 fortnight"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }
}
