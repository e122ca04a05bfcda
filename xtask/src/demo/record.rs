//! What the demo saw: one row per VM and second, whatever the source.

use serde::{Deserialize, Serialize};

/// What kind of day a guest has. The lab knows it; agent and brain never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A surge in every (compressed) day.
    Periodic,
    /// Always the same.
    Flat,
    /// A bounded random walk.
    Walk,
}

/// One second of one VM, all in cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Seconds since the recording began.
    pub(super) at_s: f64,
    /// What the guest's schedule asked for: the truth.
    pub(super) wanted: f64,
    /// Lower end of the measured demand interval (run).
    pub(super) demand_low: f64,
    /// Upper end of the measured demand interval (run + wait).
    pub(super) demand_high: f64,
    /// What it was allowed to use.
    pub(super) allocation: f64,
    /// Median of the forecast for this second, as made at the time.
    pub(super) forecast_p50: Option<f64>,
    /// 95 % quantile of the forecast for this second, as made at the time.
    pub(super) forecast_p95: Option<f64>,
    /// Share of the second that the quota held it back, by the kernel's own counter.
    pub(super) throttled: f64,
    /// The live demand that Gnomon gave as the reason of a growth in the seconds before.
    #[serde(default)]
    pub(super) grown_for: Option<f64>,
}

/// One VM's recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Track {
    /// The VM's name.
    pub(super) name: String,
    /// The host it ran on.
    pub(super) host: String,
    /// Its kind of day.
    pub(super) kind: Kind,
    /// The length of its day in seconds, if it has one.
    pub(super) period_s: Option<f64>,
    /// One row a second, in order.
    pub(super) rows: Vec<Row>,
}

impl Track {
    /// The rows from `from_s` on.
    pub(super) fn since(&self, from_s: f64) -> &[Row] {
        let first = self.rows.partition_point(|row| row.at_s < from_s);
        &self.rows[first..]
    }
}
