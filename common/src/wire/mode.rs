//! What is done with plans.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};
use std::string::String;

/// What Gnomon does with a plan. The smaller one is the more cautious: of all that are said of a VM it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Measure and forecast; make no plan.
    #[default]
    Observe,
    /// Make and show plans; send nothing.
    Recommend,
    /// Make plans and carry out what an operator approves of them.
    Approve,
    /// Make plans and carry them out.
    Auto,
}

/// Why a text is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of: {names}", names = Mode::NAMES)]
pub struct InvalidMode(String);

impl Mode {
    /// All of them, for a person.
    pub const NAMES: &str = "observe, recommend, approve, auto";

    /// Its name in settings and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Recommend => "recommend",
            Self::Approve => "approve",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = InvalidMode;

    fn from_str(name: &str) -> Result<Self, InvalidMode> {
        let all = [Self::Observe, Self::Recommend, Self::Approve, Self::Auto];
        all.into_iter().find(|mode| mode.name() == name).ok_or_else(|| InvalidMode(name.into()))
    }
}
