//! `gnomon backtest policy`: what every VM would have been given, step by step.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gnomon_core::sizing::{Sizer, SizingPolicy};
use rayon::prelude::*;

use crate::progress;
use crate::table::{Table, create};

/// The fleet's model is trained anew after so many days: what a week teaches is worth more than what a day adds.
const TRAINING_DAYS: usize = 2;
/// Any seed will do; a fixed one makes the same run twice.
const SEED: u64 = 1;

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
    let sizes = replay(&table, arguments);
    write(&arguments.out, &table.names, &sizes).with_context(|| format!("writing {}", arguments.out.display()))?;
    let score = Score::of(&table, &sizes, arguments);
    if json {
        println!("{}", serde_json::to_string(&score)?);
    } else {
        println!(
            "{} VMs, {:.1} days after {} rows of warm-up, {} rows from decision to effect\n\
             under-provisioned {:.3} % of the time (promised {:.3} %), slack {:.1} %, {:.1} resizes a day and VM",
            score.vms,
            score.days,
            arguments.warmup,
            arguments.lag,
            100.0 * score.under_time,
            100.0 * arguments.violation,
            100.0 * score.slack,
            score.resizes_per_day
        );
    }
    Ok(())
}

/// What is in force in each row, for each VM; 0 before sizing begins.
fn replay(table: &Table, arguments: &PolicyArguments) -> Vec<Vec<f32>> {
    let policy = SizingPolicy {
        violation_rate: arguments.violation,
        lag_steps: arguments.lag,
        day_steps: arguments.day,
        quantum: 5.0,
        size_max: 120.0,
        saving_min: 0.1,
        dwell_steps: 6,
    };
    let vms = table.names.len();
    let rows = table.columns[0].len();
    let mut sizer = Sizer::new(policy, vms, SEED);
    let mut sizes = vec![vec![0.0f32; rows]; vms];
    // The first decision is in force when the warm-up ends.
    let first = arguments.warmup - (arguments.lag - 1);
    let bar = progress::bar(rows as u64, "rows");
    let mut trained = None;
    for row in 0..rows {
        bar.inc(1);
        if row >= first && trained.is_none_or(|last| row >= last + TRAINING_DAYS * arguments.day) {
            if let Some(training) = sizer.training() {
                let quantiles = training.jobs.par_iter().map(|job| job.run()).collect();
                sizer.trained(training, quantiles);
            }
            trained = Some(row);
        }
        if row >= first {
            let effect = row + arguments.lag - 1;
            for (vm, sizes) in sizes.iter_mut().enumerate() {
                if let Some(size) = sizer.decide(vm)
                    && effect < rows
                {
                    sizes[effect] = size as f32;
                }
            }
        }
        let demand: Vec<f32> = table.columns.iter().map(|column| column[row] as f32).collect();
        let violated = (row >= arguments.warmup).then(|| {
            let short = demand.iter().zip(&sizes).filter(|(demand, sizes)| **demand > sizes[row] + 1e-6).count();
            short as f64 / vms as f64
        });
        sizer.observe(&demand, violated);
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

/// How it went, over the rows after the warm-up.
#[derive(Debug, serde::Serialize)]
struct Score {
    vms: usize,
    days: f64,
    under_time: f64,
    slack: f64,
    resizes_per_day: f64,
}

impl Score {
    fn of(table: &Table, sizes: &[Vec<f32>], arguments: &PolicyArguments) -> Self {
        let (mut short, mut measured, mut unused, mut given, mut resizes) = (0u64, 0u64, 0.0, 0.0, 0u64);
        for (demand, sizes) in table.columns.iter().zip(sizes) {
            let (demand, sizes) = (&demand[arguments.warmup..], &sizes[arguments.warmup..]);
            resizes += sizes.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
            for (&demand, &size) in demand.iter().zip(sizes).filter(|(demand, _)| demand.is_finite()) {
                let size = f64::from(size);
                measured += 1;
                short += u64::from(demand > size + 1e-6);
                unused += (size - demand).max(0.0);
                given += size;
            }
        }
        let vms = table.names.len();
        let days = (table.columns[0].len() - arguments.warmup) as f64 / arguments.day as f64;
        Self {
            vms,
            days,
            under_time: short as f64 / measured.max(1) as f64,
            slack: unused / f64::max(given, f64::MIN_POSITIVE),
            resizes_per_day: resizes as f64 / vms as f64 / days,
        }
    }
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

    fn arguments(lag: usize) -> PolicyArguments {
        let path = PathBuf::new;
        PolicyArguments { demand: path(), warmup: 24 * 7, lag, violation: 0.02, day: 24, out: path() }
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
            let (a, b) = (replay(&whole, &arguments(lag)), replay(&other, &arguments(lag)));
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
        let arguments = arguments(1);
        let score = Score::of(&table, &replay(&table, &arguments), &arguments);
        assert!((0.005..0.05).contains(&score.under_time), "{score:?}");
        let peak = |column: &Vec<f64>| column.iter().copied().fold(0.0, f64::max);
        let peaks: f64 = table.columns.iter().map(|column| peak(column) * column.len() as f64).sum();
        let slack_of_peaks = 1.0 - table.columns.iter().flatten().sum::<f64>() / peaks;
        assert!(score.slack < slack_of_peaks, "{score:?}, {slack_of_peaks} with static peaks");
    }
}
