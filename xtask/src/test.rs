//! `cargo xtask test`: every check of the project, one after the other, with a table at the end.
//!
//! The steps share one set of compiled crates: the same package selection everywhere, so that cargo unifies features once,
//! and filters of nextest choose what runs. A failed step does not hide the next one, unless the next needs it.

mod tally;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::tally::Tally;
use crate::env::BIN_DIR;
use crate::process::{ask, cargo, forget_cargo_run, target_dir, workspace_root};
use crate::progress::seconds;
use crate::setup::{self, facts::Facts, items::Purpose, plan::chosen_toolchain};

/// Everything but benchmarks' peers.
const NEEDS: &[Purpose] = &[Purpose::Build, Purpose::Lab, Purpose::Test];
/// Without the end-to-end tests there is no lab.
const NEEDS_QUICK: &[Purpose] = &[Purpose::Build, Purpose::Test];
/// Little-endian eBPF: every architecture that KVM hosts of today have.
const BPF_TARGET: &str = "bpfel-unknown-none";
/// A fetch slower than a kilobyte a second for this long will not finish in time to be of use.
const ADVISORY_FETCH_PATIENCE_S: &str = "20";

/// Runs every check: setup, formatting, lints, dependencies, unit, property and end-to-end tests.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the end-to-end tests, which boot guests
    #[arg(long, conflicts_with = "full_lab")]
    quick: bool,
    /// Also migrate a guest between two emulated machines, which takes minutes more
    #[arg(long)]
    full_lab: bool,
}

/// Carries out `cargo xtask test`. Returns whether everything passed.
///
/// # Errors
/// When something that the checks need is missing and cannot be installed.
pub fn run(args: &Args) -> Result<bool> {
    setup::ensure(if args.quick { NEEDS_QUICK } else { NEEDS })?;

    let mut report = Report::default();
    report.step("format", || status(cargo().args(["fmt", "--all", "--check"])));
    report.step("lint", || status(cargo().args(["clippy", "--locked", "--all-targets", "--", "-D", "warnings"])));
    report.step("lint eBPF", lint_ebpf);
    report.step("dependencies", || {
        status(cargo().args(["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
    });
    report.step("advisories", advisories);
    let built = report.step("build", || status(cargo().args(["build", "--locked", "--bins", "--tests"])));
    if built {
        report.step("unit tests", || nextest("default", "not package(gnomon-e2e)", &[]));
        report.step("doc tests", doc_tests);
        if !args.quick {
            report.step("end-to-end tests", || nextest("e2e", "package(gnomon-e2e)", &[]));
        }
        if args.full_lab {
            report.step("full lab", || nextest("e2e", "package(gnomon-e2e)", &["--run-ignored", "only"]));
        }
    }
    println!("\n{}", report.table());
    Ok(report.passed())
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed(Tally),
    Failed(Tally, String),
    Skipped(String),
}

/// The steps so far.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<(&'static str, Outcome, Duration)>,
}

impl Report {
    /// Runs one step; returns whether it passed.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) -> bool {
        println!("\n==> {name}");
        let started = Instant::now();
        let outcome = work().unwrap_or_else(|error| Outcome::Failed(Tally::default(), format!("{error:#}")));
        let passed = matches!(outcome, Outcome::Passed(_));
        self.steps.push((name, outcome, started.elapsed()));
        passed
    }

    fn passed(&self) -> bool {
        !self.steps.iter().any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(..)))
    }

    /// One line per step, then the sum of all tests.
    fn table(&self) -> String {
        let mut lines = Vec::new();
        let mut total = Tally::default();
        for (name, outcome, elapsed) in &self.steps {
            let (mark, tally, remark) = match outcome {
                Outcome::Passed(tally) => ("ok", *tally, String::new()),
                Outcome::Failed(tally, why) => ("FAILED", *tally, why.clone()),
                Outcome::Skipped(why) => ("skipped", Tally::default(), why.clone()),
            };
            total += tally;
            let count = if tally == Tally::default() { String::new() } else { tally.to_string() };
            let remark = [count, remark].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
            lines.push(format!("{name:18} {mark:8} {:>12}  {remark}", seconds(*elapsed)).trim_end().to_owned());
        }
        lines.push(format!("\n{total}"));
        lines.join("\n")
    }
}

fn status(command: &mut Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(if status.success() {
        Outcome::Passed(Tally::default())
    } else {
        Outcome::Failed(Tally::default(), status.to_string())
    })
}

/// The eBPF programs have a compiler and a target of their own, so they are no default member of the workspace.
fn lint_ebpf() -> Result<Outcome> {
    let facts = Facts::of_this_machine();
    let (toolchain, _) = chosen_toolchain(&facts).context("the eBPF toolchain is gone since setup")?;
    let mut command = Command::new("rustup");
    forget_cargo_run(&mut command);
    command.current_dir(workspace_root()).stdin(Stdio::null());
    command.args(["run", toolchain, "cargo", "clippy", "--locked", "--package", "gnomon-agent-ebpf", "--release"]);
    command.args(["--target", BPF_TARGET, "-Z", "build-std=core", "--target-dir"]).arg(target_dir().join("lint-ebpf"));
    command.args(["--", "-D", "warnings"]);
    // As aya-build does: a stable compiler must accept -Z, and aya-ebpf asks for the traced machine's architecture.
    command.env("RUSTC_BOOTSTRAP", "1");
    command.env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    status(&mut command)
}

/// Advisories live in a database that is fetched; a machine that cannot reach it has the other checks still.
fn advisories() -> Result<Outcome> {
    let mut fetch = cargo();
    fetch.args(["deny", "--log-level", "off", "fetch", "db"]).env("GIT_TERMINAL_PROMPT", "0");
    fetch.env("GIT_HTTP_LOW_SPEED_LIMIT", "1000").env("GIT_HTTP_LOW_SPEED_TIME", ADVISORY_FETCH_PATIENCE_S);
    if ask(&mut fetch).is_none() {
        return Ok(Outcome::Skipped("the advisory database cannot be reached".to_owned()));
    }
    status(cargo().args(["deny", "check", "--hide-inclusion-graph", "advisories"]))
}

/// Runs the tests that `filter` selects. The report that nextest writes says how many there were: its own exit code is
/// success where every test passed, also those that found their machine unfit and said so.
fn nextest(profile: &str, filter: &str, options: &[&str]) -> Result<Outcome> {
    let junit = target_dir().join("nextest").join(profile).join("junit.xml");
    // A report of an earlier run must not be taken for this one's.
    if junit.exists() {
        std::fs::remove_file(&junit).with_context(|| format!("cannot remove {}", junit.display()))?;
    }
    let mut command = cargo();
    command.args(["nextest", "run", "--locked", "--profile", profile, "--filterset", filter]).args(options);
    command.env(BIN_DIR, target_dir().join("debug"));
    let status = command.status().context("cannot run cargo nextest")?;
    if !junit.exists() {
        bail!("nextest ran no test ({status})");
    }
    let text = std::fs::read_to_string(&junit).with_context(|| format!("cannot read {}", junit.display()))?;
    let tally = Tally::of_junit(&text).with_context(|| format!("cannot understand {}", junit.display()))?;
    Ok(if status.success() { Outcome::Passed(tally) } else { Outcome::Failed(tally, status.to_string()) })
}

fn doc_tests() -> Result<Outcome> {
    let mut child = cargo()
        .args(["test", "--locked", "--doc"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test --doc")?;
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().context("cargo's output is gone")?).lines() {
        let line = line?;
        println!("{line}");
        tally += Tally::of_libtest(&line).unwrap_or_default();
    }
    let status = child.wait()?;
    Ok(if status.success() { Outcome::Passed(tally) } else { Outcome::Failed(tally, status.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally { passed, failed, skipped, ..Tally::default() }
    }

    #[test]
    fn one_failed_step_fails_the_run_and_the_others_still_count() {
        let mut report = Report::default();
        assert!(report.step("one", || Ok(Outcome::Passed(tally(3, 0, 1)))));
        assert!(!report.step("two", || Ok(Outcome::Failed(tally(4, 1, 0), "exit status: 100".to_owned()))));
        assert!(!report.step("three", || bail!("nextest ran no test")));
        assert!(!report.passed());
        let table = report.table();
        assert!(table.ends_with("\n7 passed, 1 failed, 1 skipped"), "{table}");
        assert!(table.contains("nextest ran no test"), "{table}");
    }

    #[test]
    fn a_skipped_step_does_not_fail_the_run() {
        let mut report = Report::default();
        report.step("advisories", || Ok(Outcome::Skipped("unreachable".to_owned())));
        assert!(report.passed());
        assert!(report.table().contains("skipped"));
    }
}
