//! Quantities as people type them: `2GiB`, `50MB/s`, `unlimited`.

use std::time::Duration;

/// Powers of 1000 and of 1024, in bytes. A bare `K`, `M`, `G` or `T` is refused: half the world means the one, half the other.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// What says that there is to be no limit.
const UNLIMITED: &str = "unlimited";

/// A limit: `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit<T>(pub(super) Option<T>);

/// A number of bytes: a plain number, or one with a unit, `1.5GiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let value = number.trim().parse::<f64>().ok().map(|value| value * factor as f64);
    match value {
        Some(value) if value >= 1.0 && value < u64::MAX as f64 => Ok(value.round() as u64),
        _ => Err("expected a number of bytes like 2GiB, 512MiB, 50MB or 1048576".to_owned()),
    }
}

/// Bytes per second: `50MB/s`, the `/s` may be left out.
pub(super) fn bytes_per_s(text: &str) -> Result<Limit<u64>, String> {
    limit(text, |text| bytes(text.strip_suffix("/s").unwrap_or(text)).ok())
        .ok_or_else(|| format!("expected bytes per second like 50MB/s or 10MiB/s, or {UNLIMITED}"))
}

/// A time: `90s`, `30m`, `6h`, `1d`; days have 24 hours.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::Span>().ok();
    let length = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    length
        .and_then(|length| Duration::try_from(length).ok())
        .filter(|length| !length.is_zero())
        .ok_or_else(|| "expected a time like 30m, 6h, 1d or 30d".to_owned())
}

/// Operations per second: `500`, or `500/s`.
pub(super) fn operations_per_s(text: &str) -> Result<Limit<u64>, String> {
    limit(text, |text| text.strip_suffix("/s").unwrap_or(text).parse().ok().filter(|count| *count > 0))
        .ok_or_else(|| format!("expected operations per second like 500, or {UNLIMITED}"))
}

/// Cores: `1.5`.
pub(super) fn cores(text: &str) -> Result<Limit<f64>, String> {
    limit(text, |text| text.parse().ok().filter(|cores: &f64| cores.is_finite() && *cores > 0.0))
        .ok_or_else(|| format!("expected a number of cores like 1.5, or {UNLIMITED}"))
}

fn limit<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Limit<T>> {
    if text == UNLIMITED { Some(Limit(None)) } else { parse(text).map(|value| Limit(Some(value))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units_and_nothing_ambiguous_is() {
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("1.5 MiB"), Ok(3 << 19));
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes_per_s("50MB/s"), Ok(Limit(Some(50_000_000))));
        assert_eq!(bytes_per_s("10KiB"), Ok(Limit(Some(10_240))));
        assert_eq!(bytes_per_s("unlimited"), Ok(Limit(None)));
        assert_eq!(operations_per_s("500/s"), Ok(Limit(Some(500))));
        assert_eq!(cores("1.5"), Ok(Limit(Some(1.5))));
        for nonsense in ["", "2G", "2gib", "-1GiB", "0", "NaN", "1e300", "GiB", "1..5MiB", "inf"] {
            assert!(bytes(nonsense).is_err(), "{nonsense:?} was taken");
        }
        for nonsense in ["0", "-1", "NaN", "inf", "1,5", "none"] {
            assert!(cores(nonsense).is_err(), "{nonsense:?} was taken");
        }
    }
}
