//! `gnomon proposals`: what waits for an operator in mode `approve`.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::{confirm, print_json};
use super::table::{at, table};
use clap::{Args, Subcommand};
use gnomon_core::Proposal;
use serde_json::{Value, json};

/// What to do about proposals.
#[derive(Debug, Subcommand)]
pub enum ProposalsCommand {
    /// What waits for a decision, latest first: what, why, what is expected, until when
    List {
        /// Those decided last as well
        #[arg(long)]
        closed: bool,
    },
    /// Carry proposals out, as far as they still hold
    #[command(
        after_help = "Each is judged again by the present; one that no longer holds is refused, with the reason.\n\n\
        Examples:\n  gnomon proposals approve 7-12 7-13\n  gnomon proposals approve --all"
    )]
    Approve(DecideArguments),
    /// Do not carry proposals out, and do not propose the like for a while
    #[command(after_help = "Examples:\n  gnomon proposals deny 7-12\n  gnomon proposals deny --all --yes")]
    Deny(DecideArguments),
}

/// Which proposals, and how sure one is.
#[derive(Debug, Args)]
pub struct DecideArguments {
    /// Keys, as `list` shows them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "KEY")]
    keys: Vec<String>,
    /// All that wait: they are shown first
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(client: &Client, json: bool, command: &ProposalsCommand) -> Result<(), Failure> {
    match command {
        ProposalsCommand::List { closed } => list(client, json, *closed),
        ProposalsCommand::Approve(arguments) => decide(client, json, arguments, "approve"),
        ProposalsCommand::Deny(arguments) => decide(client, json, arguments, "deny"),
    }
}

fn known(client: &Client, closed: bool) -> Result<Vec<Proposal>, Failure> {
    let mut proposals: Vec<Proposal> = typed(client.get("proposals")?)?;
    proposals.retain(|proposal| closed || proposal.state.is_open());
    Ok(proposals)
}

fn list(client: &Client, json: bool, closed: bool) -> Result<(), Failure> {
    let proposals = known(client, closed)?;
    if json {
        return print_json(&json!(proposals));
    }
    show(&proposals);
    Ok(())
}

fn show(proposals: &[Proposal]) {
    let mut table = table(&["KEY", "VM", "HOST", "WHAT", "WHY", "EXPECTED", "STATE"], &[]);
    for proposal in proposals {
        let state = if proposal.state.is_open() {
            format!("waits until {}", at(proposal.expires))
        } else {
            format!("{} {}: {}", proposal.state.name(), at(proposal.since), proposal.detail)
        };
        table.add_row([
            proposal.key.to_string(),
            proposal.name.clone(),
            proposal.action.host.to_string(),
            proposal.summary.clone(),
            proposal.reason.clone(),
            proposal.effect.clone(),
            state,
        ]);
    }
    println!("{table}");
}

/// Decides about one after the other; what cannot be decided is said, and the others are decided all the same.
fn decide(client: &Client, json: bool, arguments: &DecideArguments, verb: &str) -> Result<(), Failure> {
    let DecideArguments { keys, all, yes } = arguments;
    let mut keys = keys.clone();
    if *all {
        let mut open = known(client, false)?;
        // The oldest first, as they came up.
        open.reverse();
        if !json {
            show(&open);
        }
        if !open.is_empty() && !yes {
            confirm(&format!("{verb} these {} proposals?", open.len()), "nothing was decided")?;
        }
        keys = open.iter().map(|proposal| proposal.key.to_string()).collect();
    }
    let mut answers: Vec<Value> = Vec::new();
    let mut failed = Vec::new();
    for key in &keys {
        match client.post(&format!("proposals/{}/{verb}", segment(key)), &json!({})) {
            Ok(value) => {
                if !json {
                    let proposal: Proposal = typed(value.clone())?;
                    println!("{key} is {}: {} of {}", proposal.state.name(), proposal.summary, proposal.name);
                }
                answers.push(value);
            }
            Err(Failure::Refused(why) | Failure::Conflict(why)) => {
                answers.push(json!({ "key": key, "error": why }));
                failed.push(why);
            }
            Err(other) => return Err(other),
        }
    }
    if json {
        print_json(&json!(answers))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Refused(failed.join("\n"))) }
}
