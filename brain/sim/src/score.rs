//! How well a run served its guests: surges met in time, troughs given back, seconds short, cores to spare; and the same for a
//! policy that only reacts, to compare with.

use crate::run::VmSeries;
use crate::scenario::Load;

/// Demand may exceed the limit by this much, in cores, before a second counts as short.
const SHORT_CORES: f64 = 0.01;

/// One surge of a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surge {
    /// When the rise begins.
    pub foot_s: f64,
    /// When the plateau begins.
    pub plateau_s: f64,
    /// When the fall has ended.
    pub end_s: f64,
    /// Demand before and after, in cores.
    pub base: f64,
    /// Demand on the plateau, in cores.
    pub peak: f64,
}

/// The surges of a load with a day that lie, with the trough after them, within `from_s..until_s`. Other loads have none.
pub fn surges(load: &Load, from_s: f64, until_s: f64) -> Vec<Surge> {
    let Load::Day { period_s, phase_s, base, peak, width_s, shoulder_s } = load else { return Vec::new() };
    let days = (0..).map(|day| phase_s + f64::from(day) * period_s);
    days.skip_while(|foot_s| *foot_s < from_s)
        .take_while(|foot_s| foot_s + period_s <= until_s)
        .map(|foot_s| Surge {
            foot_s,
            plateau_s: foot_s + shoulder_s,
            end_s: foot_s + width_s,
            base: *base,
            peak: *peak,
        })
        .collect()
}

/// Whether the limit had room for the plateau from `ahead_s` before the plateau on, until demand was there.
pub fn is_met_ahead(series: &VmSeries, surge: &Surge, ahead_s: f64) -> bool {
    let (from, until) = ((surge.plateau_s - ahead_s).max(0.0) as usize, surge.plateau_s as usize);
    (from..=until).all(|second| series.limit.get(second).is_some_and(|limit| *limit >= surge.peak * 0.97))
}

/// Whether the limit came down, before the next surge, to less than a third of the way up.
pub fn is_given_back(series: &VmSeries, surge: &Surge, period_s: f64) -> bool {
    let (from, until) = (surge.end_s as usize, (surge.foot_s + period_s) as usize);
    let low = surge.base * 1.1 + 0.3 * (surge.peak - surge.base);
    series.limit.get(from..until).is_some_and(|limits| limits.iter().any(|limit| *limit <= low))
}

/// Seconds in which the limit rose although demand had not: to more than a headroom and a tenth of a core (what waiting for
/// CPUs may look like) above everything wanted in the last five seconds.
pub fn unforced_rises(series: &VmSeries, headroom: f64) -> Vec<usize> {
    (1..series.limit.len())
        .filter(|&second| {
            let wanted = series.demand[second.saturating_sub(5)..=second].iter().copied().fold(0.0, f64::max);
            series.limit[second] > series.limit[second - 1] + 0.02 && series.limit[second] > wanted * headroom + 0.1
        })
        .collect()
}

/// What limits cost and what they spare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Service {
    /// Seconds in which demand exceeded the limit.
    pub short_s: usize,
    /// Demand that the limit cut off, in core-seconds.
    pub short_core_s: f64,
    /// Mean of what the limit allowed above demand, in cores.
    pub slack_cores: f64,
}

/// Judges limits against demand from a second on.
pub fn service(demand: &[f64], limit: &[f64], from: usize) -> Service {
    let pairs = || demand.iter().zip(limit).skip(from);
    let seconds = pairs().count().max(1) as f64;
    Service {
        short_s: pairs().filter(|(demand, limit)| **demand > **limit + SHORT_CORES).count(),
        short_core_s: pairs().map(|(demand, limit)| (demand - limit).max(0.0)).sum(),
        slack_cores: pairs().map(|(demand, limit)| (limit - demand).max(0.0)).sum::<f64>() / seconds,
    }
}

/// The limits of a policy that only reacts: a margin above the most that was wanted in the last `hold_s` seconds, acting as soon as
/// a second is over. It sees true demand, which is more than any real one could.
pub fn reactive(demand: &[f64], hold_s: usize, margin_cores: f64, ceiling_cores: f64) -> Vec<f64> {
    (0..demand.len())
        .map(|second| {
            let seen = &demand[second.saturating_sub(hold_s.max(1))..second];
            let most = seen.iter().copied().fold(0.0, f64::max);
            if second == 0 { ceiling_cores } else { (most + margin_cores).min(ceiling_cores) }
        })
        .collect()
}

/// The same policy with the margin at which it spares as much as `slack_cores`, found by bisection.
pub fn reactive_at_slack(demand: &[f64], hold_s: usize, ceiling_cores: f64, from: usize, slack_cores: f64) -> Service {
    let at = |margin| service(demand, &reactive(demand, hold_s, margin, ceiling_cores), from);
    let (mut low, mut high) = (0.0, ceiling_cores);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if at(middle).slack_cores < slack_cores { low = middle } else { high = middle }
    }
    at(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_without_demand_is_told_from_one_with() {
        let demand = vec![0.2, 0.2, 0.2, 0.7, 0.7];
        let series =
            |limit: [f64; 5]| VmSeries { demand: demand.clone(), limit: limit.to_vec(), ..VmSeries::default() };
        assert_eq!(unforced_rises(&series([0.3, 0.9, 0.9, 0.9, 0.9]), 1.1), [1]);
        assert_eq!(unforced_rises(&series([0.3, 0.3, 0.3, 0.3, 0.77]), 1.1), [0usize; 0]);
    }

    #[test]
    fn a_reactive_policy_is_short_for_the_first_second_of_each_rise() {
        let demand: Vec<f64> = (0..100).map(|second| if second % 20 < 5 { 0.8 } else { 0.1 }).collect();
        let service = service(&demand, &reactive(&demand, 5, 0.05, 1.0), 10);
        assert_eq!(service.short_s, 4);
    }
}
