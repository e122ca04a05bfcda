//! Seeds by the thousand: no world breaks a rule, and every guard that is taken away is missed in some world.

#[path = "common/worlds.rs"]
mod worlds;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use gnomon_core::plan::guard::Guard;
use gnomon_sim::Lapse;
use gnomon_sim::chaos::{Checked, check, check_agents};
use serde_json::json;

/// Lives through drawn worlds and checks every command in them.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many worlds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo adds to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let Arguments { seeds, json, bench: _ } = Arguments::parse();
    let begun = Instant::now();
    let lived = worlds::on_every_cpu(seeds, 1000, |seed| check(seed, None, None));
    let took_s = begun.elapsed().as_secs_f64();
    let sum = |count: fn(&Checked) -> usize| lived.iter().map(|(_, checked)| count(checked)).sum::<usize>();
    let (commands, moves, dropped) =
        (sum(|checked| checked.commands), sum(|checked| checked.moves), sum(|checked| checked.dropped));
    let mut broken: Vec<_> =
        lived.iter().filter_map(|(seed, checked)| checked.broken.as_ref().map(|broken| (seed, broken))).collect();
    broken.sort_by_key(|(seed, _)| **seed);
    println!(
        "{seeds} worlds of 20 minutes in {took_s:.0} s: {commands} commands, {moves} moves, {dropped} plans dropped by the linter"
    );
    for (seed, broken) in &broken {
        println!("seed {seed} breaks a rule: {broken}");
    }
    println!("rules broken: {}", broken.len());

    let mut missing = Vec::new();
    let mut caught = Vec::new();
    for guard in Guard::ALL {
        let lacks = Some(guard);
        match (0..seeds).find_map(|seed| check(seed, lacks, lacks).broken.map(|broken| (seed, broken.rule))) {
            Some((seed, rule)) => {
                println!("without {guard:?}: seed {seed} breaks \"{rule}\"");
                caught.push(json!({"guard": format!("{guard:?}"), "seed": seed, "rule": rule}));
            }
            None => missing.push(guard),
        }
    }
    println!("guards that nobody misses: {missing:?}");
    let mut unmissed = Vec::new();
    for lapse in Lapse::ALL {
        match (0..seeds).find_map(|seed| check_agents(seed, lapse).broken.map(|broken| (seed, broken.rule))) {
            Some((seed, rule)) => {
                println!("where agents neglect {lapse:?}: seed {seed} breaks \"{rule}\"");
                caught.push(json!({"lapse": format!("{lapse:?}"), "seed": seed, "rule": rule}));
            }
            None => unmissed.push(lapse),
        }
    }
    println!("rules of agents that nobody misses: {unmissed:?}");
    let all_is_well = broken.is_empty() && missing.is_empty() && unmissed.is_empty();
    if let Some(path) = json {
        let broken: Vec<_> =
            broken.iter().map(|(seed, broken)| json!({"seed": seed, "rule": broken.rule, "how": broken.how})).collect();
        let figures = json!({
            "worlds": seeds, "took_s": took_s, "commands": commands, "moves": moves, "dropped": dropped, "broken": broken,
            "caught": caught,
        });
        let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::to_writer_pretty(file, &figures).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    if all_is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
