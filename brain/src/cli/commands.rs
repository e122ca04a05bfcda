//! One function per subcommand: fetch, then print a table or the JSON as it came.

use super::client::{Client, segment, typed};
use super::table::{at, bytes, cores, duration, limit, table};
use super::{Failure, modes, plot};
use crate::api::{OperateBody, Operated, ScopeBody, Status};
use gnomon_common::wire::{DemandSource, MemoryDemand, NumaNode, OutcomeResult, ShadowDone};
use gnomon_core::archive::Kpi;
use gnomon_core::view::{Alert, Explanation, Forecast, HostView, RecentAction, VmView};
use gnomon_core::{Audit, PlannedAction};
use serde_json::Value;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

pub(super) fn status(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("status")?;
    if json {
        return print_json(&value);
    }
    let status: Status = typed(value)?;
    println!("gnomon-brain {}, term {}, mode {}", status.version, status.term, status.mode);
    println!("leader    {}", status.leader);
    println!("hosts     {} of {} connected", status.hosts_connected, status.hosts);
    println!(
        "vms       {}, {} held by an operator, {} stood down for",
        status.vms, status.vms_held, status.vms_stood_down
    );
    println!("commands  {} in flight", status.commands_in_flight);
    if status.proposals_open > 0 {
        println!("proposals {} wait for an operator: gnomon proposals list", status.proposals_open);
    }
    let store =
        if status.store_writable { "accepts writes" } else { "FAILS: nothing is acknowledged, no command is sent" };
    println!("store     {store}");
    Ok(())
}

pub(super) fn hosts(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("hosts")?;
    if json {
        return print_json(&value);
    }
    let hosts: Vec<HostView> = typed(value)?;
    let columns = [
        "HOST",
        "AGENT",
        "VMS",
        "CPU",
        "AHEAD",
        "WAITS",
        "DISK",
        "ALLOCATED",
        "CAPACITY",
        "MEM FREE",
        "CPU FROM",
        "MODE",
        "HOLD",
        "LOST",
    ];
    let mut table = table(&columns, &[2, 3, 4, 5, 6, 7, 8, 9, 13]);
    for host in &hosts {
        let agent = match (host.connected, host.facts.dry_run) {
            (true, false) => "connected",
            (true, true) => "dry run",
            (false, _) => "away",
        };
        let losses = &host.losses;
        let lost = losses.reports_dropped + losses.samples_skipped + losses.samples_absurd + losses.threads_unmeasured;
        table.add_row([
            host.host.to_string(),
            agent.into(),
            host.vms.to_string(),
            cores(host.window.as_ref().map(|window| window.cpu_cores.mean)),
            cores(host.outlook.map(|outlook| outlook.demand_cores)),
            host.contention.map_or_else(|| "-".into(), |told| format!("{:.0} %", told.share * 100.0)),
            host.disk_wait.map_or_else(|| "-".into(), |told| format!("{:.1} ms", told.request_ms)),
            cores(Some(host.allocated_cores)),
            cores(Some(host.facts.capacity_cores)),
            host.window.as_ref().map_or_else(|| "-".into(), |window| bytes(window.memory_available_bytes)),
            host.facts.cpu_source.to_string(),
            modes::in_words(host.mode),
            host_hold(host),
            lost.to_string(),
        ]);
    }
    println!("{table}");
    for host in &hosts {
        let shed = host.window.as_ref().map(|window| window.probes_shed.join(", ")).filter(|shed| !shed.is_empty());
        if let Some(shed) = shed {
            println!("{}: given up to keep the agent within its budget, and not measured now: {shed}", host.host);
        }
        if host.facts.numa.len() > 1 {
            let told = |node: &NumaNode| format!("{} ({} CPUs, {})", node.node, node.cpus, bytes(node.memory_bytes));
            let nodes: Vec<String> = host.facts.numa.iter().map(told).collect();
            println!("{}: NUMA nodes {}", host.host, nodes.join(", "));
        }
        if !host.facts.labels.is_empty() {
            println!("{}: labels {}", host.host, host.facts.labels);
        }
        for stays in host.stuck.iter().flat_map(|stuck| &stuck.vms) {
            println!("{}: {} does not go: {}", host.host, stays.name, stays.why);
        }
        let others = host.stuck.as_ref().map_or(0, |stuck| stuck.others);
        if others > 0 {
            println!("{}: {others} more do not go either", host.host);
        }
    }
    Ok(())
}

pub(super) fn vms(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("vms")?;
    if json {
        return print_json(&value);
    }
    let vms: Vec<VmView> = typed(value)?;
    let columns = ["VM", "HOST", "STATE", "WANTS", "MAY USE", "MEM WANTS", "MEM", "SEASON", "MODE", "HOLD", "COMMAND"];
    let mut table = table(&columns, &[3, 4, 5, 6, 7]);
    for vm in &vms {
        let wants = vm
            .cpu
            .map_or_else(|| "-".to_owned(), |cpu| format!("{:.2} to {:.2}", cpu.demand_low.mean, cpu.demand_high.mean));
        table.add_row([
            vm.name.clone(),
            vm.host.to_string(),
            format!("{:?}", vm.state).to_lowercase(),
            wants,
            limit(&vm.allocation),
            vm.memory.and_then(|memory| memory.demand).map_or_else(|| "-".to_owned(), memory_demand),
            memory(vm.memory.and_then(|memory| memory.balloon_bytes)),
            vm.season_ms.map_or_else(|| "-".into(), duration),
            modes::in_words(vm.mode),
            holds(vm),
            vm.in_flight.map_or_else(|| "-".into(), |id| id.to_string()),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// What is out of the ordinary with a host.
fn host_hold(host: &HostView) -> String {
    let draining = host.draining_since.map(|_| "draining".to_owned());
    let holds: Vec<String> = host.hold.map(|hold| hold.to_string()).into_iter().chain(draining).collect();
    if holds.is_empty() { "-".into() } else { holds.join(", ") }
}

/// What keeps Gnomon's hands off a VM, or off a means of it.
fn holds(vm: &VmView) -> String {
    let hold = vm.hold.map(|hold| hold.to_string());
    let stood_down = vm.stood_down.then(|| "stood down".to_owned());
    let held = vm.held.iter().map(|setting| format!("{} set", setting.means()));
    let holds: Vec<String> = hold.into_iter().chain(stood_down).chain(held).collect();
    if holds.is_empty() { "-".into() } else { holds.join(", ") }
}

/// What its guest tells, else the bound that the host knows.
fn memory_demand(demand: MemoryDemand) -> String {
    match demand.source {
        DemandSource::Guest => bytes(demand.high_bytes),
        DemandSource::Host => format!("up to {}", bytes(demand.high_bytes)),
    }
}

fn memory(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), bytes)
}

pub(super) fn forecast(client: &Client, json: bool, vm: &str, ahead: Option<Duration>) -> Result<(), Failure> {
    let ahead = ahead.map_or_else(String::new, |ahead| format!("?ahead_s={}", ahead.as_secs()));
    let value = client.get(&format!("vms/{}/forecast{ahead}", segment(vm)))?;
    if json {
        return print_json(&value);
    }
    let Some(forecast) = typed::<Option<Forecast>>(value)? else {
        println!("no forecast of {vm} yet: too little history; `gnomon explain {vm}` says more");
        return Ok(());
    };
    let view: VmView = typed(client.get(&format!("vms/{}", segment(vm)))?)?;
    print!("{}", plot(&forecast, Some(view.allocation.cpu_limit_cores())));
    println!("model   {}", forecast.model);
    println!("season  {}", forecast.season_ms.map_or_else(|| "none found".into(), duration));
    if let Some(relative) = forecast.relative_error {
        println!("error   {relative:.2} of the naive forecast's");
    }
    let mut models = forecast.models;
    models.retain(|share| share.weight >= 0.01);
    models.sort_by(|one, other| other.weight.total_cmp(&one.weight));
    if !models.is_empty() {
        let mut table = table(&["MODEL", "WEIGHT", "ERROR"], &[1, 2]);
        for share in models {
            table.add_row([share.model, format!("{:.0} %", share.weight * 100.0), cores(share.error_cores)]);
        }
        println!("{table}");
    }
    Ok(())
}

pub(super) fn alerts(client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get("alerts")?;
    if json {
        return print_json(&value);
    }
    let alerts: Vec<Alert> = typed(value)?;
    if alerts.is_empty() {
        println!("nothing was out of the ordinary in the last seven days");
        return Ok(());
    }
    let mut table = table(&["SINCE", "FOUND", "VM", "HOST", "WHAT", "HOW"], &[]);
    for Alert { since, found, members, .. } in alerts {
        let Some(first) = members.first() else { continue };
        let (name, place) = match members.len() {
            1 => (first.name.clone(), first.host.as_ref().map_or_else(|| "-".into(), ToString::to_string)),
            many => (format!("{many} at once: {}, …", first.name), "fleet".into()),
        };
        let how = first.incident.in_words(|value| match first.kpi {
            Kpi::Memory => bytes(value.max(0.0) as u64),
            _ => format!("{value:.2}"),
        });
        table.add_row([at(since), at(found), name, place, first.kpi.to_string(), how]);
    }
    println!("{table}");
    Ok(())
}

pub(super) fn explain(client: &Client, json: bool, vm: &str) -> Result<(), Failure> {
    let value = client.get(&format!("vms/{}/explain", segment(vm)))?;
    if json {
        return print_json(&value);
    }
    let Explanation { vm, wanted_cores, wanted_bytes, lines, recent } = typed(value)?;
    let wanted_memory = wanted_bytes.map_or_else(String::new, |wanted| format!(" and {} of memory", bytes(wanted)));
    println!(
        "{} on {}: may use {} vCPUs, planner wants {}{wanted_memory}",
        vm.name,
        vm.host,
        limit(&vm.allocation),
        cores(wanted_cores)
    );
    for line in lines {
        println!("  {line}");
    }
    if !recent.is_empty() {
        let mut table = table(&["WHEN", "COMMAND", "WHAT", "WHY", "RESULT"], &[]);
        for RecentAction { at: when, id, action, result, remark } in &recent {
            table.add_row([
                at(*when),
                id.map_or_else(|| "recommended".into(), |id| id.to_string()),
                action.summary(),
                why(action, remark.as_deref()),
                result.as_ref().map_or_else(|| "-".into(), in_words),
            ]);
        }
        println!("{table}");
    }
    Ok(())
}

/// Why something was done, what was done along with it, and what is to be said of it.
fn why(action: &PlannedAction, remark: Option<&str>) -> String {
    let along = action.along.iter().map(|along| format!("; {along}"));
    let remark = remark.map(|remark| format!(": {remark}"));
    std::iter::once(action.reason.to_string()).chain(along).chain(remark).collect()
}

pub(super) fn operate(client: &Client, json: bool, verb: &str, scope: ScopeBody) -> Result<(), Failure> {
    let value = client.post(verb, &OperateBody { scope })?;
    if json {
        return print_json(&value);
    }
    let operated: Operated = typed(value)?;
    println!("{verb}: {}, {} VMs", operated.scope, operated.vms.len());
    Ok(())
}

/// Shows what would be restored, makes sure, restores.
pub(super) fn release(client: &Client, json: bool, scope: ScopeBody, dry_run: bool, yes: bool) -> Result<(), Failure> {
    let body = OperateBody { scope };
    let preview = client.post("release?dry_run=true", &body)?;
    if dry_run && json {
        return print_json(&preview);
    }
    let operated: Operated = typed(preview)?;
    if !json {
        show_released(&operated);
    }
    if dry_run {
        return Ok(());
    }
    if !yes {
        let question = format!("release {} ({} VMs)?", operated.scope, operated.vms.len());
        confirm(&question, "nothing was released")?;
    }
    let value = client.post("release", &body)?;
    if json {
        return print_json(&value);
    }
    println!("released; Gnomon stands down there until: gnomon resume");
    Ok(())
}

/// Asks a person; anything but a yes is a failure that says `otherwise`.
pub(super) fn confirm(question: &str, otherwise: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("not a terminal, so nobody can be asked: look first, then add --yes".into()));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().read_line(&mut answer));
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::Refused(otherwise.into())),
    }
}

pub(super) fn audit(client: &Client, json: bool, limit: u32) -> Result<(), Failure> {
    let value = client.get(&format!("audit?limit={limit}"))?;
    if json {
        return print_json(&value);
    }
    let mut table = table(&["WHEN", "WHO", "WHAT", "ON", "DETAIL"], &[]);
    for line in typed::<Vec<Audit>>(value)? {
        table.add_row([at(line.at), line.actor, line.verb, line.object, line.detail]);
    }
    println!("{table}");
    Ok(())
}

fn show_released(operated: &Operated) {
    let mut table = table(&["VM", "HOST", "QUOTA NOW", "AFTERWARDS"], &[2]);
    for vm in &operated.vms {
        let quota = vm.quota_cores.map_or_else(|| "unlimited".into(), |quota| format!("{quota:.2}"));
        table.add_row([vm.name.clone(), vm.host.to_string(), quota, "as before Gnomon's first change".into()]);
    }
    println!("{table}");
}

pub(super) fn in_words(result: &OutcomeResult) -> String {
    match result {
        OutcomeResult::Applied { after, took_us, .. } => {
            let after = after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("applied: {after}, after {:.1} ms", *took_us as f64 / 1000.0)
        }
        OutcomeResult::Moved(moved) => {
            let still =
                moved.downtime_us.map_or_else(String::new, |us| format!(", {:.3} s of it at a stand", us as f64 / 1e6));
            format!("moved in {:.1} s{still}", moved.took_us as f64 / 1e6)
        }
        OutcomeResult::NotMoved { error, whereabouts } => format!("not moved: {error}; {whereabouts}"),
        OutcomeResult::Immovable(why) => format!("not moved: {why}"),
        OutcomeResult::Described(_) => "described".into(),
        OutcomeResult::Imaged(imaged) => format!("disks copied in {:.1} s", imaged.took_us as f64 / 1e6),
        OutcomeResult::DirtyRate { bytes_per_s } => {
            format!("it writes to {:.0} MiB of its memory a second", *bytes_per_s as f64 / f64::from(1 << 20))
        }
        OutcomeResult::Shadow(ShadowDone::Copied { took_us, .. }) => {
            format!("copied in {:.1} s", *took_us as f64 / 1e6)
        }
        OutcomeResult::Shadow(ShadowDone::Started { took_us }) => format!("started in {:.1} s", *took_us as f64 / 1e6),
        OutcomeResult::Shadow(ShadowDone::Paced) => "paced".into(),
        OutcomeResult::Shadow(ShadowDone::Resized { took_us }) => format!("resized in {:.1} s", *took_us as f64 / 1e6),
        OutcomeResult::Shadow(ShadowDone::Retired) => "retired".into(),
        OutcomeResult::Unshadowable(why) => format!("no shadow: {why}"),
        OutcomeResult::DryRun => "dry run".into(),
        OutcomeResult::Refused(why) => format!("refused: {why}"),
        OutcomeResult::Failed { error, .. } => format!("failed: {error}"),
    }
}

pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Refused(error.to_string()))?;
    println!("{text}");
    Ok(())
}
