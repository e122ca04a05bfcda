//! Serial numbers: what a certificate is known by in the store.

use crate::secret::{self, SecretError};
use std::fmt::{self, Write as _};

/// A certificate's serial number, as lower-case hexadecimal digits without leading zero bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(String);

impl Serial {
    /// Bytes of a new one: no two of a CA's will ever be alike, and RFC 5280 allows 20.
    const BYTES: usize = 16;

    /// A new random one. Returns it with its bytes, as they stand in the certificate.
    pub(super) fn random() -> Result<(Self, [u8; Self::BYTES]), SecretError> {
        let mut bytes: [u8; Self::BYTES] = secret::random()?;
        // A positive integer of always the same length: neither a sign byte nor a leading zero.
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Ok((Self::of(&bytes), bytes))
    }

    /// That of a certificate, from its big-endian bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let significant = bytes.iter().skip_while(|byte| **byte == 0);
        Self(significant.fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    /// One that was stored.
    pub(crate) fn from_store(digits: String) -> Self {
        Self(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
