//! `gnomon-brain take-over`: an operator says which brain leads.

use crate::ConfigFile;
use crate::admissions::{said, utc};
use anyhow::{Result, bail, ensure};
use clap::Args;
use gnomon_brain::config::Config;
use gnomon_brain::service::place;
use gnomon_brain::store::{Leadership, Location, SqlStore, TAKE_OVER_VERB, TERM_JUMP};
use serde_json::json;
use std::time::Duration;

/// Longest reason, in characters.
const REASON_MAX: usize = 300;

/// Why, and how it is told.
#[derive(Args)]
#[command(after_help = "Examples:\n  gnomon-brain take-over --reason 'brain-1 hangs in its disk' --dry-run\n  \
    gnomon-brain take-over --reason 'brain-1 hangs in its disk'")]
pub(crate) struct TakeOver {
    /// Why, for the audit log
    #[arg(long)]
    reason: String,
    /// Only show who leads, since when, and the terms before and after
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFile,
}

impl TakeOver {
    #[tokio::main(flavor = "current_thread")]
    pub(crate) async fn run(self) -> Result<()> {
        let reason = self.reason.trim();
        ensure!(!reason.is_empty(), "--reason is empty: the audit log is to say why");
        ensure!(reason.chars().count() <= REASON_MAX, "--reason is longer than {REASON_MAX} characters");
        let config = Config::load(&self.config.config)?;
        let location = config.store.location();
        let store = SqlStore::open(&location).await?;
        let (now, here) = (store.leadership().await?, place(config.listen.address.port()));
        if let (Location::Sqlite(path), true) = (&location, now.leads) {
            bail!("{} on {}: stop it first, it goes on in its term until then", in_words(&now), path.display());
        }
        let is_displaced = now.leads && now.holder.starts_with(&format!("{here}/"));
        // Kept for a brain that may come at once; nobody knows by which port one is reached that asks the system for any.
        let heir =
            (!is_displaced && config.listen.address.port() != 0 && matches!(location, Location::Postgres { .. }))
                .then_some(&here);
        let mut before = now;
        if !self.dry_run {
            let keep = heir.map_or(Duration::ZERO, |_| config.store.lease());
            let line = |before: &Leadership| {
                let detail = format!("{reason}; {}; term {} from here on", displaced(before), before.term + TERM_JUMP);
                said(TAKE_OVER_VERB, "fleet".to_owned(), detail)
            };
            before = store.take_over(&here, keep, line).await?;
        }
        let term_after = before.term + TERM_JUMP + 1;
        if self.json {
            let Leadership { holder, leads, since, term } = &before;
            let since = since.map(utc);
            let told = json!({
                "leader": holder.trim_end_matches('/'), "leads": leads, "since": since, "term_before": term, "term_after": term_after,
                "next": heir, "dry_run": self.dry_run,
            });
            println!("{told:#}");
            return Ok(());
        }
        println!("{}", in_words(&before));
        let verb = if self.dry_run { "would lead" } else { "leads" };
        match heir {
            Some(here) => println!("{here} {verb} next if it runs, else whichever asks first; in term {term_after}"),
            None => println!("whichever brain asks first {verb} next, in term {term_after}"),
        }
        Ok(())
    }
}

/// Who leads, or led.
fn in_words(now: &Leadership) -> String {
    let since = now.since.map_or_else(String::new, |since| format!(" since {}", utc(since)));
    match (now.holder.trim_end_matches('/'), now.leads) {
        ("", _) => format!("no brain has led yet; the term is {}", now.term),
        (holder, true) => format!("{holder} leads{since}, in term {}", now.term),
        (holder, false) => format!("no brain leads; the last was {holder}, in term {}", now.term),
    }
}

/// Who leads no more.
fn displaced(before: &Leadership) -> String {
    match (before.holder.trim_end_matches('/'), before.leads) {
        (holder, true) => format!("{holder} was displaced"),
        _ => "no brain led".to_owned(),
    }
}
