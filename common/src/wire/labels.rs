//! Labels: what an operator says of a host, and what an owner asks of the host of a VM.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};
use std::borrow::ToOwned;
use std::collections::BTreeMap;
use std::string::String;

/// Labels that one host can have, or one VM ask for.
pub const LABELS_MAX: usize = 32;

/// Longest name or value of a label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

/// Names, each with its value. As text: `disk=nvme,room=7`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Why labels are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabels {
    /// A word that is none.
    #[error("a label's {0:?} is not a word of 1 to {LABEL_BYTES_MAX} of a-z A-Z 0-9 . _ -")]
    Word(String),
    /// No name with a value.
    #[error("{0:?} is not a label as in \"disk=nvme\"")]
    Form(String),
    /// A name that has two values.
    #[error("the label {0} has two values")]
    Twice(String),
    /// Too many.
    #[error("{0} labels are more than {LABELS_MAX}")]
    TooMany(usize),
}

impl Labels {
    /// The first of these, `NAME=VALUE`, that others lack.
    pub fn lacking_in(&self, others: &Self) -> Option<String> {
        let lacks = |(name, value): &(&String, &String)| others.0.get(*name) != Some(value);
        self.0.iter().find(lacks).map(|(name, value)| std::format!("{name}={value}"))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabels;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, InvalidLabels> {
        if labels.len() > LABELS_MAX {
            return Err(InvalidLabels::TooMany(labels.len()));
        }
        let no_word = labels.iter().flat_map(|(name, value)| [name, value]).find(|word| !is_word(word)).cloned();
        no_word.map_or(Ok(Self(labels)), |word| Err(InvalidLabels::Word(word)))
    }
}

fn is_word(word: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=LABEL_BYTES_MAX).contains(&word.len()) && word.chars().all(legal)
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl FromStr for Labels {
    type Err = InvalidLabels;

    fn from_str(text: &str) -> Result<Self, InvalidLabels> {
        let mut labels = BTreeMap::new();
        for label in text.split(',').map(str::trim) {
            let (name, value) = label.split_once('=').ok_or_else(|| InvalidLabels::Form(label.to_owned()))?;
            if labels.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(InvalidLabels::Twice(name.to_owned()));
            }
        }
        Self::try_from(labels)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.0.iter().enumerate() {
            let separator = if number > 0 { "," } else { "" };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{self, PREFIX_BYTES};
    use std::string::ToString;
    use std::vec::Vec;

    fn labels(text: &str) -> Labels {
        text.parse().unwrap()
    }

    #[test]
    fn labels_are_names_with_values_and_the_first_that_is_lacking_is_told() {
        let host = labels("room=7, disk=nvme");
        assert_eq!(host.to_string(), "disk=nvme,room=7");
        assert_eq!(labels("disk=nvme").lacking_in(&host), None);
        assert_eq!(Labels::default().lacking_in(&host), None);
        assert_eq!(labels("disk=nvme,room=8").lacking_in(&host).as_deref(), Some("room=8"));
        assert_eq!(labels("gpu=a100,room=8").lacking_in(&host).as_deref(), Some("gpu=a100"));
    }

    #[test]
    fn what_is_no_label_is_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Labels>().unwrap_err().to_string();
        for (text, why) in [
            ("", "as in \"disk=nvme\""),
            ("disk", "as in \"disk=nvme\""),
            ("disk=", "\"\" is not a word"),
            ("disk=nvme,", "as in \"disk=nvme\""),
            ("disk=a b", "\"a b\" is not a word"),
            ("dïsk=a", "is not a word"),
            ("disk=a=b", "\"a=b\" is not a word"),
            ("disk=a,disk=b", "disk has two values"),
        ] {
            assert!(refused(text).contains(why), "{text:?}: {}", refused(text));
        }
        assert!(refused(&std::format!("a={}", "x".repeat(LABEL_BYTES_MAX + 1))).contains("is not a word"));
        let many: Vec<_> = (0..=LABELS_MAX).map(|number| std::format!("l{number}=x")).collect();
        assert_eq!(refused(&many.join(",")), "33 labels are more than 32");
        assert!(labels(&many[1..].join(",")).lacking_in(&Labels::default()).is_some());
    }

    #[test]
    fn a_message_with_a_bad_label_does_not_decode() {
        let message = |value: &str| {
            let map = BTreeMap::from([("disk".to_owned(), value.to_owned())]);
            frame::encode(&map).unwrap().split_off(PREFIX_BYTES)
        };
        assert_eq!(frame::decode::<Labels>(&message("nvme")).unwrap(), labels("disk=nvme"));
        assert!(frame::decode::<Labels>(&message("n v m e")).is_err());
    }
}
