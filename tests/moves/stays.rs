//! A host is emptied, and then too full: of each VM that stays the brain says what keeps it, and it stays no longer than that keeps it.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{redefine, skipped, wait_for};
use serde::Deserialize;
use serde_json::{Value, json};
use xtask::lab::Guest;
use xtask::stack::{BrainSettings, Mode, Stack};

use super::{is_moved, lived_once, migrations, policy, runs_on, scene_on, told_on};

/// Guests, and what keeps each on its host whatever other hosts there are.
const BOUND: [(&str, &str); 4] = [
    ("pinned", "CPUs of this host (<vcpupin>)"),
    ("shares", "a folder of this host (filesystem mount)"),
    ("stays", "its owner wants it to stay"),
    ("watched", "its owner keeps Gnomon's hands off it"),
];

/// What may leave: two that belong apart, of which the second belongs with one that is bound, and one that is choosy.
const FREE: [&str; 3] = ["db1", "db2", "choosy"];

/// What keeps the last of these when nothing else does.
const CHOOSY: (&str, &str) = ("choosy", "no other host can have it: 1 lacks a label that its owner asks for");

const DAY: &str = "constant:0.02";

/// The hosts are in different zones. The first is too full with any guest, the second has room for all of them.
const HOSTS: [&str; 2] = [
    "zone = \"east\"\ncapacity_cores = 0.01\nlabels = { disk = \"nvme\", gpu = \"none\" }\n",
    "zone = \"west\"\ncapacity_cores = 2.0\nlabels = { disk = \"nvme\" }\n",
];

/// Long enough for some reports, and for a move that is foreseen to begin.
const SOME_REPORTS: Duration = Duration::from_secs(5);

/// All the time.
const ALWAYS: &str = "daily 00:00-24:00";

/// Why a VM stays, as the API has it.
#[derive(Deserialize)]
struct Stays {
    name: String,
    why: String,
}

/// Binds the guests to their host, each in its way.
fn bind(guests: &[Guest]) -> Result<()> {
    for guest in guests {
        let owner_says = |attributes: &str| {
            let word = format!("<policy {attributes}/>");
            let set = ["metadata", guest.name(), "urn:gnomon:policy:1", "--config", "--key", "gnomon", "--set", &word];
            guest.host().virsh(set).map(drop)
        };
        match guest.name() {
            "pinned" => drop(guest.host().virsh(["vcpupin", guest.name(), "0", "0", "--config"])?),
            "shares" => {
                let folder = format!(
                    "<filesystem type='mount'><source dir='{}'/><target dir='shared'/></filesystem></devices>",
                    guest.host().dir().display()
                );
                redefine(guest, |xml| Ok(xml.replace("</devices>", &folder)))?;
            }
            "stays" => owner_says("migrate='no' together='db'")?,
            "watched" => owner_says("mode='observe'")?,
            "db2" => owner_says("apart='db' together='db'")?,
            "choosy" => owner_says("labels='disk=nvme,gpu=none'")?,
            _ => owner_says("apart='db' labels='disk=nvme'")?,
        }
    }
    Ok(())
}

/// Waits until the brain says of the bound guests what binds them, and of others that, in this order of their names.
fn await_reasons(stack: &Stack, others: &[(&str, &str)]) -> Result<()> {
    let expected: BTreeMap<&str, &str> = BOUND.iter().chain(others).copied().collect();
    let mut told = Value::Null;
    wait_for("the reasons why VMs stay", Duration::from_secs(60), || {
        told = stack.api().get("/api/v1/hosts/h1")?["stuck"]["vms"].take();
        let stays: Vec<Stays> = serde_json::from_value(told.clone()).unwrap_or_default();
        Ok(stays.iter().map(|stays| (stays.name.as_str(), stays.why.as_str())).collect::<BTreeMap<_, _>>() == expected)
    })
    .with_context(|| format!("{told:#}\n{}", stack.brain_log().unwrap_or_default()))
}

/// A proposal of a move from the API's list, if one waits for an operator.
fn proposed(stack: &Stack) -> Result<Option<Value>> {
    let proposals = stack.api().get("/api/v1/proposals")?;
    let proposals = proposals.as_array().context("no list of proposals")?;
    Ok(proposals.iter().find(|proposal| proposal["state"] == "awaiting_approval").cloned())
}

/// Waits for a move to be proposed, of the guest that may leave, and returns the proposal's path.
fn await_proposal(stack: &Stack) -> Result<String> {
    let mut found = None;
    wait_for("a move to be proposed", Duration::from_secs(30), || {
        found = proposed(stack)?;
        Ok(found.is_some())
    })
    .with_context(|| stack.brain_log().unwrap_or_default())?;
    let proposal = found.context("nothing is proposed")?;
    ensure!(proposal["name"] == "db1", "{proposal}");
    Ok(format!("/api/v1/proposals/{}", proposal["key"].as_str().context("no key")?))
}

/// Sees to it that for some reports no move is begun beyond those there were, nor proposed.
fn ensure_nothing_leaves(stack: &Stack, moves: usize) -> Result<()> {
    thread::sleep(SOME_REPORTS);
    let found = migrations(stack)?;
    ensure!(found.len() == moves, "something was moved: {found:?}");
    let proposed = proposed(stack)?;
    ensure!(proposed.is_none(), "something is proposed: {proposed:?}");
    Ok(())
}

#[test]
fn what_may_not_leave_a_host_stays_and_it_is_told_why() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut policy = policy();
    policy.migrate.mode = Mode::Auto;
    let names = BOUND.iter().map(|(name, _)| *name).chain(FREE);
    let guests: Vec<(&str, &str)> = names.map(|name| (name, DAY)).collect();
    let (mut stack, guests) = scene_on(HOSTS, "stays", &guests, bind, BrainSettings { policy, heartbeat_ms: 500 })?;
    wait_for("the brain to hear of all guests", Duration::from_secs(30), || {
        Ok(stack.api().get("/api/v1/hosts/h1")?["vms"] == guests.len())
    })?;
    let free = guests.iter().find(|guest| guest.name() == "db1").context("no db1")?;
    from_a_host_that_is_emptied(&mut stack, &guests)?;
    from_a_host_that_is_too_full(&mut stack, free)?;
    lived_once(free)
}

/// One guest leaves, when all that kept it is gone.
fn from_a_host_that_is_emptied(stack: &mut Stack, guests: &[Guest]) -> Result<()> {
    let post = |stack: &Stack, path: &str, body: Value| stack.api().post(&format!("/api/v1/{path}"), &body).map(drop);
    let h2 = || json!({ "host": "h2" });
    let no_host = |stack: &Stack, why: &str| {
        let why = format!("no other host can have it: 1 {why}");
        await_reasons(stack, &FREE.map(|name| (name, why.as_str())))
    };

    // The other host is emptied as well, then held, then of a more cautious mode, and in another zone all the time.
    post(stack, "pause", json!({ "scope": h2() }))?;
    post(stack, "hosts/h2/drain", json!({}))?;
    post(stack, "hosts/h1/drain", json!({}))?;
    no_host(stack, "is being emptied")?;
    stack.api().delete("/api/v1/hosts/h2/drain")?;
    no_host(stack, "is held by an operator")?;
    post(stack, "mode", json!({ "scope": h2(), "mode": "recommend" }))?;
    post(stack, "resume", json!({ "scope": h2() }))?;
    no_host(stack, "has a more cautious mode")?;
    post(stack, "mode", json!({ "scope": h2(), "mode": "auto" }))?;
    no_host(stack, "is in another zone")?;
    ensure_nothing_leaves(stack, 0)?;

    // One goes, and keeps the other out, which was held meanwhile.
    let db2 = || json!({ "vm": "db2" });
    post(stack, "pause", json!({ "scope": db2() }))?;
    stack.change_policy(|policy| policy.migrate.across_zones = true)?;
    wait_for("one to be moved", Duration::from_secs(60), || Ok(migrations(stack)?.iter().any(is_moved)))
        .with_context(|| stack.brain_log().unwrap_or_default())?;
    for guest in guests {
        let home = if guest.name() == "db1" { "h2" } else { "h1" };
        ensure!(runs_on(stack, guest)? == [home], "{} runs on {:?}", guest.name(), runs_on(stack, guest)?);
    }
    await_reasons(stack, &[("db2", "it is paused by an operator"), CHOOSY])?;
    post(stack, "resume", json!({ "scope": db2() }))?;
    await_reasons(stack, &[("db2", "no other host can have it: 1 has one that it belongs apart from"), CHOOSY])?;
    ensure!(migrations(stack)?.len() == 1, "{:?}", migrations(stack)?);
    stack.api().delete("/api/v1/hosts/h1/drain").map(drop)
}

/// The guest that left is brought back by somebody else, and leaves once more when all that keeps it is gone.
fn from_a_host_that_is_too_full(stack: &mut Stack, free: &Guest) -> Result<()> {
    let [h1, h2] = ["h1", "h2"].map(|name| stack.lab.host(name).cloned());
    let back = h1?.migration_uri();
    h2?.virsh(["migrate", "--live", "--p2p", "--persistent", "--undefinesource", free.name(), &back])?;
    wait_for("the brain to know that it is back", Duration::from_secs(30), || {
        // Of no host for a moment, where its reports come in this order.
        Ok(told_on(stack, free).is_ok_and(|host| host == "h1"))
    })?;
    let metrics = stack.api().get("/metrics")?;
    let counted = "gnomon_brain_notices_total{kind=\"moved_by_somebody_else\"} 1";
    ensure!(metrics.as_str().is_some_and(|text| text.contains(counted)), "not counted:\n{metrics}");

    // Beside another balancer Gnomon stands down…
    ensure_nothing_leaves(stack, 1)?;
    stack.change_policy(|policy| policy.migrate.stand_down_ms = 0)?;
    // …who was moved rests, and who belongs with one that is bound stays with it…
    await_reasons(
        stack,
        &[
            ("db1", "it was moved, or recommended to be, less than policy.migrate.cool_down_ms ago"),
            ("db2", "no other host can have it: 1 would part it from one that it belongs with"),
            CHOOSY,
        ],
    )?;
    // …and so many moves in an hour are enough.
    stack.change_policy(|policy| {
        policy.migrate.cool_down_ms = 0;
        policy.migrate.per_hour_max = 1;
        policy.migrate.mode = Mode::Approve;
    })?;
    ensure_nothing_leaves(stack, 1)?;

    // An operator is asked, but for times that are no time for moves.
    stack.change_policy(|policy| policy.migrate.per_hour_max = 20)?;
    let withdrawn = await_proposal(stack)?;
    stack.change_policy(|policy| policy.windows.freeze = vec![ALWAYS.to_owned()])?;
    wait_for("the proposal to be withdrawn", Duration::from_secs(30), || Ok(proposed(stack)?.is_none()))?;
    let too_late = stack.api().post(&format!("{withdrawn}/approve"), &json!({}));
    let is_told = |error: &anyhow::Error| error.to_string().contains("awaits no approval: it is withdrawn");
    ensure!(too_late.as_ref().is_err_and(is_told), "{too_late:?}");
    let audit = stack.api().get("/api/v1/audit?limit=1000")?.to_string();
    ensure!(audit.contains("would be shrunk or moved outside the maintenance windows"), "{audit}");
    stack.change_policy(|policy| policy.windows.freeze.clear())?;
    let proposal = await_proposal(stack)?;
    thread::sleep(SOME_REPORTS);
    ensure!(migrations(stack)?.len() == 1, "nobody was asked: {:?}", migrations(stack)?);
    stack.api().post(&format!("{proposal}/approve"), &json!({}))?;
    wait_for("what was approved", Duration::from_secs(60), || {
        Ok(migrations(stack)?.iter().filter(|record| is_moved(record)).count() == 2)
    })
    .with_context(|| stack.brain_log().unwrap_or_default())?;
    ensure!(runs_on(stack, free)? == ["h2"], "it runs on {:?}", runs_on(stack, free)?);
    Ok(())
}
