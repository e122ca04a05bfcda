//! `gnomon migrate`, `gnomon drain` and `gnomon undrain`: moves by hand.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::{in_words, print_json};
use super::set::wait_for;
use super::table::table;
use crate::api::{AbortAnswer, MigrateAnswer, MigrateBody, Operated};
use clap::Args;
use gnomon_common::wire::{OutcomeResult, Whereabouts};
use serde_json::json;
use std::time::{Duration, Instant};

/// Which VM, and where to.
#[derive(Debug, Args)]
#[command(
    after_help = "The rules that keep Gnomon's own plans safe hold here too: room on the target, groups, what its owner says.\n\
    What was moved is moved back by the same command.\n\n\
    Examples:\n  gnomon migrate web-1 host-b --dry-run\n  gnomon migrate web-1 host-b --wait 600"
)]
pub struct MigrateArguments {
    /// UUID, or name
    vm: String,
    /// The host to go to
    host: String,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Wait this long for it to arrive, in seconds; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Which VM.
#[derive(Debug, Args)]
#[command(
    after_help = "A host that is being emptied sends the VM again after a while: pause the VM, or undrain the host, if it shall stay.\n\n\
    Examples:\n  gnomon abort web-1 --dry-run\n  gnomon abort web-1 && gnomon pause --vm web-1"
)]
pub struct AbortArguments {
    /// UUID, or name
    vm: String,
    /// Only show what would be given up
    #[arg(long)]
    dry_run: bool,
    /// Wait this long to hear where it is in the end, in seconds; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Which host, and how sure one is.
#[derive(Debug, Args)]
pub struct DrainArguments {
    /// Name
    host: String,
    /// Only show what would have to go
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn migrate(client: &Client, json: bool, arguments: &MigrateArguments) -> Result<(), Failure> {
    let MigrateArguments { vm, host, dry_run, wait } = arguments;
    let deadline = Instant::now() + Duration::from_secs(*wait);
    let query = if *dry_run { "?dry_run=true" } else { "" };
    let body = MigrateBody { to: host.clone() };
    let answer: MigrateAnswer = typed(client.post(&format!("vms/{}/migrate{query}", segment(vm)), &body)?)?;
    let Some(command) = answer.command else {
        if json {
            return print_json(&json!(answer));
        }
        println!("would move {vm} from {} to {}", answer.host, answer.to);
        answer.remarks.iter().for_each(|remark| println!("{remark}"));
        return Ok(());
    };
    let result = if *wait == 0 { None } else { wait_for(client, answer.vm, command, deadline)? };
    if json {
        let mut value = json!(answer);
        value["result"] = json!(result);
        print_json(&value)?;
    }
    match result {
        Some(OutcomeResult::Moved(_)) | None if json => Ok(()),
        Some(ref result @ OutcomeResult::Moved(_)) => {
            println!("{vm}: {} -> {}, {}", answer.host, answer.to, in_words(result));
            Ok(())
        }
        None => {
            println!("command {command} was sent; what becomes of it: gnomon explain {vm}");
            Ok(())
        }
        Some(result) => Err(Failure::Refused(format!("{vm} was not moved: {}", in_words(&result)))),
    }
}

pub(super) fn abort(client: &Client, json: bool, arguments: &AbortArguments) -> Result<(), Failure> {
    let AbortArguments { vm, dry_run, wait } = arguments;
    let deadline = Instant::now() + Duration::from_secs(*wait);
    let query = if *dry_run { "?dry_run=true" } else { "" };
    let answer: AbortAnswer = typed(client.delete(&format!("vms/{}/migrate{query}", segment(vm)))?)?;
    let AbortAnswer { host, migration, .. } = &answer;
    let asked = answer.command.is_some() && *wait > 0;
    let result = if asked { wait_for(client, answer.vm, *migration, deadline)? } else { None };
    if json {
        let mut value = json!(answer);
        value["result"] = json!(result);
        print_json(&value)?;
    }
    match result {
        Some(OutcomeResult::NotMoved { whereabouts: Whereabouts::Here, .. }) | None if json => Ok(()),
        Some(OutcomeResult::NotMoved { whereabouts: Whereabouts::Here, .. }) => {
            println!("{vm} stays on {host}");
            Ok(())
        }
        None if *dry_run => {
            println!("would give up migration {migration} of {vm}, which is on {host}");
            Ok(())
        }
        None => {
            println!("migration {migration} is to be given up; what becomes of it: gnomon explain {vm}");
            Ok(())
        }
        Some(result) => Err(Failure::Refused(format!("the move of {vm} ended otherwise: {}", in_words(&result)))),
    }
}

pub(super) fn drain(client: &Client, json: bool, arguments: &DrainArguments) -> Result<(), Failure> {
    let DrainArguments { host, dry_run } = arguments;
    let query = if *dry_run { "?dry_run=true" } else { "" };
    let value = client.post(&format!("hosts/{}/drain{query}", segment(host)), &json!({}))?;
    if json {
        return print_json(&value);
    }
    let operated: Operated = typed(value)?;
    let verb = if *dry_run { "would be emptied" } else { "is being emptied" };
    println!("{host} {verb}; {} on it", count(operated.vms.len()));
    if !operated.vms.is_empty() {
        let mut table = table(&["VM", "ID"], &[]);
        for vm in &operated.vms {
            table.add_row([vm.name.clone(), vm.vm.to_string()]);
        }
        println!("{table}");
    }
    if !*dry_run {
        println!("how far it is: gnomon hosts; to end it: gnomon undrain {host}");
    }
    Ok(())
}

pub(super) fn undrain(client: &Client, json: bool, host: &str) -> Result<(), Failure> {
    let value = client.delete(&format!("hosts/{}/drain", segment(host)))?;
    if json {
        return print_json(&value);
    }
    println!("{host} may have VMs again");
    Ok(())
}

fn count(vms: usize) -> String {
    match vms {
        0 => "no VM is".to_owned(),
        1 => "1 VM is".to_owned(),
        vms => format!("{vms} VMs are"),
    }
}
