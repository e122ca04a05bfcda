//! What a look at a VM's long history found of the day ahead.

use super::table::Table;
use crate::forecast::engine::Share;
use crate::season::Season;

/// The seasonal models must have erred less than this share of the others' errors for a forecast to justify acting before demand is there.
const SEASONAL_GAIN_MAX: f64 = 0.8;

/// The day ahead, and what that rests on.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    /// 5-minute steps.
    pub(super) day: Table,
    /// Seasons that were found.
    pub(super) seasons: Vec<Season>,
    /// Models, their weights and errors.
    pub(super) shares: Vec<Share>,
    /// Share of the seasonal-naive forecast's error that the models together avoid.
    pub(super) skill: f64,
    /// Error of the best seasonal model over that of the best other one; `None` without a season.
    pub(super) seasonal_gain: Option<f64>,
}

impl Outlook {
    /// Whether it rests on a season that forecasts clearly better than "no change".
    pub(super) fn is_earned(&self) -> bool {
        !self.seasons.is_empty() && self.seasonal_gain.is_some_and(|gain| gain < SEASONAL_GAIN_MAX)
    }
}
