//! `cargo xtask setup`: what this source tree needs on a machine, and how it gets there.
//!
//! [`facts`] looks at the machine, [`plan`] decides (pure, from facts alone), [`run`] and [`ensure`] carry out. Everything
//! a plan does is a command line, so the same plan can be carried out, shown, or handed to whoever has the rights for it.
//! Nothing that is already there is touched, and nothing is ever removed.

pub mod facts;
pub mod items;
pub mod plan;
mod version;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use self::facts::Facts;
use self::items::Purpose;
use self::plan::{Plan, Step};
use crate::process::{forget_cargo_run, run_logged, target_dir};
use crate::progress::seconds;

/// Rounds of look, decide, install. Two are needed where a toolchain must be there before its LLVM is known; more mean that
/// an install succeeds without effect.
const ROUNDS_MAX: usize = 4;

/// Installs what is missing on this machine; does nothing, in under a second, where nothing is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tell what is there and what is missing; exit code 1 when something is
    #[arg(long)]
    check: bool,
    /// Only what is needed for this (repeatable); everything by default
    #[arg(long = "for", value_name = "PURPOSE")]
    purposes: Vec<Purpose>,
}

/// Carries out `cargo xtask setup`. Returns whether everything asked for is there now.
///
/// # Errors
/// When an install fails, or when something is missing that this user or machine cannot install.
pub fn run(args: &Args) -> Result<bool> {
    let purposes = if args.purposes.is_empty() { items::EVERY_PURPOSE } else { &args.purposes };
    if !args.check {
        ensure(purposes)?;
    }
    let facts = Facts::of_this_machine();
    let plan = plan::plan(&facts, purposes);
    println!("{}\n{}", plan.table(), facts.host_notes());
    if !plan.complete() {
        println!("\n{}", plan.instructions(facts.root));
    }
    Ok(plan.complete())
}

/// Makes sure that everything for `purposes` is there, and says in one line when it is.
///
/// # Errors
/// When an install fails, or when something is missing that this user or machine cannot install: then the error lists the
/// commands to run and what works without them.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    let started = Instant::now();
    let mut facts = Facts::of_this_machine();
    let mut tried = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let mut plan = plan::plan(&facts, purposes);
        if plan.complete() {
            eprintln!("setup: all {} items are there ({})", plan.findings.len(), seconds(started.elapsed()));
            return Ok(());
        }
        if plan.steps.is_empty() || (!facts.root && plan.steps.iter().any(|step| step.root)) {
            bail!("{}\n{}", plan.defects(), plan.instructions(facts.root));
        }
        plan.steps.retain(|step| tried.insert(step.argv.clone()));
        if plan.steps.is_empty() {
            break;
        }
        carry_out(&plan)?;
        facts = Facts::of_this_machine();
    }
    bail!("what was installed is not what was missing; this remains:\n{}", plan::plan(&facts, purposes).table())
}

fn carry_out(plan: &Plan) -> Result<()> {
    for finding in plan.missing() {
        eprintln!("setup: {} is missing: {}", finding.item, finding.why);
    }
    for step in &plan.steps {
        let log = target_dir().join("setup").join(format!("{}.log", step.log_name()));
        run_logged(command(step), &step.title(), step.typical_s, &log)?;
    }
    Ok(())
}

/// A step as a process. Not [`crate::process::cargo`]: what is installed here belongs to the user, not to this workspace.
fn command(step: &Step) -> Command {
    let mut command = Command::new(&step.argv[0]);
    forget_cargo_run(&mut command);
    command.args(&step.argv[1..]).envs(step.env.iter().map(|(key, value)| (*key, value)));
    // `cargo install` in a target directory of its own: this workspace's is locked by the cargo that runs this program.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}
