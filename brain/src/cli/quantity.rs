//! Quantities as people type them: `2GiB`, `50MB/s`, `unlimited`.

use std::time::Duration;

/// Powers of 1000 and of 1024, in bytes.
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

/// Of sizes, powers of 1024 as well: QEMU and libvirt read them so. Of rates they are refused: half the world means the one, half the other.
const BARE_UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// What says that there is to be no limit.
const UNLIMITED: &str = "unlimited";

/// A limit: `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit<T>(pub(super) Option<T>);

/// A number of bytes: a plain number, or one with a unit, `1.5GiB`, `4G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    counted(text, UNITS.iter().chain(&BARE_UNITS))
        .ok_or_else(|| "expected a number of bytes like 2GiB (or 2G, the same), 512MiB, 50MB or 1048576".to_owned())
}

fn counted<'a>(text: &str, mut units: impl Iterator<Item = &'a (&'a str, u64)>) -> Option<u64> {
    let unit = units.find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let value = number.trim().parse::<f64>().ok()? * factor as f64;
    (value >= 1.0 && value < u64::MAX as f64).then(|| value.round() as u64)
}

/// Bytes per second: `50MB/s`, the `/s` may be left out.
pub(super) fn bytes_per_s(text: &str) -> Result<Limit<u64>, String> {
    limit(text, |text| counted(text.strip_suffix("/s").unwrap_or(text), UNITS.iter()))
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
        assert_eq!(["1K", "1.5M", "4G", "2 T"].map(bytes), [Ok(1 << 10), Ok(3 << 19), Ok(4 << 30), Ok(2 << 40)]);
        assert_eq!(bytes_per_s("50MB/s"), Ok(Limit(Some(50_000_000))));
        assert_eq!(bytes_per_s("10KiB"), Ok(Limit(Some(10_240))));
        assert_eq!(bytes_per_s("unlimited"), Ok(Limit(None)));
        assert_eq!(operations_per_s("500/s"), Ok(Limit(Some(500))));
        assert_eq!(cores("1.5"), Ok(Limit(Some(1.5))));
        for nonsense in ["", "2g", "2Gb", "2gib", "G", "-1GiB", "0", "NaN", "1e300", "GiB", "1..5MiB", "inf"] {
            assert!(bytes(nonsense).is_err(), "{nonsense:?} was taken");
        }
        for ambiguous in ["50M/s", "50M", "1G", "10K/s"] {
            assert!(bytes_per_s(ambiguous).is_err(), "{ambiguous:?} was taken");
        }
        for nonsense in ["0", "-1", "NaN", "inf", "1,5", "none"] {
            assert!(cores(nonsense).is_err(), "{nonsense:?} was taken");
        }
    }
}
