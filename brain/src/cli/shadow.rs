//! `gnomon shadow`: small copies of production VMs, and what they tell.

use super::Failure;
use super::client::{Client, segment, typed};
use super::commands::{confirm, print_json};
use super::quantity;
use super::table::{at, bytes, cores, table};
use crate::api::{FidelityBody, ShadowAnswer, TrialBody};
use clap::{Args, Subcommand};
use gnomon_common::wire::{Load, ShadowSize};
use gnomon_core::{CopiesMade, Response, ShadowView, Trial};
use serde_json::json;
use std::thread;
use std::time::Duration;

/// How often a trial is looked at.
const POLL: Duration = Duration::from_secs(1);

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
    /// Try with its shadow whether a VM would be served at another size
    #[command(
        after_help = "The shadow plays the forecast's highest median, 95 % and 99 % quantile within that time as the VM would feel them at that size, each for\n\
        six windows (a minute by default); nothing is resized. Memory is compared with what its guest wants now. Exit status: 0 it holds, 1 it does not, or cannot be told.\n\n\
        Examples:\n  gnomon shadow try web-1 --cpu 2 --load forecast:2h\n  gnomon shadow try web-1 --cpu 1.5 --memory 4GiB --load forecast:1d"
    )]
    Try(TryArguments),
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

/// What is tried.
#[derive(Debug, Args)]
pub struct TryArguments {
    /// The production VM (or the shadow), by UUID or name
    vm: String,
    /// CPU that the VM would have, in cores
    #[arg(long, value_parser = cpu_cores)]
    cpu: f64,
    /// Memory that it would have, like 4GiB or 4G, the same: K, M, G and T are powers of 1024, as for QEMU and libvirt
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// The load: what is forecast for so long from now on
    #[arg(long, value_name = "forecast:TIME", default_value = "forecast:1h", value_parser = ahead)]
    load: Duration,
    /// Only show whether it could be tried
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for what comes out: `gnomon shadow show` has it then
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

fn cpu_cores(text: &str) -> Result<f64, String> {
    quantity::cores(text).ok().and_then(|limit| limit.0).ok_or_else(|| "expected a number of cores like 1.5".to_owned())
}

fn ahead(text: &str) -> Result<Duration, String> {
    let time = text.strip_prefix("forecast:").ok_or("expected forecast:TIME, like forecast:2h")?;
    quantity::duration(time)
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
        ShadowCommand::Try(arguments) => try_size(client, json, arguments),
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
        println!("{}", size_in_words(&size));
    }
    if let Some(to) = shadow.resizes_to {
        println!("it is being resized: {}", size_in_words(&to));
    }
    if let Some(copies) = &shadow.copies {
        println!("{}", copies_in_words(copies));
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
    if let Some(table) = response(&shadow.response) {
        println!("what its host gave it, by load:\n{table}");
    }
    if let Some(trial) = &shadow.trial {
        println!("{}", trial_in_words(trial));
    }
    Ok(())
}

fn size_in_words(size: &ShadowSize) -> String {
    let limit = |bytes_per_s: Option<u64>| {
        bytes_per_s.map_or_else(|| "no limit".to_owned(), |bytes_per_s| format!("{}/s", bytes(bytes_per_s)))
    };
    let (disk, network) = (limit(size.disk_bytes_per_s), limit(size.network_bytes_per_s));
    format!(
        "size {size}, {} vCPUs, weight {}; each disk {disk}, each network interface {network}",
        size.vcpus, size.cpu_weight
    )
}

fn copies_in_words(copies: &CopiesMade) -> String {
    let CopiesMade { on, to, .. } = copies;
    match to {
        None => format!("it stands on copies of its production's disks, which host {on} deletes when it is retired"),
        Some(to) if to == on => {
            format!(
                "it stands on copies of its production's disks that were sent to host {on}, which deletes them when it leaves"
            )
        }
        Some(to) => format!("host {on} copies its production's disks, and sends them to host {to}"),
    }
}

/// Begins a trial, and follows it to its end.
fn try_size(client: &Client, json: bool, arguments: &TryArguments) -> Result<(), Failure> {
    let TryArguments { vm, cpu, memory, load, dry_run, no_wait } = arguments;
    let ahead_ms = u64::try_from(load.as_millis()).unwrap_or(u64::MAX);
    let body = TrialBody { cpu_cores: *cpu, memory_bytes: *memory, ahead_ms };
    let dry = if *dry_run { "?dry_run=true" } else { "" };
    let answer: ShadowAnswer = typed(client.post(&format!("vms/{}/shadow/trial{dry}", segment(vm)), &json!(body))?)?;
    if *dry_run || *no_wait {
        return told(json, &answer, "the size is tried");
    }
    let begun = answer.shadow.and_then(|view| view.shadow.trial).map(|trial| trial.begun);
    let mut shown = None;
    loop {
        let view: ShadowView = typed(client.get(&path(vm, false))?)?;
        let trial = view.shadow.trial.filter(|trial| begun == Some(trial.begun));
        let trial =
            trial.ok_or_else(|| Failure::Refused("somebody else has tried another size meanwhile".to_owned()))?;
        if let Some(verdict) = &trial.verdict {
            match json {
                true => print_json(&json!(trial))?,
                false => println!("{}", trial_in_words(&trial)),
            }
            return match verdict.holds {
                Some(true) => Ok(()),
                Some(false) => Err(Failure::Refused(format!("it would not hold: {}", verdict.why))),
                None => Err(Failure::Refused(format!("it could not be told: {}", verdict.why))),
            };
        }
        let windows: u32 = trial.levels.iter().map(|level| level.windows + level.spoilt).sum();
        if shown.replace(windows) != Some(windows) {
            let levels = trial.levels.len();
            let done = trial.levels.iter().filter(|level| level.windows + level.spoilt > 0).count().max(1);
            eprintln!("level {done} of {levels}, {windows} windows so far");
        }
        thread::sleep(POLL);
    }
}

/// A trial as people read it.
fn trial_in_words(trial: &Trial) -> String {
    let Trial { proposed, forecast_made, model, skill, memory_wanted_bytes, levels, verdict, .. } = trial;
    let mut table = table(&["LOAD", "WANTED", "PLAYED", "WINDOWS", "HELD", "SERVED", "THROTTLED"], &[1, 2, 3, 4, 5, 6]);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    for level in levels {
        let spoilt = if level.spoilt > 0 { format!(" (+{} its host's)", level.spoilt) } else { String::new() };
        let is_seen = level.windows > 0;
        table.add_row([
            format!("p{:.0}", level.quantile * 100.0),
            format!("{:.2} cores", level.cpu_cores),
            format!("{:.3} cores", level.plays_cores),
            format!("{}{spoilt}", level.windows),
            level.held.to_string(),
            if is_seen { percent(level.served) } else { "-".to_owned() },
            if is_seen { percent(level.throttled) } else { "-".to_owned() },
        ]);
    }
    let memory = match (proposed.memory_bytes, memory_wanted_bytes) {
        (None, _) => String::new(),
        (Some(proposed), Some(wanted)) => {
            format!("\nmemory: {} of which its guest wants {} now", bytes(proposed), bytes(*wanted))
        }
        (Some(proposed), None) => {
            format!("\nmemory: {}, of which its guest does not say what it wants", bytes(proposed))
        }
    };
    let skill = skill.map_or_else(|| "skill unknown".to_owned(), |skill| format!("skill {skill:.2}"));
    let verdict = verdict.as_ref().map_or_else(
        || "not over yet".to_owned(),
        |verdict| {
            let holds = match verdict.holds {
                Some(true) => "it would hold",
                Some(false) => "it would not hold",
                None => "it could not be told",
            };
            let confidence = verdict.confidence.map_or_else(
                || "not even the median was shown to hold".to_owned(),
                |share| format!("shown to hold up to the forecast's {} quantile", percent(share)),
            );
            format!("{holds}: {}; {confidence}", verdict.why)
        },
    );
    format!(
        "tried {:.2} cores for the load of the next {} min (forecast of {}, {model}, {skill})\n{table}{memory}\n{verdict}",
        proposed.cpu_cores,
        proposed.ahead_ms / 60_000,
        at(*forecast_made),
    )
}

/// What a shadow got of its host, level by level; `None` while it got nothing.
fn response(response: &Response) -> Option<String> {
    let mut table = table(&["OF ITS QUOTA", "TOLD FOR", "SERVED", "WAITED/RUN", "FAULTS", "DISK"], &[1, 2, 3, 4, 5]);
    let heard = response.levels.iter().zip(1..).filter(|(heard, _)| heard.told_ms > 0);
    let rows = heard.map(|(heard, quarter)| {
        [
            format!("{}-{} %", 25 * (quarter - 1), 25 * quarter),
            format!("{} s", heard.told_ms / 1000),
            format!("{:.0} %", heard.served * 100.0),
            format!("{:.3}", heard.waited),
            format!("{:.1}/s", heard.faults_per_s),
            if heard.disk_ms > 0.0 { format!("{:.2} ms", heard.disk_ms) } else { "-".to_owned() },
        ]
    });
    table.add_rows(rows);
    (!table.is_empty()).then(|| table.to_string())
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
