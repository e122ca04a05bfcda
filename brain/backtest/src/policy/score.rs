//! How sizing went.

use serde::Serialize;

use super::rules::Rules;
use crate::table::Table;

/// Figures over the rows after the warm-up, all VMs together.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Score {
    /// Who sized.
    pub(super) name: String,
    /// Share of measured time with less than wanted.
    pub(super) under_time: f64,
    /// Share of what was wanted that was not there.
    pub(super) under_area: f64,
    /// Share of what was given that was not wanted.
    pub(super) slack: f64,
    /// Given on average, in percent of capacity.
    pub(super) size_mean: f64,
    /// Resizes for each VM and day.
    pub(super) resizes_per_day: f64,
    /// Share of VMs that had too little for more than 1 % of the time.
    pub(super) vms_often_short: f64,
}

impl Score {
    /// `sizes[vm][row]` is what was in force.
    pub(super) fn of(name: &str, table: &Table, sizes: &[Vec<f32>], rules: &Rules) -> Self {
        let (mut short, mut measured, mut resizes, mut often_short) = (0u64, 0u64, 0u64, 0u64);
        let (mut unused, mut given, mut wanted, mut missing) = (0.0, 0.0, 0.0, 0.0);
        for (demand, sizes) in table.columns.iter().zip(sizes) {
            let (demand, sizes) = (&demand[rules.warmup..], &sizes[rules.warmup..]);
            resizes += sizes.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64;
            let (mut own_short, mut own_measured) = (0u64, 0u64);
            for (&demand, &size) in demand.iter().zip(sizes).filter(|(demand, _)| demand.is_finite()) {
                let size = f64::from(size);
                own_measured += 1;
                own_short += u64::from(demand > size + 1e-6);
                unused += (size - demand).max(0.0);
                missing += (demand - size).max(0.0);
                (given, wanted) = (given + size, wanted + demand);
            }
            often_short += u64::from(own_short * 100 > own_measured);
            (short, measured) = (short + own_short, measured + own_measured);
        }
        let vms = table.names.len() as f64;
        let days = (table.rows() - rules.warmup) as f64 / rules.day as f64;
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Self {
            name: name.to_owned(),
            under_time: share(short as f64, measured as f64),
            under_area: share(missing, wanted),
            slack: share(unused, given),
            size_mean: share(given, measured as f64),
            resizes_per_day: share(resizes as f64, vms * days),
            vms_often_short: share(often_short as f64, vms),
        }
    }

    /// The cells of a table's row, after the name.
    pub(super) fn cells(&self) -> Vec<String> {
        let percent = |share: f64, digits: usize| format!("{:.digits$} %", 100.0 * share);
        vec![
            self.name.clone(),
            percent(self.under_time, 2),
            percent(self.under_area, 2),
            percent(self.slack, 1),
            format!("{:.1} %", self.size_mean),
            format!("{:.1}", self.resizes_per_day),
            percent(self.vms_often_short, 0),
        ]
    }
}

/// The head of that table.
pub(super) const HEAD: [&str; 7] =
    ["", "too small, time", "too small, demand", "slack", "mean size", "resizes a day", "VMs short > 1 % of the time"];
