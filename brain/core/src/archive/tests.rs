//! The archive against a plain model of it, against the store, and against garbage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn measurement(start_s: u64, length_s: u64, mean: f64) -> Measurement {
    Measurement {
        start: Timestamp::from_unix_ms(start_s * 1000),
        length: Duration::from_secs(length_s),
        covered: 1.0,
        mean,
        max: mean * 2.0,
    }
}

fn at(s: u64) -> Timestamp {
    Timestamp::from_unix_ms(s * 1000)
}

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY_S: u64 = 86_400;

fn means(archive: &Archive, kpi: Kpi, from_s: u64, to_s: u64, resolution: Duration) -> Vec<Option<f64>> {
    let steps = archive.read(kpi, at(from_s), at(to_s), resolution).unwrap();
    steps.steps.iter().map(|step| step.map(|step| step.mean)).collect()
}

/// The owner's store.
#[derive(Default)]
struct Store(BTreeMap<BlockKey, Box<[u8]>>);

impl Store {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Persist(block) => drop(self.0.insert(block.key, block.bytes)),
                Change::Forget(key) => drop(self.0.remove(&key)),
            }
        }
    }

    fn block(&self, key: BlockKey) -> SealedBlock {
        SealedBlock { key, bytes: self.0[&key].clone() }
    }

    /// What a restart makes of it.
    fn archive(&self) -> Archive {
        let mut archive = Archive::default();
        for &key in self.0.keys().rev() {
            archive.restore(self.block(key)).unwrap();
        }
        archive
    }
}

/// A day's wave with noise, by a linear congruence.
fn wave(step: u64) -> f64 {
    let noise = (step.wrapping_mul(6_364_136_223_846_793_005) >> 40) as f64 / (1u64 << 24) as f64;
    1.0 + (step as f64 / 8640.0 * std::f64::consts::TAU).sin() + noise * 0.3
}

#[test]
fn each_resolution_gives_means_and_maxima_of_the_same_measurements() {
    let mut archive = Archive::default();
    for s in (0..7200).step_by(10) {
        archive.add(Kpi::Cpu, &measurement(s, 10, if s < 3600 { 1.0 } else { 2.0 }));
    }
    for resolution in [10, 60, 300, 600, 3600, 7200] {
        let steps = archive.read(Kpi::Cpu, at(0), at(7200), Duration::from_secs(resolution)).unwrap();
        assert_eq!((steps.start, steps.steps.len() as u64), (at(0), 7200 / resolution));
        assert_eq!(steps.steps.last().copied().flatten().unwrap().max, 4.0);
        let expected = if resolution == 7200 { 1.5 } else { 1.0 };
        assert_eq!(steps.steps[0].unwrap().mean, expected, "{resolution}");
    }
    let refused = archive.read(Kpi::Cpu, at(0), at(7200), Duration::from_secs(15));
    assert_eq!(refused, Err(ReadError::Resolution { resolution: Duration::from_secs(15) }));
    assert!(archive.read(Kpi::Memory, at(0), at(7200), MINUTE).unwrap().steps.is_empty());
}

#[test]
fn a_gap_is_a_gap_at_every_resolution_and_not_zero() {
    let mut archive = Archive::default();
    for s in (0..600).chain(4200..9000).step_by(10) {
        archive.add(Kpi::Memory, &measurement(s, 10, 1.0));
    }
    assert_eq!(
        means(&archive, Kpi::Memory, 0, 7200, HOUR),
        [None, Some(1.0)],
        "a sixth of the first hour is too little"
    );
    let minutes = means(&archive, Kpi::Memory, 0, 9000, MINUTE);
    let gap = minutes.iter().map(Option::is_none).collect::<Vec<_>>();
    assert_eq!(gap, (0..150).map(|minute| (10..70).contains(&minute)).collect::<Vec<_>>());
    archive.add(Kpi::Memory, &Measurement { covered: 0.0, ..measurement(9000, 10, 1.0) });
    archive.add(Kpi::Memory, &Measurement { mean: f64::NAN, ..measurement(9010, 10, 1.0) });
    archive.add(Kpi::Memory, &measurement(9020, 10, 1.0));
    assert_eq!(means(&archive, Kpi::Memory, 9000, 9030, Duration::from_secs(10)), [None, None, Some(1.0)]);
}

#[test]
fn sealed_blocks_read_as_they_were_within_the_bound_of_error() {
    let mut archive = Archive::default();
    let steps = 5 * 360;
    for step in 0..steps {
        archive.add(Kpi::Cpu, &measurement(step * 10, 10, wave(step)));
    }
    let read = archive.read(Kpi::Cpu, at(0), at(steps * 10), Duration::from_secs(10)).unwrap();
    assert_eq!(read.steps.len() as u64, steps);
    for (step, read) in read.steps.iter().enumerate() {
        let (read, mean) = (read.unwrap(), wave(step as u64));
        assert!((read.mean / mean - 1.0).abs() <= RELATIVE_ERROR_MAX * 1.001, "{step}");
        assert!((read.max / mean / 2.0 - 1.0).abs() <= RELATIVE_ERROR_MAX * 1.001, "{step}");
    }
}

#[test]
fn each_resolution_is_kept_for_its_time() {
    let mut archive = Archive::default();
    for window in 0..410 * 24 {
        archive.add(Kpi::Cpu, &measurement(window * 3600, 3600, 1.0));
    }
    let end = 410 * DAY_S;
    for (resolution, kept) in [(10, 6 * 3600), (300, 35 * DAY_S), (3600, 400 * DAY_S)] {
        let steps = archive.read(Kpi::Cpu, at(0), at(end), Duration::from_secs(resolution)).unwrap();
        assert_eq!(steps.start, at(end - kept), "{resolution}");
        assert!(steps.steps.iter().all(Option::is_some), "{resolution}");
    }
}

#[test]
fn the_backlog_of_an_outage_fills_its_gap_in_open_and_sealed_blocks() {
    let (mut archive, mut store) = (Archive::default(), Store::default());
    // Away from the first hour to the fifth; the backlog comes beside what is live.
    let live = |s| measurement(s, 10, 1.0);
    (0..3605).step_by(10).for_each(|s| {
        archive.add(Kpi::DiskReads, &live(s));
    });
    let mut backlog = (3610..18_000).step_by(10);
    for s in (18_000..23_000).step_by(10) {
        assert_eq!(archive.add(Kpi::DiskReads, &live(s)), Accepted::InOrder);
        for late in backlog.by_ref().take(3) {
            assert_eq!(archive.fill(Kpi::DiskReads, &measurement(late, 10, 3.0)), Accepted::Filled, "{late}");
        }
        if s % 1000 == 0 {
            store.apply(archive.changes());
        }
    }
    assert!(backlog.next().is_none());
    for key in archive.away(Kpi::DiskReads, at(0), at(21_600), Duration::from_secs(10)) {
        archive.restore(store.block(key)).unwrap();
    }
    let seconds = means(&archive, Kpi::DiskReads, 3600, 21_600, Duration::from_secs(10));
    assert_eq!(seconds[0], Some(1.0));
    assert!(seconds[1..1440].iter().all(|&mean| mean == Some(3.0)));
    assert!(seconds[1440..].iter().all(|&mean| mean == Some(1.0)));
    assert_eq!(means(&archive, Kpi::DiskReads, 0, 21_600, HOUR)[2..], [Some(3.0), Some(3.0), Some(3.0), Some(1.0)]);
    assert_eq!(archive.fill(Kpi::DiskReads, &measurement(7200, 10, 9.0)), Accepted::Behind, "it is known");
    assert_eq!(archive.fill(Kpi::DiskReads, &measurement(23_000, 10, 1.0)), Accepted::InOrder);
}

#[test]
fn a_clock_that_is_set_back_starts_anew_from_there() {
    for back_s in [60, 5000, 20_000] {
        let (mut archive, mut store) = (Archive::default(), Store::default());
        for step in 0..8000 {
            archive.add(Kpi::Cpu, &measurement(step * 10, 10, 1.0));
        }
        store.apply(archive.changes());
        let from = 80_000 - back_s;
        let outcomes: Vec<_> = (0..6).map(|i| archive.add(Kpi::Cpu, &measurement(from + i * 10, 10, 2.0))).collect();
        assert_eq!(outcomes[..4], [Accepted::Behind; 4]);
        assert_eq!(outcomes[4..], [Accepted::ClockSetBack, Accepted::InOrder]);
        let seconds = means(&archive, Kpi::Cpu, from - 200, 90_000, Duration::from_secs(10));
        assert_eq!(seconds.len(), 26);
        // The four that were thought to be out of order are lost, what was before is not.
        assert!(seconds[..20].iter().all(|&mean| mean == Some(1.0)), "{seconds:?}");
        assert_eq!(seconds[24..], [Some(2.0); 2]);
        // The store does not bring back the future.
        store.apply(archive.changes());
        let restored = store.archive();
        assert_eq!(means(&restored, Kpi::Cpu, from - 200, 90_000, Duration::from_secs(10)), seconds);
    }
}

#[test]
fn a_clock_set_back_into_a_block_that_is_in_the_store_alone_loses_that_block_and_no_more() {
    let (mut archive, mut store) = (Archive::default(), Store::default());
    for step in 0..8000 {
        archive.add(Kpi::Memory, &measurement(step * 10, 10, 1.0));
        if step % 500 == 0 {
            store.apply(archive.changes());
        }
    }
    let block_s = Tier::Seconds10.block_steps(Kpi::Memory) * 10;
    let begin_s = (70_000 / block_s) * block_s;
    assert!(!archive.away(Kpi::Memory, at(begin_s), at(begin_s + 10), Duration::from_secs(10)).is_empty());
    for i in 0..6 {
        archive.add(Kpi::Memory, &measurement(begin_s + 600 + i * 10, 10, 2.0));
    }
    store.apply(archive.changes());
    let seconds = means(&store.archive(), Kpi::Memory, begin_s - block_s, 90_000, Duration::from_secs(10));
    let (before, block) = seconds.split_at(block_s as usize / 10);
    assert!(before.iter().all(|&mean| mean == Some(1.0)), "{before:?}");
    assert!(block[..60].iter().all(Option::is_none), "{block:?}");
    assert_eq!(block.last(), Some(&Some(2.0)));
}

#[test]
fn a_leap_of_years_costs_no_more_than_the_ring() {
    let mut archive = Archive::default();
    archive.add(Kpi::Cpu, &measurement(0, 10, 1.0));
    archive.add(Kpi::Cpu, &measurement(1 << 50, 10, 1.0));
    archive
        .add(Kpi::Cpu, &Measurement { length: Duration::from_secs(1 << 52), ..measurement((1 << 50) + 10, 10, 1.0) });
    assert!(archive.memory_bytes() < KPI_BYTES_MAX);
    archive.fill(Kpi::Cpu, &Measurement { length: Duration::from_secs(1 << 51), ..measurement(0, 10, 1.0) });
    archive.add(Kpi::Cpu, &measurement(u64::MAX / 2000, 10, 1.0));
    assert!(archive.memory_bytes() < KPI_BYTES_MAX);
}

#[test]
fn a_restart_loses_nothing_that_was_handed_out() {
    let (mut archive, mut store) = (Archive::default(), Store::default());
    for step in 0..9000 {
        if (2000..2300).contains(&step) {
            continue;
        }
        for kpi in [Kpi::Cpu, Kpi::Memory] {
            archive.add(kpi, &measurement(step * 10, 10, wave(step)));
        }
        if step % 700 == 0 {
            store.apply(archive.changes());
        }
    }
    store.apply(archive.changes());
    let mut restored = store.archive();
    for kpi in [Kpi::Cpu, Kpi::Memory] {
        for resolution in [10, 300, 3600] {
            let resolution = Duration::from_secs(resolution);
            let before = restored.read(kpi, at(0), at(90_000), resolution).unwrap();
            for key in archive.away(kpi, at(0), at(90_000), resolution) {
                archive.restore(store.block(key)).unwrap();
            }
            assert_eq!(before, archive.read(kpi, at(0), at(90_000), resolution).unwrap(), "{kpi:?} {resolution:?}");
            archive.release(kpi);
        }
    }
    // It goes on where it was.
    assert_eq!(restored.add(Kpi::Cpu, &measurement(90_000, 10, 1.0)), Accepted::InOrder);
    assert_eq!(means(&restored, Kpi::Cpu, 89_990, 90_010, Duration::from_secs(10)).len(), 2);
    let block = store.block(*store.0.keys().next().unwrap());
    assert_eq!(restored.restore(block), Err(BlockError::Outdated));
}

#[test]
fn the_store_forgets_what_is_too_old() {
    let (mut archive, mut store) = (Archive::default(), Store::default());
    for day in 0..430 {
        for hour in 0..24 {
            archive.add(Kpi::Cpu, &measurement(day * DAY_S + hour * 3600, 3600, wave(day * 24 + hour)));
        }
        if day % 5 == 4 {
            store.apply(archive.changes());
        }
    }
    for tier in Tier::ALL {
        let blocks = store.0.keys().filter(|key| key.tier == tier).count() as u64;
        let kept = tier.steps_kept().div_ceil(tier.block_steps(Kpi::Cpu)) + 1;
        assert!((kept - 1..=kept).contains(&blocks), "{tier:?}: {blocks} for {kept}");
    }
    // What a store forgets by age alone is never wanted any more; a block earlier, some might be.
    let now = at(430 * DAY_S);
    for tier in Tier::ALL {
        let oldest = store.0.keys().filter(|key| key.tier == tier).map(|key| now.since(key.end())).max().unwrap();
        let block = tier.step() * tier.block_steps(Kpi::Cpu) as u32;
        assert!((tier.kept_max() - 2 * block..tier.kept_max()).contains(&oldest), "{tier:?}: {oldest:?}");
    }
}

#[test]
fn memory_is_within_its_bound_even_for_what_no_codec_compresses() {
    let mut archive = Archive::default();
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f64::from(f32::from_bits((state >> 33) as u32 % 0x7F00_0000))
    };
    for window in 0..60 * 288 {
        let (mean, max) = (noise(), noise());
        archive.add(Kpi::Cpu, &Measurement { max, ..measurement(window * 300, 300, mean) });
    }
    let bytes = archive.memory_bytes();
    assert!((KPI_BYTES_MAX / 2..KPI_BYTES_MAX).contains(&bytes), "{bytes}");
}

fn block() -> SealedBlock {
    let mut archive = Archive::default();
    (0..400).filter(|step| step % 50 != 7).for_each(|step| {
        archive.add(Kpi::Cpu, &measurement(step * 10, 10, wave(step)));
    });
    let Some(Change::Persist(block)) = archive.changes().into_iter().next() else { panic!("nothing to persist") };
    assert_eq!(block.key, BlockKey { kpi: Kpi::Cpu, tier: Tier::Seconds10, number: 0 });
    block
}

#[test]
fn blocks_of_another_version_or_place_are_refused_by_name() {
    let block = block();
    let refusal = |change: &dyn Fn(&mut SealedBlock)| {
        let mut changed = block.clone();
        change(&mut changed);
        Archive::default().restore(changed).unwrap_err()
    };
    assert_eq!(refusal(&|block| block.bytes[0] = 2), BlockError::Version { version: 2 });
    assert_eq!(refusal(&|block| block.key.kpi = Kpi::Memory), BlockError::Key);
    assert_eq!(refusal(&|block| block.key.number = 1), BlockError::Key);
    assert_eq!(refusal(&|block| block.bytes[40] ^= 1), BlockError::Checksum);
    assert_eq!(refusal(&|block| block.bytes = Box::default()), BlockError::Length { bytes: 0 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_damaged_block_is_refused_even_with_a_checksum_that_fits(
        flips in proptest::collection::vec((0usize..2000, 1u8..), 1..8), length in 0usize..2000, cut in any::<bool>(),
    ) {
        let intact = block();
        let mut body = intact.bytes[..intact.bytes.len() - 4].to_vec();
        if cut {
            body.truncate(length);
        }
        for (place, flip) in flips {
            let count = body.len().max(1);
            if let Some(byte) = body.get_mut(place % count) { *byte ^= flip };
        }
        let unchecked = SealedBlock { key: intact.key, bytes: [&body[..], &intact.bytes[intact.bytes.len() - 4..]].concat().into() };
        prop_assume!(unchecked.bytes != intact.bytes);
        prop_assert!(Archive::default().restore(unchecked).is_err());
        body.extend(crc32fast::hash(&body).to_le_bytes());
        // Whatever it holds, values are values and nothing panics.
        let mut archive = Archive::default();
        if archive.restore(SealedBlock { key: intact.key, bytes: body.into() }).is_ok() {
            let steps = archive.read(Kpi::Cpu, at(0), at(DAY_S), Duration::from_secs(10)).unwrap();
            prop_assert!(steps.steps.iter().flatten().all(|step| step.mean.is_finite() && step.max >= step.mean));
        }
    }

    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), number in any::<u64>()) {
        let key = BlockKey { kpi: Kpi::Cpu, tier: Tier::Hour1, number };
        let garbage = SealedBlock { key, bytes: bytes.into() };
        prop_assert!(Archive::default().restore(garbage).is_err());
    }

    #[test]
    fn whatever_comes_the_archive_is_bounded_and_restores_to_the_same(
        inputs in proptest::collection::vec(
            (0u64..200_000, 1u64..9000, prop_oneof![0.0..4.0f64, Just(0.0), Just(f64::MAX), Just(f64::NAN), Just(-1.0)], 0u8..8), 0..120),
    ) {
        let (mut archive, mut store) = (Archive::default(), Store::default());
        let mut clock = 0;
        for (jump, length, mean, kind) in inputs {
            // Mostly in order, at times late, at times after a gap.
            let start = match kind { 0 => jump, 1 => clock + jump, _ => clock };
            let measurement = measurement(start, length, mean);
            if kind == 0 { archive.fill(Kpi::Cpu, &measurement) } else { archive.add(Kpi::Cpu, &measurement) };
            if kind != 0 { clock = start + length; }
            if kind == 7 { store.apply(archive.changes()); }
        }
        prop_assert!(archive.memory_bytes() < KPI_BYTES_MAX);
        store.apply(archive.changes());
        let restored = store.archive();
        for resolution in [10, 300, 3600] {
            let read = |archive: &Archive| archive.read(Kpi::Cpu, at(0), at(100_000_000), Duration::from_secs(resolution)).unwrap();
            let known = |steps: Steps| -> Vec<_> {
                (steps.start.unix_ms() / 1000 / resolution..).zip(steps.steps).filter_map(|(index, step)| Some((index, step?))).collect()
            };
            let steps = known(read(&archive));
            prop_assert!(steps.iter().all(|(_, step)| step.mean.is_finite() && step.max >= step.mean && step.mean >= 0.0));
            prop_assert_eq!(steps, known(read(&restored)));
        }
    }
}
