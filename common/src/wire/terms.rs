//! What may be done to a VM by the word of its owner, in the metadata of its libvirt domain, and by its definition.

use super::{Labels, Mode};
use serde::{Deserialize, Serialize};
use std::string::String;

/// Longest name of a group, in bytes.
pub const TERM_BYTES_MAX: usize = 64;

/// The terms of one VM. By default everything that policy allows may be done.
///
/// The owner's are attributes of one element of the domain's metadata:
/// `<gnomon:policy xmlns:gnomon="urn:gnomon:policy:1" mode="observe" migrate="no" apart="db"/>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmTerms {
    /// `mode="observe"`, `"recommend"`, `"approve"`, `"auto"`: no more is done with plans for it than this, whatever policy and operators say. With
    /// `observe` nothing is done to it at all. `None` leaves that to them.
    pub mode: Option<Mode>,
    /// `migrate="no"`: it stays on its host.
    pub stays: bool,
    /// `apart="GROUP"`: no two VMs of this group on one host.
    pub apart: Option<String>,
    /// `apart_zones="GROUP"`: no two VMs of this group in one zone; hosts that name none are one zone together.
    pub apart_zones: Option<String>,
    /// `together="GROUP"`: VMs of this group on one host.
    pub together: Option<String>,
    /// `labels="NAME=VALUE,…"`: only hosts that have all of these are for it, and for its shadow.
    pub labels: Labels,
    /// `shadow="yes"`, `shadow="no"`: it is to have a shadow, or none; `None` leaves that to policy.
    pub shadow: Option<bool>,
    /// `copy_disks="yes"`, `copy_disks="no"`: its disks that have no base may be copied for its shadow, or not; `None` leaves that to policy.
    pub copy_disks: Option<bool>,
    /// What in its definition binds it to its host (a device passed through, CPUs or memory pinned), for a person; `None` where nothing
    /// does.
    pub bound: Option<String>,
    /// What in its metadata is not understood, for a person. Then its mode is `observe`: its owner wanted something.
    pub misunderstood: Option<String>,
}

/// Why a term is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{attribute}=\"{value}\" is not one of: {expected}")]
pub struct InvalidTerm {
    /// Which attribute.
    pub attribute: String,
    /// What it says.
    pub value: String,
    /// What it may say.
    pub expected: &'static str,
}

impl VmTerms {
    /// What may be done at most with plans for the VM.
    pub fn mode_max(&self) -> Mode {
        if self.misunderstood.is_some() { Mode::Observe } else { self.mode.unwrap_or(Mode::Auto) }
    }

    /// Whether nothing may be done to the VM.
    pub fn hands_off(&self) -> bool {
        self.mode_max() == Mode::Observe
    }

    /// Why the VM must stay on its host, for a person; `None` where it may be moved.
    pub fn stays_because(&self) -> Option<&str> {
        match (&self.misunderstood, &self.bound) {
            _ if self.mode == Some(Mode::Observe) => Some("its owner keeps Gnomon's hands off it"),
            (Some(misunderstood), _) => Some(misunderstood),
            _ if self.stays => Some("its owner wants it to stay"),
            (None, bound) => bound.as_deref(),
        }
    }

    /// Takes one attribute of the owner's element.
    ///
    /// # Errors
    /// It is unknown, or says what it cannot say.
    pub fn take(&mut self, attribute: &str, value: &str) -> Result<(), InvalidTerm> {
        let invalid = |expected| InvalidTerm { attribute: attribute.into(), value: value.into(), expected };
        match attribute {
            "mode" => self.mode = Some(value.parse().map_err(|_| invalid(Mode::NAMES))?),
            "migrate" => match value {
                "yes" => self.stays = false,
                "no" => self.stays = true,
                _ => return Err(invalid("yes, no")),
            },
            "shadow" => match value {
                "yes" => self.shadow = Some(true),
                "no" => self.shadow = Some(false),
                _ => return Err(invalid("yes, no")),
            },
            "copy_disks" => match value {
                "yes" => self.copy_disks = Some(true),
                "no" => self.copy_disks = Some(false),
                _ => return Err(invalid("yes, no")),
            },
            "apart" => self.apart = Some(group(value).ok_or_else(|| invalid(GROUP))?),
            "apart_zones" => self.apart_zones = Some(group(value).ok_or_else(|| invalid(GROUP))?),
            "labels" => self.labels = value.parse().map_err(|_| invalid(LABELS))?,
            "together" => self.together = Some(group(value).ok_or_else(|| invalid(GROUP))?),
            _ => {
                return Err(invalid(
                    "the attributes mode, migrate, shadow, copy_disks, apart, apart_zones, together, labels",
                ));
            }
        }
        Ok(())
    }
}

const LABELS: &str = "labels as in \"disk=nvme,room=7\"";

const GROUP: &str = "a group's name of 1 to 64 bytes";

fn group(name: &str) -> Option<String> {
    (1..=TERM_BYTES_MAX).contains(&name.len()).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn what_is_not_understood_keeps_hands_off() {
        let mut terms = VmTerms::default();
        assert!(!terms.hands_off() && terms.stays_because().is_none());
        assert!(terms.take("mode", "observer").is_err() && terms.take("migrates", "no").is_err());
        for attribute in ["apart", "apart_zones", "together"] {
            assert!(terms.take(attribute, "").is_err() && terms.take(attribute, &"x".repeat(65)).is_err());
        }
        assert_eq!(terms, VmTerms::default());
        terms.misunderstood = Some("mode=observer".into());
        assert!(terms.hands_off());
        assert_eq!(terms.stays_because(), Some("mode=observer"));
    }

    #[test]
    fn a_mode_is_one_of_four_words_and_only_the_most_cautious_keeps_hands_off() {
        let mut terms = VmTerms::default();
        assert_eq!(terms.mode_max(), Mode::Auto);
        for mode in [Mode::Observe, Mode::Recommend, Mode::Approve, Mode::Auto] {
            terms.take("mode", mode.name()).unwrap();
            assert_eq!((terms.mode_max(), terms.hands_off()), (mode, mode == Mode::Observe));
        }
        let error = terms.take("mode", "sometimes").unwrap_err();
        assert_eq!(error.to_string(), "mode=\"sometimes\" is not one of: observe, recommend, approve, auto");
        terms.misunderstood = Some("mode=sometimes".into());
        assert!(terms.hands_off());
    }

    #[test]
    fn whether_disks_may_be_copied_is_one_of_two_words() {
        let mut terms = VmTerms::default();
        for (value, copy) in [("yes", Some(true)), ("no", Some(false))] {
            terms.take("copy_disks", value).unwrap();
            assert_eq!(terms.copy_disks, copy);
        }
        assert!(terms.take("copy_disks", "maybe").is_err());
    }

    #[test]
    fn labels_that_are_none_are_not_understood() {
        let mut terms = VmTerms::default();
        terms.take("labels", "disk=nvme,room=7").unwrap();
        assert_eq!(terms.labels.to_string(), "disk=nvme,room=7");
        let error = terms.take("labels", "nvme").unwrap_err();
        assert_eq!(error.to_string(), "labels=\"nvme\" is not one of: labels as in \"disk=nvme,room=7\"");
    }

    #[test]
    fn an_owner_s_word_and_a_definition_keep_a_vm_where_it_is() {
        let mut terms = VmTerms::default();
        terms.take("migrate", "no").unwrap();
        terms.take("apart", "db").unwrap();
        assert_eq!(terms.stays_because(), Some("its owner wants it to stay"));
        assert!(!terms.hands_off() && terms.apart.as_deref() == Some("db"));
        let bound = VmTerms { bound: Some("hostdev pci".into()), ..VmTerms::default() };
        assert_eq!(bound.stays_because(), Some("hostdev pci"));
    }
}
