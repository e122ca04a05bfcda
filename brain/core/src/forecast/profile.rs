//! What earlier seasons say of a step: the value a season ago, and location and spread of the values near that time of day.

/// Neighbours on either side of the same time of day that count: a surge comes a little earlier or later each day. A hundredth of
/// the season, as long as it is at least one step.
const NEIGHBOURS_PER_SEASON: usize = 96;

/// So many earlier seasons are looked at.
const SEASONS_MAX: usize = 14;

/// What earlier seasons say of one step, in the series' scaled unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Profile {
    /// The value one season before.
    pub(crate) ago: f64,
    /// The value two seasons before; `ago` where there is none.
    pub(crate) twice_ago: f64,
    /// Mean of the neighbourhood one season before.
    pub(crate) near: f64,
    /// Largest of the neighbourhood one season before.
    pub(crate) near_max: f64,
    /// Mean of the neighbourhoods in all earlier seasons.
    pub(crate) mean: f64,
    /// Their median.
    pub(crate) median: f64,
    /// Their 0.9-quantile.
    pub(crate) high: f64,
    /// Their maximum.
    pub(crate) max: f64,
}

/// The profiles of all steps of a series.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    season: Option<usize>,
    long_season: Option<usize>,
    /// For each step what it and the same time of the seasons before it say, to be repeated seasons later.
    to_repeat: Vec<Profile>,
}

impl Profiles {
    /// Takes seasons in steps, shortest first, of which `values` holds at least two each. O(length × seasons ×
    /// neighbours), whatever the horizon: a step many seasons ahead repeats what one season ahead would.
    pub(crate) fn new(values: &[f64], seasons: &[usize]) -> Self {
        let season = seasons.first().copied();
        let long_season = seasons.get(1..).and_then(<[usize]>::last).copied();
        let mut pool = Vec::new();
        let to_repeat = season.map_or_else(Vec::new, |season| {
            (0..values.len()).map(|at| profile(values, season, at, &mut pool)).collect()
        });
        Self { season, long_season, to_repeat }
    }

    /// The shortest season.
    pub(crate) fn season(&self) -> Option<usize> {
        self.season
    }

    /// The longest season, where there are several.
    pub(crate) fn long_season(&self) -> Option<usize> {
        self.long_season
    }

    /// What is known at `t` about `t + ahead`.
    pub(crate) fn at(&self, t: usize, ahead: usize) -> Option<Profile> {
        let season = self.season?;
        // The first neighbourhood that is wholly known.
        let skipped = (ahead.max(1) + neighbours(season)).div_ceil(season);
        self.to_repeat.get((t + ahead).checked_sub(season * skipped)?).copied()
    }
}

fn neighbours(season: usize) -> usize {
    (season / NEIGHBOURS_PER_SEASON).max(usize::from(season >= 12))
}

fn profile(values: &[f64], season: usize, at: usize, pool: &mut Vec<f64>) -> Profile {
    let reach = neighbours(season);
    let value = values[at];
    pool.clear();
    let (mut near, mut near_max) = (value, value);
    for back in 0..SEASONS_MAX {
        let Some(centre) = at.checked_sub(season * back) else { break };
        let from = centre.saturating_sub(reach);
        // The last neighbourhood may stand at the end of what is known.
        let to = (centre + reach + 1).min(values.len());
        pool.extend_from_slice(&values[from..to]);
        if back == 0 {
            near = pool.iter().sum::<f64>() / pool.len() as f64;
            near_max = pool.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        }
    }
    let mean = pool.iter().sum::<f64>() / pool.len() as f64;
    let count = pool.len();
    // Three ranks are cheaper to select than all to sort.
    let (_, &mut median, above) = pool.select_nth_unstable_by(count / 2, f64::total_cmp);
    let high = match (count * 9 / 10).min(count - 1).checked_sub(count / 2 + 1) {
        Some(rank) => *above.select_nth_unstable_by(rank, f64::total_cmp).1,
        None => median,
    };
    let max = above.iter().copied().fold(median, |max, value| if max.total_cmp(&value).is_lt() { value } else { max });
    Profile {
        ago: value,
        twice_ago: at.checked_sub(season).map_or(value, |twice| values[twice]),
        near,
        near_max,
        mean,
        median,
        high,
        max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_reads_nothing_after_its_origin() {
        let season = 24;
        let mut values: Vec<f64> = (0..240).map(|step| f64::from(step % 24)).collect();
        for t in [30, 100, 150] {
            for ahead in [1, 5, 22, 23, 24, 25, 47, 48] {
                let before = Profiles::new(&values, &[season]).at(t, ahead);
                let known = values.clone();
                values[t + 1..].fill(1e6);
                assert_eq!(Profiles::new(&values, &[season]).at(t, ahead), before, "{t} + {ahead}");
                values = known;
            }
        }
    }

    #[test]
    fn a_perfect_cycle_is_its_own_profile() {
        let values: Vec<f64> = (0..96).map(|step| f64::from(step % 8)).collect();
        let profile = Profiles::new(&values, &[8]).at(95, 3).unwrap();
        assert_eq!((profile.ago, profile.median, profile.max), (2.0, 2.0, 2.0));
    }
}
