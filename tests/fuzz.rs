//! Fuzzes every decoder for a minute, from what well-behaved peers send. What a target found before is tried first and kept in
//! `target/fuzz`, so that a longer run by hand (`GNOMON_FUZZ_S=3600 cargo nextest run --profile e2e -E 'binary(fuzz)'`) adds to it.

#[path = "fuzz/seeds.rs"]
mod seeds;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use xtask::process::{ask, cargo, target_dir, workspace_root};

/// As long as `cargo xtask test` can afford; see above for longer.
const SECONDS: u64 = 60;

/// Targets at a time: the machines that run the tests have two cores.
const AT_A_TIME: usize = 2;

/// The lowest of the scheduler's: what else runs goes first.
const LEAST_PRIORITY: i32 = 19;

/// A decoder that needs longer than this for one input hangs.
const INPUT_S_MAX: u64 = 5;

/// A decoder that needs more than this for an input of at most [`INPUT_BYTES_MAX`] allocates what a length field tells it to.
const MEMORY_MIB_MAX: u64 = 1024;

/// Long enough for several frames; larger inputs only slow the search down.
const INPUT_BYTES_MAX: u64 = 16 << 10;

/// Without the address sanitizer: none of this code is unsafe, and a stable compiler has no switch for it.
const BUILD: [&str; 6] = ["fuzz", "build", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none"];

#[test]
fn a_minute_of_hostile_bytes_breaks_no_decoder() -> Result<()> {
    if ask(cargo().args(["fuzz", "--version"])).is_none() {
        println!("SKIPPED, no cargo-fuzz: `cargo xtask setup` installs it");
        return Ok(());
    }
    // Another test may run beside it.
    rustix::process::nice(LEAST_PRIORITY)?;
    let seconds = std::env::var("GNOMON_FUZZ_S").map_or(Ok(SECONDS), |text| text.parse())?;
    let folder = target_dir().join("fuzz");
    let built = cargo().args(BUILD).env("CARGO_TARGET_DIR", &folder).status().context("cannot run cargo fuzz")?;
    ensure!(built.success(), "the fuzz targets do not build ({built})");
    let programs = programs(&folder)?;
    seeds::write_all(&folder.join("seeds")).context("cannot write the seeds")?;

    for targets in targets()?.chunks(AT_A_TIME) {
        let running: Vec<_> = targets
            .iter()
            .map(|target| Ok((target, start(&folder, &programs, target, seconds)?)))
            .collect::<Result<_>>()?;
        let ended: Vec<_> = running
            .into_iter()
            .map(|(target, child)| (target, thread::spawn(move || child.wait_with_output())))
            .collect();
        for (target, ended) in ended {
            let output = ended.join().expect("waiting does not panic").context("cannot wait")?;
            let log = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{target} broke; the input is in {}:\n{log}", folder.display());
            let executed = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            let executed: u64 = executed.context("no statistics")?.trim().parse()?;
            println!("{target}: {executed} inputs in {seconds} s");
            ensure!(executed > 1_000, "{target} hardly ran:\n{log}");
        }
    }
    Ok(())
}

/// One target for each file among the targets, so that none is forgotten here.
fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(workspace_root().join("tests/fuzz/targets"))? {
        let path = entry?.path();
        targets.push(path.file_stem().context("no name")?.to_string_lossy().into_owned());
    }
    targets.sort();
    ensure!(targets.len() >= 4, "where are the targets? {targets:?}");
    Ok(targets)
}

/// Where cargo-fuzz puts them: below the compiler's own target triple.
fn programs(folder: &Path) -> Result<PathBuf> {
    let version = ask(Command::new("rustc").arg("-vV")).context("cannot ask rustc for its version")?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(folder.join(triple).join("release"))
}

fn start(folder: &Path, programs: &Path, target: &str, seconds: u64) -> Result<Child> {
    let found = folder.join("found").join(target);
    let broken = folder.join("broken").join(target);
    let seeds = folder.join("seeds").join(target);
    // A target may have no seeds: the spool's makes its own records.
    for folder in [&found, &broken, &seeds] {
        fs::create_dir_all(folder)?;
    }
    Command::new(programs.join(target))
        .arg(&found)
        .arg(&seeds)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_S_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-artifact_prefix={}/", broken.display()))
        .arg("-print_final_stats=1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run the fuzz target {target}"))
}
