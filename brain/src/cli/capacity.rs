//! `gnomon capacity`: what the provider was asked for, or is to be.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::print_json;
use super::table::{at, bytes, cores, table};
use clap::Subcommand;
use gnomon_core::{CapacityRequest, CapacityState};
use serde_json::{Value, json};

/// What to do about requests for capacity.
#[derive(Debug, Subcommand)]
pub enum CapacityCommand {
    /// Requests, latest first: how much, why, how far
    List,
    /// Send a request to the provider; it cannot be taken back
    Approve {
        /// The request's key, as `list` shows it
        key: String,
    },
    /// Never send a request
    Deny {
        /// The request's key, as `list` shows it
        key: String,
    },
}

pub(super) fn run(client: &Client, json: bool, command: &CapacityCommand) -> Result<(), Failure> {
    match command {
        CapacityCommand::List => list(client, json),
        CapacityCommand::Approve { key } => decide(client, json, key, "approve"),
        CapacityCommand::Deny { key } => decide(client, json, key, "deny"),
    }
}

fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("capacity")?;
    if json {
        return print_json(&value);
    }
    let requests: Vec<CapacityRequest> = typed(value)?;
    let mut table = table(&["KEY", "ASKED", "ZONE", "CORES", "MEMORY", "STATE", "WHY"], &[3, 4]);
    for request in &requests {
        let why = if request.detail == request.reason {
            request.reason.clone()
        } else {
            format!("{}; {}", request.reason, request.detail)
        };
        table.add_row([
            request.key.to_string(),
            at(request.asked),
            request.zone.clone().unwrap_or_else(|| "-".into()),
            cores((request.cores > 0.0).then_some(request.cores)),
            if request.memory_bytes > 0 { bytes(request.memory_bytes) } else { "-".into() },
            in_words(request.state),
            why,
        ]);
    }
    println!("{table}");
    Ok(())
}

fn decide(client: &Client, json: bool, key: &str, verb: &str) -> Result<(), Failure> {
    let value: Value = client.post(&format!("capacity/{}/{verb}", segment(key)), &json!({}))?;
    if json {
        return print_json(&value);
    }
    let request: CapacityRequest = typed(value)?;
    println!("request {} is {}; what becomes of it: gnomon capacity list", request.key, in_words(request.state));
    Ok(())
}

fn in_words(state: CapacityState) -> String {
    state.name().replace('_', " ")
}
