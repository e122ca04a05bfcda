//! What may wait for an operator's approval, be it a proposed action or a request for capacity, is known by a key of one shape.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What it is known by, for ever. Written `TERM-NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApprovalKey {
    /// The lease term in which it came up.
    pub term: u64,
    /// Its number within the term among those of its kind, from 1.
    pub number: u64,
}

impl fmt::Display for ApprovalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.number)
    }
}

/// Text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no key: TERM-NUMBER, as `gnomon proposals list` and `gnomon capacity list` show it")]
pub struct NoApprovalKey(String);

impl FromStr for ApprovalKey {
    type Err = NoApprovalKey;

    fn from_str(text: &str) -> Result<Self, NoApprovalKey> {
        let parsed = text.split_once('-').and_then(|(term, number)| Some((term.parse().ok()?, number.parse().ok()?)));
        parsed.map(|(term, number)| Self { term, number }).ok_or_else(|| NoApprovalKey(text.to_owned()))
    }
}

impl TryFrom<String> for ApprovalKey {
    type Error = NoApprovalKey;

    fn try_from(text: String) -> Result<Self, NoApprovalKey> {
        text.parse()
    }
}

impl From<ApprovalKey> for String {
    fn from(key: ApprovalKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let key = ApprovalKey { term: 7, number: 12 };
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "7", "7-", "-7-1", "7-1-2", "a-b"] {
            assert!(text.parse::<ApprovalKey>().is_err(), "{text}");
        }
    }
}
