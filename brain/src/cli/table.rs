//! Tables and numbers for people.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::Allocation;

/// A table with these columns; those named in `numbers` are aligned right.
pub(super) fn table(columns: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic).set_header(columns);
    for number in numbers {
        if let Some(column) = table.column_mut(*number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Cores with two digits, or a dash.
pub(super) fn cores(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |cores| format!("{cores:.2}"))
}

/// Quota of vCPUs.
pub(super) fn limit(allocation: &Allocation) -> String {
    match allocation.quota_cores {
        Some(quota) => format!("{quota:.2} of {}", allocation.vcpus),
        None => format!("all {}", allocation.vcpus),
    }
}

/// Bytes in the largest binary unit that keeps at least one before the point.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(UNITS.len() as u32 - 1);
    let value = bytes as f64 / f64::from(1u32 << (10 * unit.min(3))) / if unit == 4 { 1024.0 } else { 1.0 };
    format!("{value:.1} {}", UNITS[unit as usize])
}

/// Milliseconds as the largest sensible unit.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{:.1} s", ms as f64 / 1e3),
        10_000..600_000 => format!("{:.0} s", ms as f64 / 1e3),
        600_000..36_000_000 => format!("{:.0} min", ms as f64 / 6e4),
        _ => format!("{:.1} h", ms as f64 / 3.6e6),
    }
}

/// An instant, local time.
pub(super) fn at(timestamp: Timestamp) -> String {
    let ms = i64::try_from(timestamp.unix_ms()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| timestamp.to_string(),
        |instant| instant.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_shown_in_a_unit_that_reads_well() {
        assert_eq!(bytes(0), "0.0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(4 << 30), "4.0 GiB");
        assert_eq!(bytes(3 << 40), "3.0 TiB");
        assert_eq!(duration(1500), "1.5 s");
        assert_eq!(duration(120_000), "120 s");
        assert_eq!(duration(86_400_000), "24.0 h");
        assert_eq!(cores(None), "-");
        assert_eq!(limit(&Allocation { quota_cores: Some(0.5), vcpus: 2, vcpus_max: 2, memory_bytes: 0 }), "0.50 of 2");
    }
}
