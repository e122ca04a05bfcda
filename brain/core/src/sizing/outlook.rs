//! How likely it is that a VM will want more than a size, from a few quantiles of what it will want.

/// The probabilities of wanting more than the quantiles that are modelled.
pub(super) const EXCEEDANCES: [f64; 7] = [0.5, 0.2, 0.08, 0.03, 0.01, 0.003, 0.001];

/// The distribution of the largest demand until a resize decided now can be followed by another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outlook {
    /// Demand that is exceeded with each of [`EXCEEDANCES`], rising.
    demand: [f64; EXCEEDANCES.len()],
}

impl Outlook {
    /// From modelled quantiles, which may cross each other a little: they are put in order.
    pub(super) fn new(mut demand: [f64; EXCEEDANCES.len()]) -> Self {
        demand.sort_by(f64::total_cmp);
        Self { demand: demand.map(|demand| demand.max(0.0)) }
    }

    /// Sizes, not in order, around one of which `size + price * exceedance(size)` is least among those that are exceeded with at most
    /// `exceedance_max`. Between two quantiles that cost is convex: it is least at either end, or where its slope is 0.
    pub(super) fn turns(&self, price: f64, exceedance_max: f64) -> impl Iterator<Item = f64> + '_ {
        let last = EXCEEDANCES.len() - 1;
        let inner = (0..last).flat_map(move |from| {
            let (start, end) = (self.demand[from], self.demand[from + 1]);
            let rate = (EXCEEDANCES[from] / EXCEEDANCES[from + 1]).ln() / (end - start).max(1e-9);
            let after = |ratio: f64| (start + ratio.max(1.0).ln() / rate).min(end);
            [start, after(price * EXCEEDANCES[from] * rate), after(EXCEEDANCES[from] / exceedance_max)]
        });
        let span = (self.demand[last] - self.demand[last - 2]).max(self.demand[last] * 0.05).max(1e-9);
        let rate = (EXCEEDANCES[last - 2] / EXCEEDANCES[last]).ln() / span;
        let beyond = self.demand[last] + (price * EXCEEDANCES[last] * rate).max(1.0).ln() / rate;
        inner.chain([self.demand[last], beyond])
    }

    /// Probability that demand exceeds `size`; falls with `size`. Between two quantiles it falls exponentially, and beyond the last one as it
    /// did over the last two.
    pub(super) fn exceedance(&self, size: f64) -> f64 {
        let last = EXCEEDANCES.len() - 1;
        let above = self.demand.partition_point(|demand| *demand <= size);
        if above == 0 {
            return 1.0;
        }
        let from = (above - 1).min(last - 1);
        let span = (self.demand[from + 1] - self.demand[from]).max(1e-9);
        let fall = (EXCEEDANCES[from] / EXCEEDANCES[from + 1]).ln();
        if above > last {
            // A tail that was seen by few is trusted no further than it reaches over two quantiles.
            let span = (self.demand[last] - self.demand[last - 2]).max(self.demand[last] * 0.05).max(1e-9);
            let fall = (EXCEEDANCES[last - 2] / EXCEEDANCES[last]).ln();
            return EXCEEDANCES[last] * (-(size - self.demand[last]) / span * fall).exp();
        }
        EXCEEDANCES[from] * (-(size - self.demand[from]) / span * fall).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn at_a_quantile_the_exceedance_is_its_own() {
        let outlook = Outlook::new([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]);
        assert_eq!(outlook.exceedance(9.0), 1.0);
        for (demand, exceedance) in [(20.0, EXCEEDANCES[1]), (70.0, EXCEEDANCES[6])] {
            assert!((outlook.exceedance(demand) - exceedance).abs() < 1e-9);
        }
        assert!((EXCEEDANCES[2]..EXCEEDANCES[1]).contains(&outlook.exceedance(25.0)));
        assert!(outlook.exceedance(90.0) < EXCEEDANCES[6]);
    }

    proptest! {
        #[test]
        fn the_cheapest_size_of_all_is_near_a_turn(
            demand in proptest::array::uniform7(0.0..300.0f64), price in 1.0..1e6f64, exceedance_max in 0.05..0.45f64,
        ) {
            let outlook = Outlook::new(demand);
            let cost = |size: f64| {
                let exceedance = outlook.exceedance(size);
                if exceedance <= exceedance_max { size + price * exceedance } else { f64::INFINITY }
            };
            let near = |turn: f64| [turn.floor(), turn.ceil(), turn.ceil() + 1.0];
            let found = outlook.turns(price, exceedance_max).flat_map(near).map(cost).fold(f64::INFINITY, f64::min);
            let least = (0..4000).map(|size| cost(f64::from(size))).fold(f64::INFINITY, f64::min);
            prop_assert!(found <= least + 1e-6 * least, "{found} {least}");
        }

        #[test]
        fn a_larger_size_is_never_likelier_to_be_too_small(demand: [u16; 7], sizes: [u16; 2]) {
            let outlook = Outlook::new(demand.map(f64::from));
            let (small, large) = (f64::from(sizes[0].min(sizes[1])), f64::from(sizes[0].max(sizes[1])));
            let (of_small, of_large) = (outlook.exceedance(small), outlook.exceedance(large));
            prop_assert!(of_large <= of_small + 1e-12 && (0.0..=1.0).contains(&of_large), "{of_small} {of_large}");
        }
    }
}
