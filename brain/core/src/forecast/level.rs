//! Simple exponential smoothing: demand stays where it is, give or take.

/// Smoothing gains tried side by side: the slow one is best for noise about a constant, the fast one for a random walk.
const GAINS: [f64; 3] = [0.05, 0.2, 0.6];

/// How fast the comparison between gains forgets.
const SCORE_GAIN: f64 = 0.03;

/// Levels under several gains; the one whose one-step errors were smallest lately speaks.
#[derive(Clone, Debug)]
pub(super) struct Level {
    levels: Option<[f64; 3]>,
    errors: [f64; 3],
}

impl Level {
    pub(super) fn new() -> Self {
        Self { levels: None, errors: [0.0; 3] }
    }

    /// The expected value of any later step; `None` before the first.
    pub(super) fn value(&self) -> Option<f64> {
        let levels = self.levels?;
        let best = (0..GAINS.len()).min_by(|&a, &b| self.errors[a].total_cmp(&self.errors[b]))?;
        Some(levels[best])
    }

    pub(super) fn update(&mut self, value: f64) {
        let Some(levels) = &mut self.levels else {
            self.levels = Some([value; 3]);
            return;
        };
        for ((level, error), gain) in levels.iter_mut().zip(&mut self.errors).zip(GAINS) {
            *error += SCORE_GAIN * ((value - *level).abs() - *error);
            *level += gain * (value - *level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_averaged_and_a_walk_is_followed() {
        let mut noisy = Level::new();
        let mut walking = Level::new();
        for step in 0..200 {
            noisy.update(if step % 2 == 0 { 0.1 } else { 0.3 });
            walking.update(f64::from(step));
        }
        assert!((noisy.value().unwrap() - 0.2).abs() < 0.01);
        assert!((walking.value().unwrap() - 199.0).abs() < 1.0);
    }
}
