//! What the archive costs: bits for each value and the codec's error by resolution, memory, and time for each sample, block and read.
//!
//! `cargo bench -p gnomon-core --bench archive`. With `GNOMON_TRACES` naming a directory, every wide `*.csv.gz` in it and below (first column
//! the time, one column for each series, five minutes to a row) is measured as well.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use gnomon_common::time::Timestamp;
use gnomon_core::archive::{Archive, BlockKey, Change, Kpi, Measurement, Residence, SealedBlock, Tier};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Columns measured of each file of traces.
const COLUMNS_MAX: usize = 25;

/// One series: mean and maximum of each window, `None` for a gap.
struct Series {
    window_s: u64,
    windows: Vec<Option<(f64, f64)>>,
}

impl Series {
    fn measurements(&self) -> impl Iterator<Item = Measurement> + '_ {
        self.windows.iter().enumerate().filter_map(|(index, window)| {
            window.map(|(mean, max)| Measurement {
                start: Timestamp::from_unix_ms(index as u64 * self.window_s * 1000),
                length: Duration::from_secs(self.window_s),
                covered: 1.0,
                mean,
                max,
            })
        })
    }
}

/// Cores of a VM that serves by day, with lasting noise and bursts.
fn diurnal(seed: u64, window_s: u64, days: u64) -> Series {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut noise = 0.0;
    let window = |index: u64| {
        noise = 0.9 * noise + 0.05 * (random.random::<f64>() - 0.5);
        let day = (index * window_s) as f64 / 86_400.0 * std::f64::consts::TAU;
        let burst = if random.random::<f64>() < 0.01 { random.random::<f64>() * 2.0 } else { 0.0 };
        let mean = (0.8 - 0.6 * day.cos() + noise + burst).max(0.01);
        Some((mean, mean * (1.0 + 0.5 * random.random::<f64>())))
    };
    Series { window_s, windows: (0..days * 86_400 / window_s).map(window).collect() }
}

/// Bytes of a VM that does little: long calm, rare transfers of any size.
fn bursts(seed: u64, window_s: u64, days: u64) -> Series {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let window = |_| {
        let transfer = if random.random::<f64>() < 0.03 { 10f64.powf(random.random::<f64>() * 6.0 + 2.0) } else { 0.0 };
        Some((transfer, transfer * 1.7))
    };
    Series { window_s, windows: (0..days * 86_400 / window_s).map(window).collect() }
}

#[derive(Default)]
struct Cost {
    bytes: usize,
    values: usize,
    error_max: f64,
}

/// Sealed sizes by tier, the worst relative error, and the memory with every block there.
fn measure(series: &Series) -> ([Cost; 3], usize) {
    let mut archive = Archive::default();
    archive.set_residence(Kpi::Cpu, Residence::Memory);
    let mut store: BTreeMap<BlockKey, Box<[u8]>> = BTreeMap::new();
    let mut memory_bytes = 0;
    for (count, measurement) in series.measurements().enumerate() {
        archive.add(Kpi::Cpu, &measurement);
        if count % 100 == 0 {
            memory_bytes = memory_bytes.max(archive.memory_bytes());
        }
    }
    for change in archive.changes() {
        if let Change::Persist(block) = change {
            store.insert(block.key, block.bytes);
        }
    }
    let mut costs: [Cost; 3] = Default::default();
    for (key, bytes) in store {
        let cost = &mut costs[key.tier as usize];
        let mut alone = Archive::default();
        let block_bytes = bytes.len();
        if alone.restore(SealedBlock { key, bytes }).is_err() {
            continue;
        }
        let (start, end) = (Timestamp::default(), Timestamp::from_unix_ms(u64::MAX / 4));
        let Ok(steps) = alone.read(Kpi::Cpu, start, end, key.tier.step()) else { continue };
        cost.bytes += block_bytes;
        cost.values += 2 * steps.steps.iter().flatten().count();
        // Where a window is a step, what went in is known exactly.
        if series.window_s * 1000 == key.tier.step_ms() {
            let first = (steps.start.unix_ms() / key.tier.step_ms()) as usize;
            for (step, window) in steps.steps.iter().zip(&series.windows[first..]) {
                if let (Some(step), Some((mean, max))) = (step, window) {
                    for (kept, value) in [(step.mean, *mean), (step.max, *max)] {
                        cost.error_max = cost.error_max.max((kept - value).abs() / value.abs().max(1e-30));
                    }
                }
            }
        }
    }
    (costs, memory_bytes)
}

fn table(name: &str, all: &[Series]) {
    let mut sums: [Cost; 3] = Default::default();
    let mut memory_bytes_max = 0;
    for series in all {
        let (costs, memory_bytes) = measure(series);
        memory_bytes_max = memory_bytes_max.max(memory_bytes);
        for (sum, cost) in sums.iter_mut().zip(costs) {
            sum.bytes += cost.bytes;
            sum.values += cost.values;
            sum.error_max = sum.error_max.max(cost.error_max);
        }
    }
    for (tier, cost) in Tier::ALL
        .into_iter()
        .zip(&sums)
        .filter(|(tier, cost)| cost.values > 0 && tier.step_ms() >= all[0].window_s * 1000)
    {
        let bits = cost.bytes as f64 * 8.0 / cost.values as f64;
        let error = if cost.error_max > 0.0 { format!("{:.4} %", cost.error_max * 100.0) } else { "-".to_owned() };
        println!(
            "{name:<44} {:>4} {tier:<10} {bits:>6.2} {error:>10} {:>8.1}",
            all.len(),
            memory_bytes_max as f64 / 1024.0,
            tier = format!("{tier:?}")
        );
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a bench reads traces; core itself touches no file"
)]
fn traces(path: &Path) -> Option<Vec<Series>> {
    let file = std::fs::File::open(path).ok()?;
    let mut reader = csv::Reader::from_reader(flate2::read::MultiGzDecoder::new(file));
    let mut columns: Vec<Vec<Option<f64>>> =
        vec![Vec::new(); COLUMNS_MAX.min(reader.headers().ok()?.len().saturating_sub(1))];
    for record in reader.records() {
        let record = record.ok()?;
        for (column, cell) in columns.iter_mut().zip(record.iter().skip(1)) {
            column.push(cell.trim().parse().ok());
        }
    }
    // Two rows make a window, so that there is a maximum that differs from the mean.
    let pair = |rows: &[Option<f64>]| match rows {
        [Some(a), Some(b)] => Some((f64::midpoint(*a, *b), a.max(*b))),
        _ => None,
    };
    let series = |column: Vec<Option<f64>>| Series { window_s: 300, windows: column.chunks(2).map(pair).collect() };
    let series: Vec<Series> =
        columns.into_iter().map(series).filter(|series| series.windows.iter().flatten().count() > 288).collect();
    (!series.is_empty()).then_some(series)
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = directory.read_dir() else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path.to_string_lossy().ends_with(".csv.gz") {
            found.push(path);
        }
    }
}

fn report() {
    println!("{:<44} {:>4} {:<10} {:>6} {:>10} {:>8}", "series", "n", "tier", "bits", "error", "KiB max");
    let several = |make: fn(u64, u64, u64) -> Series, window_s, days| {
        (0..5).map(|seed| make(seed, window_s, days)).collect::<Vec<_>>()
    };
    table("generated: diurnal, 10 s windows", &several(diurnal, 10, 2));
    table("generated: diurnal, 5 min windows", &several(diurnal, 300, 400));
    table("generated: bursts, 5 min windows", &several(bursts, 300, 400));
    let Some(directory) = std::env::var_os("GNOMON_TRACES") else {
        println!("no traces measured: set GNOMON_TRACES to a directory of wide *.csv.gz");
        return;
    };
    let mut found = Vec::new();
    files(Path::new(&directory), &mut found);
    found.sort();
    for path in found {
        let name = path.strip_prefix(&directory).unwrap_or(&path).to_string_lossy().into_owned();
        match traces(&path) {
            Some(all) => table(&name, &all),
            None => println!("{name:<44} left out: not a wide table of numbers"),
        }
    }
}

fn time(criterion: &mut Criterion) {
    let series = diurnal(1, 10, 1);
    let measurements: Vec<_> = series.measurements().collect();
    let mut group = criterion.benchmark_group("archive");
    group.throughput(Throughput::Elements(measurements.len() as u64)).sample_size(20);
    group.bench_function("add (a day of 10 s windows, sealing included)", |bencher| {
        bencher.iter_batched_ref(
            Archive::default,
            |archive| {
                for measurement in &measurements {
                    black_box(archive.add(Kpi::Cpu, measurement));
                }
            },
            BatchSize::LargeInput,
        );
    });
    let mut month = Archive::default();
    for measurement in diurnal(1, 300, 35).measurements() {
        month.add(Kpi::Cpu, &measurement);
    }
    let end = Timestamp::from_unix_ms(35 * 86_400_000);
    group.throughput(Throughput::Elements(7 * 288));
    group.bench_function("read (7 days of 5 min)", |bencher| {
        bencher.iter(|| black_box(month.read(Kpi::Cpu, end - Duration::from_hours(168), end, Duration::from_mins(5))));
    });
    let blocks: Vec<SealedBlock> = month
        .changes()
        .into_iter()
        .filter_map(|change| if let Change::Persist(block) = change { Some(block) } else { None })
        .collect();
    group.throughput(Throughput::Elements(blocks.len() as u64));
    group.bench_function("restore (blocks of 35 days)", |bencher| {
        bencher.iter_batched(
            || blocks.clone(),
            |blocks| {
                let mut archive = Archive::default();
                let restored = blocks.into_iter().filter_map(|block| archive.restore(block).ok()).count();
                (archive, restored)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, time);

fn main() {
    report();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
