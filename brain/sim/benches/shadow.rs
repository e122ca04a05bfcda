//! Whether shadows help: drawn worlds with them, without, with what they tell shuffled, and with their capacity given to productions.

#[path = "common/worlds.rs"]
mod worlds;

use std::fs::File;
use std::path::PathBuf;

use clap::Parser;
use gnomon_sim::ablation::{Arm, Judged, live};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Lives through the same drawn worlds in four ways and compares them, world by world.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many worlds
    #[arg(long, default_value_t = 400)]
    seeds: u64,
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo adds to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// Samples that intervals are found with.
const RESAMPLES: usize = 2000;

/// What is read off a world that was lived through.
type Figure = fn(&Judged) -> Option<f64>;

/// What is compared.
const FIGURES: [(&str, Figure); 5] = [
    ("slowed, % of seconds", |judged| Some(judged.slowed * 100.0)),
    ("short, % of seconds", |judged| Some(judged.short * 100.0)),
    ("regret of a move, s/s", |judged| judged.regret),
    ("moves in a world", |judged| Some(judged.moves as f64)),
    ("forecast error, %", |judged| Some(judged.forecast_error * 100.0)),
];

/// Mean and 95 % interval by bootstrap (Efron 1979), resampling worlds.
fn interval(values: &[f64], rng: &mut ChaCha8Rng) -> [f64; 3] {
    let count = values.len().max(1);
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / count as f64;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| mean(&mut (0..values.len()).map(|_| values[rng.random_range(0..values.len())])))
        .collect();
    means.sort_by(f64::total_cmp);
    [mean(&mut values.iter().copied()), means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40]]
}

fn main() {
    let Arguments { seeds, json, bench: _ } = Arguments::parse();
    let lived: Vec<[Judged; Arm::ALL.len()]> =
        worlds::on_every_cpu(seeds, 50, |seed| Arm::ALL.map(|arm| live(seed, arm)))
            .into_iter()
            .map(|(_, judged)| judged)
            .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seeds);
    let mut rows = Vec::new();
    let shadows: f64 = lived.iter().map(|worlds| worlds[1].shadows).sum();
    println!(
        "{seeds} worlds of 40 minutes, {:.1} shadows in each; means, and differences world by world with 95 % intervals",
        shadows / seeds.max(1) as f64
    );
    for (title, figure) in FIGURES {
        println!("\n{title}");
        for (place, arm) in Arm::ALL.into_iter().enumerate() {
            // A world in which nothing moved in one of the ways tells nothing of moves.
            let pairs = lived.iter().filter_map(|worlds| Some((figure(&worlds[place])?, figure(&worlds[0])?)));
            let (values, differences): (Vec<f64>, Vec<f64>) =
                pairs.map(|(value, without)| (value, value - without)).unzip();
            let [mean, ..] = interval(&values, &mut rng);
            let [difference, low, high] = interval(&differences, &mut rng);
            match arm {
                Arm::Without => println!("  {:<36} {mean:>8.3}", arm.title()),
                _ => println!("  {:<36} {mean:>8.3}   {difference:>+8.3} ({low:+.3} .. {high:+.3})", arm.title()),
            }
            rows.push(json!({
                "figure": title, "arm": arm.title(), "mean": mean, "difference": difference, "low": low, "high": high,
                "worlds": values.len(),
            }));
        }
    }
    if let Some(path) = json {
        let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let figures = json!({ "worlds": seeds, "shadows": shadows, "rows": rows });
        serde_json::to_writer_pretty(file, &figures).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
