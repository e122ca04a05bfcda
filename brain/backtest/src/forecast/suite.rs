//! What to forecast from where.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::table;

/// Forecast tasks on series of one step and season.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suite {
    /// Its name.
    pub suite: String,
    /// Lengths of the seasons to expect, in steps, shortest first.
    pub season: Vec<usize>,
    /// Steps to forecast.
    pub horizon: usize,
    /// Steps before an origin that its forecast may rest on.
    pub window: usize,
    /// Series and origins; an origin is the first row to be forecast.
    pub tasks: Vec<(String, usize)>,
}

impl Suite {
    /// Reads a suite from JSON; what else the file says is left alone.
    ///
    /// # Errors
    /// When it cannot be read or is no suite.
    pub fn read(path: &Path) -> Result<Self> {
        let suite: Self = serde_json::from_reader(table::open(path)?)
            .with_context(|| format!("{} is no suite of forecast tasks", path.display()))?;
        ensure!(suite.horizon > 0 && suite.window > 0, "{}: horizon and window must be at least 1", path.display());
        Ok(suite)
    }

    /// At most so many tasks, spread evenly.
    #[must_use]
    pub fn thinned(mut self, tasks_max: usize) -> Self {
        let count = self.tasks.len();
        if count > tasks_max {
            self.tasks = (0..tasks_max).map(|place| self.tasks[place * count / tasks_max].clone()).collect();
        }
        self
    }
}
