//! Demand forecasts.

/// A pure piece of work too long for `handle`: run it on any thread.
#[derive(Clone, Debug)]
pub struct FitJob {}

/// What a [`FitJob`] found.
#[derive(Clone, Debug)]
pub struct FitResult {}

impl FitJob {
    /// Does the work. Deterministic.
    pub fn run(self) -> FitResult {
        FitResult {}
    }
}
