//! How long a domain's threads waited for memory: pressure stall information (PSI, Linux 4.20), version 2 only.

use super::super::kernel_file::{ReadError, read_value};
use super::DomainCgroup;

impl DomainCgroup {
    /// Time in which at least one thread of the domain was stalled on memory since its group was made, in microseconds. `None`
    /// where the domain has no version 2 group, or the kernel no PSI.
    pub fn memory_stalled_us(&self) -> Result<Option<u64>, ReadError> {
        let Some(dir) = &self.unified else { return Ok(None) };
        match read_value(&dir.join("memory.pressure"), "a line `some ... total=MICROSECONDS`", parse_stalled_us) {
            Ok(stalled_us) => Ok(Some(stalled_us)),
            Err(error) if error.is_gone() => Ok(None),
            // EOPNOTSUPP: the kernel has PSI and was booted without it (psi=0).
            Err(ReadError::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Documentation/accounting/psi.rst: `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`.
fn parse_stalled_us(text: &str) -> Option<u64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("total="))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_total_of_the_line_some_is_read() {
        let text =
            "some avg10=0.12 avg60=0.00 avg300=0.00 total=4711\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse_stalled_us(text), Some(4711));
        assert_eq!(parse_stalled_us("full avg10=0.00 total=9\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "some [ -~\\n]{0,100}") {
            let _ = parse_stalled_us(&text);
        }
    }
}
