//! `gnomon shadow`: small copies of production VMs, and what they tell.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::{confirm, print_json};
use super::table::{at, bytes, cores, table};
use crate::api::{FidelityBody, ShadowAnswer};
use clap::{Args, Subcommand};
use gnomon_common::wire::Load;
use gnomon_core::ShadowView;
use serde_json::json;

/// What to do about shadows.
#[derive(Debug, Subcommand)]
pub enum ShadowCommand {
    /// Shadows: of which VM, where, how far, how large, what they do
    List,
    /// One shadow: what it was told to do, what it did, how well its host served it
    Show {
        /// The production VM (or the shadow), by UUID or name
        vm: String,
    },
    /// Have a shadow made of a VM, whatever its metadata and policy say
    Make(OneArguments),
    /// Change how much of its production's load a shadow replays, while it runs
    #[command(
        after_help = "0 idles (it still measures its host), 0.25 replays CPU, 0.5 the memory's working set as well, 0.75 disk, 1 network\n\
        in bursts of a second. Between these steps the amplitude scales.\n\n\
        Examples:\n  gnomon shadow fidelity web-1 0.75\n  gnomon shadow fidelity web-1 policy"
    )]
    Fidelity {
        /// The production VM (or the shadow), by UUID or name
        vm: String,
        /// 0 to 1, or `policy`
        #[arg(value_parser = fidelity)]
        fidelity: Fidelity,
    },
    /// Take the shadow of a VM away; it gets no other until `make`
    Retire(OneArguments),
}

/// What of a production is replayed: a number, or what policy says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fidelity(Option<f64>);

fn fidelity(text: &str) -> Result<Fidelity, String> {
    if text == "policy" {
        return Ok(Fidelity(None));
    }
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1.0).contains(value));
    value.map(|value| Fidelity(Some(value))).ok_or_else(|| "a number from 0 to 1, or `policy`".to_owned())
}

/// Which VM, and how sure one is.
#[derive(Debug, Args)]
pub struct OneArguments {
    /// The production VM, by UUID or name
    vm: String,
    /// Only show whether it could be done
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(client: &Client, json: bool, command: &ShadowCommand) -> Result<(), Failure> {
    match command {
        ShadowCommand::List => list(client, json),
        ShadowCommand::Show { vm } => show(client, json, vm),
        ShadowCommand::Make(OneArguments { vm, dry_run, .. }) => {
            let answer = client.post(&path(vm, *dry_run), &json!({}))?;
            told(json, &typed(answer)?, "a shadow is made")
        }
        ShadowCommand::Fidelity { vm, fidelity: Fidelity(fidelity) } => {
            let answer = client.put(&path(vm, false), &FidelityBody { fidelity: *fidelity })?;
            told(json, &typed(answer)?, "its fidelity is changed")
        }
        ShadowCommand::Retire(OneArguments { vm, dry_run, yes }) => {
            if !dry_run && !yes {
                confirm(&format!("take the shadow of {vm} away?"), "nothing was done")?;
            }
            told(json, &typed(client.delete(&path(vm, *dry_run))?)?, "its shadow is taken away")
        }
    }
}

fn path(vm: &str, dry_run: bool) -> String {
    format!("vms/{}/shadow{}", segment(vm), if dry_run { "?dry_run=true" } else { "" })
}

fn told(json: bool, answer: &ShadowAnswer, done: &str) -> Result<(), Failure> {
    if json {
        return print_json(&json!(answer));
    }
    let dry = if answer.dry_run { "would be done: " } else { "" };
    println!("{dry}{done}; see gnomon shadow show {}", answer.vm);
    Ok(())
}

fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let shadows: Vec<ShadowView> = typed(client.get("shadows")?)?;
    if json {
        return print_json(&json!(shadows));
    }
    let mut table = table(&["VM", "HOST", "STATE", "SINCE", "SIZE", "FIDELITY", "USED", "WAITED", "WHY"], &[5, 6, 7]);
    for view in &shadows {
        let shadow = &view.shadow;
        table.add_row([
            shadow.name.clone(),
            shadow.host.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            shadow.state.name().to_owned(),
            at(shadow.since),
            shadow.size.map_or_else(|| "-".into(), |size| size.to_string()),
            format!("{:.2}", view.fidelity_now),
            cores(view.cpu_cores),
            cores(view.waited_cores),
            shadow.detail.clone(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn show(client: &Client, json: bool, vm: &str) -> Result<(), Failure> {
    let view: ShadowView = typed(client.get(&path(vm, false))?)?;
    if json {
        return print_json(&json!(view));
    }
    let shadow = &view.shadow;
    let host = shadow.host.as_ref().map_or_else(|| "no host".into(), |host| format!("host {host}"));
    println!("shadow {} of {} ({}), {host}", shadow.id, shadow.name, shadow.of);
    println!("{} since {}: {}", shadow.state.name(), at(shadow.since), shadow.detail);
    if let Some(size) = shadow.size {
        println!("size {size}, {} vCPUs, weight {}", size.vcpus, size.cpu_weight);
    }
    println!("fidelity {:.2}{}", view.fidelity_now, if shadow.fidelity.is_some() { "" } else { " by policy" });
    let mut table = table(&["", "CPU", "MEMORY", "READS", "WRITES", "NETWORK"], &[1, 2, 3, 4, 5]);
    let mut row = |name: &str, load: Option<Load>| {
        let cells = load.map_or_else(|| vec!["-".to_owned(); 5], cells);
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    row("told to do", view.ordered);
    row("wanted, by its pacer", view.pacer.map(|pacer| pacer.wanted));
    row("did, by its pacer", view.pacer.map(|pacer| pacer.made));
    println!("{table}");
    println!(
        "its host gave it {} cores; it waited for {} more, {} of the time for its own quota",
        cores(view.cpu_cores),
        cores(view.waited_cores),
        view.throttled.map_or_else(|| "-".into(), |share| format!("{:.0} %", share * 100.0)),
    );
    Ok(())
}

fn cells(load: Load) -> Vec<String> {
    let rate = |rate: u64| format!("{}/s", bytes(rate));
    vec![
        cores(Some(load.cpu_cores)),
        bytes(load.memory_bytes),
        rate(load.disk_read_bytes_per_s),
        rate(load.disk_write_bytes_per_s),
        rate(load.network_bytes_per_s),
    ]
}
