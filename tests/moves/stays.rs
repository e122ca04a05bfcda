//! A host is emptied, and of each VM that stays the brain says what keeps it, as long as that keeps it.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{redefine, skipped, wait_for};
use serde::Deserialize;
use serde_json::{Value, json};
use xtask::lab::Guest;
use xtask::stack::{BrainSettings, Mode, Stack};

use super::{is_moved, lived_once, migrations, policy, runs_on, scene};

/// Guests, and what keeps each on its host whatever other hosts there are.
const BOUND: [(&str, &str); 4] = [
    ("pinned", "CPUs of this host (<vcpupin>)"),
    ("shares", "a folder of this host (filesystem mount)"),
    ("stays", "its owner wants it to stay"),
    ("watched", "its owner keeps Gnomon's hands off it"),
];

/// Two that may leave, and belong apart.
const APART: [&str; 2] = ["db1", "db2"];

const DAY: &str = "constant:0.02";

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
            "stays" => owner_says("migrate='no'")?,
            "watched" => owner_says("mode='observe'")?,
            _ => owner_says("apart='db'")?,
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

#[test]
fn what_may_not_leave_a_host_that_is_emptied_stays_and_it_is_told_why() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut policy = policy();
    policy.migrate.mode = Mode::Auto;
    let names = BOUND.iter().map(|(name, _)| *name).chain(APART);
    let guests: Vec<(&str, &str)> = names.map(|name| (name, DAY)).collect();
    let (stack, guests) = scene("stays", &guests, bind, BrainSettings { policy, heartbeat_ms: 500 })?;
    wait_for("the brain to hear of all guests", Duration::from_secs(30), || {
        Ok(stack.api().get("/api/v1/hosts/h1")?["vms"] == guests.len())
    })?;
    let post = |path: &str, body: Value| stack.api().post(&format!("/api/v1/{path}"), &body).map(drop);
    let h2 = || json!({ "host": "h2" });

    // No other host may be touched.
    post("pause", json!({ "scope": h2() }))?;
    post("hosts/h1/drain", json!({}))?;
    let held = "no other host can have it: 1 is held by an operator";
    await_reasons(&stack, &APART.map(|name| (name, held)))?;

    // It may be, and nothing is done there without being asked for.
    post("mode", json!({ "scope": h2(), "mode": "recommend" }))?;
    post("resume", json!({ "scope": h2() }))?;
    let cautious = "no other host can have it: 1 has a more cautious mode";
    await_reasons(&stack, &APART.map(|name| (name, cautious)))?;
    // Long enough for some reports.
    thread::sleep(Duration::from_secs(5));
    ensure!(migrations(&stack)?.is_empty(), "something was moved: {:?}", migrations(&stack)?);

    // One goes, and keeps the other out.
    post("mode", json!({ "scope": h2(), "mode": "auto" }))?;
    wait_for("one to be moved", Duration::from_secs(60), || Ok(migrations(&stack)?.iter().any(is_moved)))
        .with_context(|| stack.brain_log().unwrap_or_default())?;
    let homes = guests.iter().map(|guest| Ok((guest, runs_on(&stack, guest)?))).collect::<Result<Vec<_>>>()?;
    let (gone, left): (Vec<_>, Vec<_>) = homes.iter().partition(|(_, homes)| *homes == ["h2"]);
    ensure!(gone.len() == 1 && APART.contains(&gone[0].0.name()), "{homes:?}");
    ensure!(left.iter().all(|(_, homes)| *homes == ["h1"]), "{homes:?}");
    let other = APART.iter().find(|name| **name != gone[0].0.name()).context("both are gone")?;
    await_reasons(&stack, &[(other, "no other host can have it: 1 has one that it belongs apart from")])?;
    ensure!(migrations(&stack)?.len() == 1, "{:?}", migrations(&stack)?);
    lived_once(gone[0].0)
}
