//! Exponential smoothing with an additive season, error by error (Holt and Winters in the error-correction form of Hyndman and
//! others, 2008, ch. 3), with two changes. The profile is indexed by phase, so that a period need not be a whole number of
//! steps. The level is a deviation from the profile that fades with distance (damped), because the profile learns lasting
//! shifts itself, once a season.

use super::errors::Prediction;

/// How much of its error a place of the profile takes in, once a season, after its first visits (which are averaged).
const PROFILE_GAIN: f64 = 0.3;

/// How much of each step's error the deviation takes in.
const DEVIATION_GAIN: f64 = 0.1;

/// What is left of the deviation after one step.
const DEVIATION_DAMPING: f64 = 0.97;

/// An error counts for at most this many usual errors in the deviation: a surge that comes a step late is no shift in level.
const ERROR_CLIP: f64 = 3.0;

/// How much of each step's error the usual error takes in.
const ERROR_GAIN: f64 = 0.05;

/// So many errors make a usual one; they are averaged.
const COMPARED_MIN: u32 = 12;

/// Visits' worth of trust in the usual error of all places, for the usual error of one.
const POOLED_VISITS: f64 = 1.0;

/// The smallest usual error, in cores: what sampling and rounding do to a constant demand.
const SCALE_MIN: f64 = 0.005;

/// A profile over one period and the present deviation from it.
#[derive(Clone, Debug)]
pub(super) struct Seasonal {
    period_steps: f64,
    places: Vec<Place>,
    deviation: f64,
    /// Usual absolute error over all places, in cores.
    error: f64,
    compared: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    value: f64,
    error: f64,
    visits: u32,
}

impl Seasonal {
    /// Nothing learnt yet. `period_steps` is at least 1.
    pub(super) fn new(period_steps: f64) -> Self {
        // Places a little longer than a step: none is skipped, however the fractions fall.
        let places = vec![Place::default(); (period_steps as usize).max(1)];
        Self { period_steps, places, deviation: 0.0, error: 0.0, compared: 0 }
    }

    pub(super) fn period_steps(&self) -> f64 {
        self.period_steps
    }

    /// Whether its errors are known well enough to be a scale.
    pub(super) fn is_calibrated(&self) -> bool {
        self.compared > COMPARED_MIN
    }

    fn place(&self, step: u64) -> usize {
        let phase = (step as f64).rem_euclid(self.period_steps) / self.period_steps;
        ((phase * self.places.len() as f64) as usize).min(self.places.len() - 1)
    }

    /// Expected demand of `step`, which is `ahead` steps after the latest; `None` where the profile has a hole.
    pub(super) fn predict(&self, step: u64, ahead: usize) -> Option<Prediction> {
        let index = self.place(step);
        let place = self.places[index];
        let damping = DEVIATION_DAMPING.powi(i32::try_from(ahead).unwrap_or(i32::MAX));
        (place.visits > 0)
            .then(|| Prediction { value: place.value + self.deviation * damping, scale: self.scale(index) })
    }

    /// The usual error about a place. Its neighbours count as well: surges come a step early or late.
    fn scale(&self, index: usize) -> f64 {
        let count = self.places.len();
        [index + count - 1, index, index + 1]
            .into_iter()
            .map(|index| {
                let place = self.places[index % count];
                // The first visit has no error: nothing was expected.
                let visits = f64::from(place.visits.saturating_sub(1));
                (place.error * visits + self.error * POOLED_VISITS) / (visits + POOLED_VISITS)
            })
            .fold(SCALE_MIN, f64::max)
    }

    /// Learns one step.
    pub(super) fn update(&mut self, step: u64, value: f64) {
        let index = self.place(step);
        self.deviation *= DEVIATION_DAMPING;
        let usual = self.error.max(SCALE_MIN);
        let place = &mut self.places[index];
        place.visits = place.visits.saturating_add(1);
        if place.visits == 1 {
            place.value = value - self.deviation;
            return;
        }
        let error = value - place.value - self.deviation;
        let gain = PROFILE_GAIN.max(1.0 / f64::from(place.visits));
        // The profile takes in the whole difference, the deviation included: a lasting shift becomes the new normal.
        place.value += gain * (value - place.value);
        let error_gain = PROFILE_GAIN.max(1.0 / f64::from(place.visits - 1));
        place.error += error_gain * (error.abs() - place.error);
        self.compared = self.compared.saturating_add(1);
        // Later, edges of surges that come a step late are clipped: they belong to their place, not to all places.
        let typical = if self.is_calibrated() { error.abs().min(ERROR_CLIP * usual) } else { error.abs() };
        self.error += ERROR_GAIN.max(1.0 / f64::from(self.compared)) * (typical - self.error);
        self.deviation += DEVIATION_GAIN * error.clamp(-ERROR_CLIP * usual, ERROR_CLIP * usual);
    }

    /// Lets a step pass that was not measured.
    pub(super) fn skip(&mut self) {
        self.deviation *= DEVIATION_DAMPING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_that_is_no_whole_number_keeps_its_phase() {
        let period = 61.4;
        let demand = |step: u64| if (step as f64).rem_euclid(period) < 15.0 { 0.8 } else { 0.1 };
        let mut model = Seasonal::new(period);
        (0..600).for_each(|step| model.update(step, demand(step)));
        let wrong =
            (600..662).filter(|&step| (model.predict(step, 1).unwrap().value - demand(step)).abs() > 0.2).count();
        assert!(wrong <= 3, "{wrong} steps of a day are off");
    }

    #[test]
    fn a_hole_in_the_profile_is_not_filled_with_a_guess() {
        let mut model = Seasonal::new(10.0);
        (0..5).for_each(|step| model.update(step, 0.5));
        assert!(model.predict(13, 1).is_some());
        assert!(model.predict(17, 1).is_none());
    }
}
