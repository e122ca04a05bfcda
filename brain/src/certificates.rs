//! `gnomon-brain ca ...`.

use anyhow::{Context, Result};
use clap::Subcommand;
use gnomon_brain::ca::{self, Ca, Lifetime};
use gnomon_common::wire::HostId;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum CaCommand {
    /// Make a certificate authority; refuses where there is one
    Init {
        /// Where; created if needed
        #[arg(long)]
        dir: PathBuf,
    },
    /// Issue a brain's certificate
    IssueBrain {
        /// The CA's directory
        #[arg(long)]
        dir: PathBuf,
        /// Where ca.pem, brain.pem and brain.key go
        #[arg(long)]
        out: PathBuf,
        /// The name agents expect
        #[arg(long, default_value = ca::BRAIN_NAME)]
        name: String,
        /// Further DNS names and IP addresses
        #[arg(long = "address", value_name = "ADDRESS")]
        addresses: Vec<String>,
        /// Validity
        #[arg(long, default_value_t = 365)]
        days: u16,
    },
    /// Issue the certificate with which an agent speaks for a host
    IssueAgent {
        /// The CA's directory
        #[arg(long)]
        dir: PathBuf,
        /// The host's name, as in the agent's configuration
        #[arg(long)]
        host: HostId,
        /// Where ca.pem, agent.pem and agent.key go
        #[arg(long)]
        out: PathBuf,
        /// Validity
        #[arg(long, default_value_t = 365)]
        days: u16,
    },
    /// Show what certificates say
    Show {
        /// PEM files, or directories with ca.pem in them
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

impl CaCommand {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Init { dir } => {
                Ca::init(&dir)?;
                println!("made a CA in {}; whoever has {} can speak for every host", dir.display(), ca::CA_KEY);
                Ok(())
            }
            Self::IssueBrain { dir, out, name, addresses, days } => {
                say(&Ca::open(&dir)?.issue_brain(&name, &addresses, Lifetime::days(days))?.write(&out, "brain")?);
                Ok(())
            }
            Self::IssueAgent { dir, host, out, days } => {
                say(&Ca::open(&dir)?.issue_agent(&host, Lifetime::days(days))?.write(&out, "agent")?);
                Ok(())
            }
            Self::Show { paths } => paths.iter().try_for_each(|path| show(path)),
        }
    }
}

fn say(written: &[PathBuf]) {
    for path in written {
        println!("{}", path.display());
    }
}

fn show(path: &Path) -> Result<()> {
    let path = if path.is_dir() { path.join(ca::CA_CERTIFICATE) } else { path.to_owned() };
    let certificates = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("{} is not a PEM certificate", path.display()))?;
    for der in certificates {
        println!("{}\n{}", path.display(), ca::describe(&der)?);
    }
    Ok(())
}
