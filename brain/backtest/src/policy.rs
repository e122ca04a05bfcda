//! `gnomon backtest policy`: what every VM would have been given, step by step.

mod page;
mod peers;
mod rules;
mod score;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gnomon_core::sizing::{RESIZE_COST, Sizer, SizingPolicy, Slot, TrainingJob};
use rayon::prelude::*;
use serde::Serialize;

use crate::progress;
use crate::table::{Table, create};
use peers::PEERS;
use rules::Rules;
use score::{HEAD, Score};

/// The fleet's model is trained anew when there is so many times as much history as at the last training…
const TRAINING_GROWTH: f64 = 1.25;
/// …and at the latest after so many days.
const TRAINING_DAYS_MAX: usize = 2;
/// Any seed will do; a fixed one makes the same run twice.
const SEED: u64 = 1;
/// Promises that `--curve` tries, beside the one asked for.
const CURVE: [f64; 4] = [0.001, 0.0025, 0.005, 0.01];
/// The name in tables.
const OWN: &str = "Gnomon";

/// Replays recorded demand through the sizing policy.
///
/// The input is a CSV file (plain or .gz): the first column numbers the rows, each further column is a VM's demand in percent of its
/// capacity. Rows follow each other at equal intervals; a blank cell was not measured. In each row the policy knows the rows before it and
/// nothing else. The output, `series_id,t,alloc`, tells what is in force from row t on, in percent of capacity, where that changes.
#[derive(Debug, Args)]
pub struct PolicyArguments {
    /// Recorded demand
    #[arg(long, value_name = "CSV")]
    pub demand: PathBuf,
    /// Rows to learn from before sizing begins
    #[arg(long, value_name = "ROWS")]
    pub warmup: usize,
    /// Rows from a decision until it is in force; 1 is the next row
    #[arg(long, default_value_t = 1)]
    pub lag: usize,
    /// Share of time in which a VM may have less than it wants
    #[arg(long, default_value_t = 0.005)]
    pub violation: f64,
    /// Rows in a day
    #[arg(long, default_value_t = 288)]
    pub day: usize,
    /// Where the allocations go (CSV, plain or .gz)
    #[arg(long, value_name = "CSV")]
    pub out: PathBuf,
    /// Show the whole trade-off: replay with other promises as well
    #[arg(long)]
    pub curve: bool,
    /// Write a report with pictures here
    #[arg(long, value_name = "HTML")]
    pub report: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(arguments: &PolicyArguments, json: bool) -> Result<()> {
    let table = Table::read(&arguments.demand)?;
    let rows = table.columns.first().map_or(0, Vec::len);
    ensure!(!table.names.is_empty(), "{}: no VM (column) in it", arguments.demand.display());
    ensure!(arguments.lag >= 1, "--lag counts from the decision to the row it is in force in: at least 1");
    ensure!(arguments.day >= 2, "--day must be at least 2 rows");
    ensure!(
        arguments.violation > 0.0 && arguments.violation < 0.5,
        "--violation is a share of time above 0 and below 0.5, as 0.005"
    );
    ensure!(
        arguments.warmup > arguments.lag && arguments.warmup < rows,
        "--warmup {} must be more than --lag and less than the {rows} rows of {}",
        arguments.warmup,
        arguments.demand.display()
    );
    let rules = Rules {
        warmup: arguments.warmup,
        lag: arguments.lag,
        day: arguments.day,
        quantum: 5.0,
        size_max: 120.0,
        saving_min: 0.1,
        dwell: 6,
    };
    let sizes = replay(&table, &rules, arguments.violation);
    write(&arguments.out, &table.names, &sizes).with_context(|| format!("writing {}", arguments.out.display()))?;
    let mut rates: Vec<f64> = if arguments.curve { CURVE.to_vec() } else { Vec::new() };
    rates.retain(|rate| *rate != arguments.violation);
    let score = |rate: f64, sizes: &[Vec<f32>]| Tried { promised: rate, score: Score::of(OWN, &table, sizes, &rules) };
    let mut curve: Vec<Tried> = rates.iter().map(|&rate| score(rate, &replay(&table, &rules, rate))).collect();
    curve.push(score(arguments.violation, &sizes));
    curve.sort_by(|a, b| a.promised.total_cmp(&b.promised));
    let of_peer = |peer: &peers::Peer| {
        let sizes: Vec<Vec<f32>> = table.columns.par_iter().map(|demand| peer.sizes(demand, &rules)).collect();
        Score::of(peer.name, &table, &sizes, &rules)
    };
    let days = (rows - rules.warmup) as f64 / rules.day as f64;
    let summary = Summary { vms: table.names.len(), days, curve, peers: PEERS.iter().map(of_peer).collect() };
    if let Some(path) = &arguments.report {
        let page = page::page(&table, &sizes, &rules, &summary);
        page.write(path).with_context(|| format!("writing {}", path.display()))?;
    }
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        summary.print(&rules);
    }
    Ok(())
}

/// What came of one promise.
#[derive(Debug, Serialize)]
struct Tried {
    promised: f64,
    score: Score,
}

/// Everything that is told about a replay.
#[derive(Debug, Serialize)]
struct Summary {
    vms: usize,
    days: f64,
    /// Gnomon's scores, by promise, rising.
    curve: Vec<Tried>,
    peers: Vec<Score>,
}

impl Summary {
    /// One row for each of Gnomon's promises, and one for each peer.
    fn rows(&self) -> Vec<Vec<String>> {
        let own = self.curve.iter().map(|Tried { promised, score }| {
            let mut cells = score.cells();
            cells[0] = format!("{OWN}, {} % promised", 100.0 * promised);
            cells
        });
        own.chain(self.peers.iter().map(Score::cells)).collect()
    }

    fn print(&self, rules: &Rules) {
        println!("{} VMs, {:.1} days, {} rows from decision to effect", self.vms, self.days, rules.lag);
        let width = self.rows().iter().map(|row| row[0].chars().count()).max().unwrap_or(0);
        let line = |row: &[String]| {
            let cells: Vec<String> = row[1..]
                .iter()
                .zip(&HEAD[1..])
                .map(|(cell, head)| format!("{cell:>width$}", width = head.len()))
                .collect();
            format!("{:width$}  {}", row[0], cells.join("  "))
        };
        println!("{}", line(&HEAD.map(str::to_owned)));
        self.rows().iter().for_each(|row| println!("{}", line(row)));
    }
}

/// What is in force in each row, for each VM; 0 before sizing begins.
fn replay(table: &Table, rules: &Rules, violation_rate: f64) -> Vec<Vec<f32>> {
    let policy = SizingPolicy {
        violation_rate,
        lag_steps: rules.lag,
        day_steps: rules.day,
        quantum: rules.quantum,
        saving_min: rules.saving_min,
        dwell_steps: rules.dwell,
        resize_cost: RESIZE_COST,
    };
    let vms = table.names.len();
    let rows = table.rows();
    let mut sizer = Sizer::new(policy, SEED);
    let slots: Vec<Slot> = (0..vms).map(|_| sizer.enter()).collect();
    let mut sizes = vec![vec![0.0f32; rows]; vms];
    // The first decision is in force when the warm-up ends.
    let first = rules.warmup - (rules.lag - 1);
    let bar = progress::bar(rows as u64, "rows");
    let mut due = first;
    for row in 0..rows {
        bar.inc(1);
        if row >= due {
            if let Some(lessons) = sizer.lessons() {
                let training = lessons.prepare();
                let quantiles = training.jobs().par_iter().map(TrainingJob::run).collect();
                sizer.take(training.finish(quantiles));
            }
            due = ((row as f64 * TRAINING_GROWTH).ceil() as usize).clamp(row + 1, row + TRAINING_DAYS_MAX * rules.day);
        }
        if row >= first {
            let effect = row + rules.lag - 1;
            for (vm, sizes) in sizes.iter_mut().enumerate() {
                if let Some(size) = sizer.decide(slots[vm], rules.size_max, None)
                    && effect < rows
                {
                    sizes[effect] = size as f32;
                }
            }
        }
        let demand: Vec<f32> = table.columns.iter().map(|column| column[row] as f32).collect();
        let measured = demand.iter().zip(&sizes).filter(|(demand, _)| demand.is_finite());
        let (short, measured) = measured.fold((0u32, 0u32), |(short, measured), (demand, sizes)| {
            (short + u32::from(*demand > sizes[row] + 1e-6), measured + 1)
        });
        let violated = (row >= rules.warmup && measured > 0).then(|| f64::from(short) / f64::from(measured));
        slots.iter().zip(&demand).for_each(|(&slot, &demand)| sizer.learn(slot, demand));
        violated.into_iter().for_each(|violated| sizer.keep(violated));
    }
    bar.finish_and_clear();
    sizes
}

fn write(path: &Path, names: &[String], sizes: &[Vec<f32>]) -> Result<()> {
    let mut csv = csv::Writer::from_writer(create(path)?);
    csv.write_record(["series_id", "t", "alloc"])?;
    for (name, sizes) in names.iter().zip(sizes) {
        let mut last = 0.0;
        for (row, &size) in sizes.iter().enumerate() {
            if size != last && size > 0.0 {
                csv.write_record([name.as_str(), &row.to_string(), &size.to_string()])?;
                last = size;
            }
        }
    }
    csv.into_inner().map_err(|error| error.into_error())?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VMs with a daily hump, noise and sudden bursts, made from their numbers.
    fn fleet(vms: usize, rows: usize) -> Table {
        let noise = |vm: usize, row: usize| ((vm * 7919 + row * 104_729) % 1009) as f64 / 1009.0;
        let column = |vm: usize| {
            (0..rows)
                .map(|row| {
                    let hump = if row % 24 > 8 + vm % 5 && row % 24 < 14 { 40.0 } else { 5.0 };
                    hump * (0.8 + 0.4 * noise(vm, row)) + if noise(vm + 1, row * 31) > 0.99 { 30.0 } else { 0.0 }
                })
                .collect()
        };
        Table { names: (0..vms).map(|vm| format!("vm{vm}")).collect(), columns: (0..vms).map(column).collect() }
    }

    fn rules(lag: usize) -> Rules {
        Rules { warmup: 24 * 7, lag, day: 24, quantum: 5.0, size_max: 120.0, saving_min: 0.1, dwell: 6 }
    }

    #[test]
    fn what_comes_later_never_changes_what_was_allocated_before() {
        let whole = fleet(12, 24 * 12);
        let cut = 24 * 10;
        let mut other = whole.clone();
        for column in &mut other.columns {
            column[cut..].iter_mut().for_each(|value| *value = 100.0 - *value);
        }
        for lag in [1, 3] {
            let (a, b) = (replay(&whole, &rules(lag), 0.02), replay(&other, &rules(lag), 0.02));
            for (a, b) in a.iter().zip(&b) {
                // The decision made in row `cut` knows the rows before it alone.
                assert_eq!(a[..cut + lag], b[..cut + lag]);
            }
            assert!(a.iter().zip(&b).any(|(a, b)| a[cut + lag..] != b[cut + lag..]), "the rest differs");
        }
    }

    #[test]
    fn the_promise_is_about_kept_and_costs_less_than_everyones_peak() {
        let table = fleet(20, 24 * 28);
        let rules = rules(1);
        let score = Score::of(OWN, &table, &replay(&table, &rules, 0.02), &rules);
        assert!((0.005..0.05).contains(&score.under_time), "{score:?}");
        let peak = |column: &Vec<f64>| column.iter().copied().fold(0.0, f64::max);
        let peaks: f64 = table.columns.iter().map(|column| peak(column) * column.len() as f64).sum();
        let slack_of_peaks = 1.0 - table.columns.iter().flatten().sum::<f64>() / peaks;
        assert!(score.slack < slack_of_peaks, "{score:?}, {slack_of_peaks} with static peaks");
    }
}
