//! What the forecast must and must not see, over many drawn series.

use super::season::detect;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Roughly normal: the sum of twelve uniform draws.
fn noise(rng: &mut ChaCha8Rng, deviation: f64) -> f64 {
    ((0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0) * deviation
}

struct Day {
    period: f64,
    phase: f64,
    width: f64,
    base: f64,
    peak: f64,
    noise: f64,
}

fn day(rng: &mut ChaCha8Rng) -> Day {
    let period = rng.random_range(50.0..120.0);
    Day {
        period,
        phase: rng.random_range(0.0..period),
        width: rng.random_range(0.2..0.35),
        base: rng.random_range(0.05..0.2),
        peak: rng.random_range(0.7..1.0),
        noise: rng.random_range(0.02..0.05),
    }
}

fn days(rng: &mut ChaCha8Rng, day: &Day, count: f64) -> Vec<f64> {
    (0..(day.period * count) as usize)
        .map(|step| {
            let phase = (step as f64 + day.phase).rem_euclid(day.period) / day.period;
            let level = if phase < day.width { day.peak } else { day.base };
            (level + noise(rng, day.noise)).max(0.0)
        })
        .collect()
}

fn walk(rng: &mut ChaCha8Rng, steps: usize, every: usize, size: f64) -> Vec<f64> {
    let mut level: f64 = 0.5;
    (0..steps)
        .map(|step| {
            if step % every == 0 {
                level += rng.random_range(-size..size);
                level = if level > 0.9 {
                    1.8 - level
                } else if level < 0.1 {
                    0.2 - level
                } else {
                    level
                };
            }
            level + noise(rng, 0.02)
        })
        .collect()
}

#[test]
fn probe_rates() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for count in [2.3, 2.5, 2.75, 3.0, 4.0, 6.0] {
        let (mut found, mut worst, mut wrong) = (0, 0f64, 0);
        for _ in 0..300 {
            let day = day(&mut rng);
            let values = days(&mut rng, &day, count);
            if let Some(period) = detect(&values, 40, 150) {
                let error = (period - day.period).abs();
                if error > 2.0 {
                    wrong += 1
                } else {
                    found += 1;
                    worst = worst.max(error)
                }
            }
        }
        println!("days {count}: found {found}/300 wrong {wrong} worst {worst:.2}");
    }
    for (every, size) in [(1, 0.05), (5, 0.1), (5, 0.2), (2, 0.1), (10, 0.3)] {
        for steps in [120, 180, 250, 350, 600] {
            let hits = (0..300).filter(|_| detect(&walk(&mut rng, steps, every, size), 40, 150).is_some()).count();
            print!("walk {every}/{size} {steps}: {hits}/300; ");
        }
        println!();
    }
    for steps in [120, 180, 250, 350, 600] {
        let hits = (0..300)
            .filter(|_| {
                let values: Vec<f64> = (0..steps).map(|_| 0.2 + noise(&mut rng, 0.03)).collect();
                detect(&values, 40, 150).is_some()
            })
            .count();
        print!("white {steps}: {hits}/300; ");
    }
    println!();
}
