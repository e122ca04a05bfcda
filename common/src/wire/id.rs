//! Identities: newtypes, so that a host is never mistaken for a VM or a sequence for an epoch.

use core::fmt;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::string::{String, ToString};
use uuid::Uuid;

/// A hypervisor host's name: what its certificate says it is. 1 to 63 characters of `a-z 0-9 . -`, starting with a letter
/// or digit (so that it is also a legal DNS name in the certificate, RFC 1123).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct HostId(String);

/// A host name that is not 1 to 63 characters of `a-z 0-9 . -` starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("host name {0:?} is not 1 to 63 characters of a-z, 0-9, '.' and '-' starting with a letter or digit")]
pub struct InvalidHostId(pub String);

impl HostId {
    /// Longest legal host name, in bytes (one DNS label).
    pub const BYTES_MAX: usize = 63;

    /// Checks and wraps a name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidHostId> {
        let name = name.into();
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-';
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if starts_well && name.len() <= Self::BYTES_MAX && name.chars().all(legal) {
            Ok(Self(name))
        } else {
            Err(InvalidHostId(name))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HostId {
    type Error = InvalidHostId;

    fn try_from(name: String) -> Result<Self, InvalidHostId> {
        Self::new(name)
    }
}

impl FromStr for HostId {
    type Err = InvalidHostId;

    fn from_str(name: &str) -> Result<Self, InvalidHostId> {
        Self::new(name)
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> Self {
        id.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A virtual machine: its libvirt UUID, which survives renames and migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String))]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl VmId {
    /// An identity made from bits, of which a UUID of version 8 (RFC 9562) keeps 122: for VMs that Gnomon makes itself.
    pub fn made_of(high: u64, low: u64) -> Self {
        let high = (high & !0xf000) | 0x8000;
        let low = (low & !(0b11 << 62)) | (0b10 << 62);
        Self(Uuid::from_u64_pair(high, low))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VmId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// One life of an agent process: persisted, and raised at every start, to the second since 1970 or beyond, so that an agent that lost
/// what it persisted still gets one never used before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentEpoch(pub u64);

/// A report's number within its agent epoch, from 1 without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// A command's identity, unique for ever: the brain's lease term and a number within it. Written `TERM-NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId {
    /// The lease term of the brain that issued it.
    pub term: u64,
    /// Counts within the term, from 1.
    pub number: u64,
}

impl CommandId {
    /// No brain has this lease term: ids of what an agent does of its own accord. Their numbers begin with the agent's epoch, so that
    /// they are unique on their host.
    pub const LOCAL_TERM: u64 = 0;

    /// The `count`-th act that an agent of this epoch does of its own accord.
    pub fn local(epoch: AgentEpoch, count: u32) -> Self {
        Self { term: Self::LOCAL_TERM, number: epoch.0.saturating_mul(1 << 20).saturating_add(count.into()) }
    }

    /// Whether no brain asked for it.
    pub fn is_local(self) -> bool {
        self.term == Self::LOCAL_TERM
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.number)
    }
}

/// Text that is not `TERM-NUMBER`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("command id {0:?} is not TERM-NUMBER, like 3-17")]
pub struct InvalidCommandId(pub String);

impl FromStr for CommandId {
    type Err = InvalidCommandId;

    fn from_str(text: &str) -> Result<Self, InvalidCommandId> {
        let invalid = || InvalidCommandId(text.to_string());
        let (term, number) = text.split_once('-').ok_or_else(invalid)?;
        Ok(Self { term: term.parse().map_err(|_| invalid())?, number: number.parse().map_err(|_| invalid())? })
    }
}

// People and programs meet the id as text (`3-17`); on the wire it is two integers.
impl Serialize for CommandId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.term, self.number).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for CommandId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <(u64, u64)>::deserialize(deserializer).map(|(term, number)| Self { term, number })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_that_could_not_stand_in_a_certificate_are_refused() {
        for bad in ["", "-a", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(HostId::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(HostId::new("host-1.rack2").unwrap().as_str(), "host-1.rack2");
    }

    #[test]
    fn command_ids_round_trip_as_text() {
        let id = CommandId { term: 3, number: 17 };
        assert_eq!(id.to_string().parse::<CommandId>().unwrap(), id);
        assert!("3".parse::<CommandId>().is_err());
        assert!("3-x".parse::<CommandId>().is_err());
    }
}
