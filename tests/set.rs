//! Limits set by hand, and memory that follows its guest, on real guests.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{acting, skipped, stack_of, wait_for};
use serde_json::Value;
use xtask::env::bin_dir;
use xtask::lab::{Guest, GuestOptions};
use xtask::stack::Stack;

/// A dwell, a shrink interval and what a busy machine adds.
const PLANNED: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What `gnomon --json ARGUMENTS` says, or what it complains about.
fn gnomon(stack: &Stack, arguments: &[&str]) -> Result<std::result::Result<Value, String>> {
    let mut command = Command::new(bin_dir().join("gnomon"));
    command.arg("--json").args(arguments);
    command.env("GNOMON_URL", stack.api().url("")).env("GNOMON_TOKEN_FILE", stack.brain_dir().join("tokens"));
    let output = command.output()?;
    Ok(if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).with_context(|| format!("gnomon {arguments:?}"))?)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

fn done(answer: std::result::Result<Value, String>) -> Result<Value> {
    answer.map_err(anyhow::Error::msg)
}

fn is_about(quota: Option<f64>, cores: f64) -> bool {
    quota.is_some_and(|quota| (quota - cores).abs() < 0.002)
}

#[test]
fn a_quota_set_by_hand_is_in_force_and_left_alone_until_the_vm_is_resumed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", "constant:0.1".parse()?);
    options.quota_cores = Some(0.8);
    let (stack, guests) = stack_of("set", vec![options], acting())?;
    let guest = &guests[0];

    let preview = done(gnomon(&stack, &["set", "g1", "--cpu", "0.9", "--dry-run"])?)?;
    ensure!(preview["command"].is_null(), "a dry run sent something: {preview}");
    let set = done(gnomon(&stack, &["set", "g1", "--cpu", "0.9"])?)?;
    let after = set["result"]["applied"]["after"][0]["cpu_quota"]["cores"].as_f64();
    ensure!(is_about(after, 0.9), "not applied: {set}");
    ensure!(is_about(guest.cpu_quota_cores()?, 0.9), "the cgroup says {:?}", guest.cpu_quota_cores()?);

    // An idle guest shrinks within a dwell and an interval of the demo's policy; this one does not.
    let settings = stack.settings().policy.cpu.clone();
    let patience =
        Duration::from_millis(settings.shrink_dwell_ms + settings.shrink_interval_ms) + Duration::from_secs(8);
    std::thread::sleep(patience);
    ensure!(is_about(guest.cpu_quota_cores()?, 0.9), "the planner changed what is held");
    let explained = stack.api().get("/api/v1/vms/g1/explain")?.to_string();
    ensure!(explained.contains("An operator set the CPU quota to 0.90 cores"), "{explained}");

    let refused = gnomon(&stack, &["set", "g1", "--cpu", "7"])?;
    let refused = refused.err().context("more than the agent allows was taken")?;
    ensure!(refused.contains("ceiling"), "{refused}");
    ensure!(is_about(guest.cpu_quota_cores()?, 0.9), "what was refused changed something");

    done(gnomon(&stack, &["resume", "--vm", "g1"])?)?;
    wait_for("the planner to take it up again", PLANNED, || {
        Ok(guest.cpu_quota_cores()?.is_some_and(|cores| cores < 0.5))
    })
}

#[test]
fn memory_grows_at_once_and_shrinks_in_steps_of_a_twentieth_down_to_what_is_used() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let guest = |name: &str, memory_mib, memory_mib_max| -> Result<GuestOptions> {
        Ok(GuestOptions { memory_mib, memory_mib_max, ..GuestOptions::new(name, "constant:0.1".parse()?) })
    };
    let mut settings = acting();
    let memory = &mut settings.policy.memory;
    // Six times what an idle guest wants: more than the one has, less than the other.
    (memory.manage, memory.floor_bytes, memory.headroom) = (true, 64 * MIB, 6.0);
    (memory.shrink_dwell_ms, memory.shrink_interval_ms) = (3000, 1000);
    let guests = vec![guest("small", 128, 512)?, guest("large", 512, 512)?];
    let (stack, guests) = stack_of("memory", guests, settings)?;
    let (small, large) = (&guests[0], &guests[1]);

    wait_for("the statistics of both guests", Duration::from_secs(30), || {
        Ok(demand_mib(&stack, "small")?.is_some() && demand_mib(&stack, "large")?.is_some())
    })?;
    wait_for("the small guest to grow", PLANNED, || Ok(balloon_mib(small)? > 160))?;
    wait_for("the large guest to shrink in several steps", PLANNED, || Ok(shrinks(&stack, "large")?.len() >= 3))?;
    for (before, after) in shrinks(&stack, "large")? {
        ensure!(after as f64 >= before as f64 * 0.95 - 1.0, "{before} -> {after} bytes in one step");
    }
    // libvirt's own word, and the guest's: its kernel has less to manage.
    ensure!(balloon_mib(large)? < 480, "libvirt says {} MiB", balloon_mib(large)?);
    let demand = demand_mib(&stack, "large")?.context("no demand")?;
    ensure!(balloon_mib(large)? >= demand + 64, "{} MiB with a demand of {demand}", balloon_mib(large)?);
    wait_for("the guests' kernels to notice", Duration::from_secs(15), || {
        let managed_kib = |guest: &Guest| -> Result<(u64, u64)> {
            let reports = guest.reports()?;
            let (first, last) = (reports.first().context("no report")?, reports.last().context("no report")?);
            Ok((first.memory_kib, last.memory_kib))
        };
        let (small, large) = (managed_kib(small)?, managed_kib(large)?);
        println!("managed by the guests' kernels, in KiB, first and last: small {small:?}, large {large:?}");
        Ok(small.1 > small.0 + 20_000 && large.1 + 20_000 < large.0)
    })?;

    // A hand on the balloon: held, and no larger than defined.
    let held = balloon_mib(large)? + 32;
    let set = gnomon(&stack, &["set", "large", "--memory", &format!("{held}MiB")])?;
    done(set)?;
    std::thread::sleep(Duration::from_secs(6));
    ensure!(balloon_mib(large)?.abs_diff(held) <= 1, "set to {held} MiB, is at {}", balloon_mib(large)?);
    stack.api().post("/api/v1/release", &serde_json::json!({ "scope": "fleet" }))?;
    wait_for("both baselines", Duration::from_secs(20), || {
        Ok(balloon_mib(small)?.abs_diff(128) <= 1 && balloon_mib(large)?.abs_diff(512) <= 1)
    })
}

/// The balloon's size as libvirt tells it.
fn balloon_mib(guest: &Guest) -> Result<u64> {
    let text = guest.host().virsh(["dommemstat", guest.name()])?;
    let actual = text.lines().find_map(|line| line.trim().strip_prefix("actual ")).context("no actual size")?;
    Ok(actual.trim().parse::<u64>()? / 1024)
}

fn demand_mib(stack: &Stack, vm: &str) -> Result<Option<u64>> {
    let view = stack.api().get(&format!("/api/v1/vms/{vm}"))?;
    Ok(view["memory"]["demand"]["high_bytes"].as_u64().map(|bytes| bytes / MIB))
}

/// The steps by which a VM's memory was made smaller: before and after, in bytes.
fn shrinks(stack: &Stack, vm: &str) -> Result<Vec<(u64, u64)>> {
    let explained = stack.api().get(&format!("/api/v1/vms/{vm}/explain"))?;
    let recent = explained["recent"].as_array().context("no recent actions")?;
    let steps = recent.iter().filter_map(|action| {
        let applied = &action["result"]["applied"];
        let bytes = |settings: &Value| settings[0]["memory"]["bytes"].as_u64();
        Some((bytes(&applied["before"])?, bytes(&applied["after"])?))
    });
    Ok(steps.filter(|(before, after)| after < before).collect())
}
