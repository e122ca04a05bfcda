//! What this brain is to its fleet: its leader, or one that stands by.

use crate::drive::DriveHandle;

/// What a brain does at the moment.
#[derive(Clone)]
pub enum Role {
    /// It begins, ends or changes its lease term.
    Between,
    /// Another brain leads: agents and people are sent there.
    StandingBy {
        /// The other's name.
        leader: String,
    },
    /// It leads, by this loop.
    Leading(DriveHandle),
}

impl Role {
    /// What is said to those who want something of a leader.
    pub(crate) fn excuse(&self) -> String {
        match self {
            Self::StandingBy { leader } => format!("this brain stands by: {leader} leads; ask there"),
            Self::Between | Self::Leading(_) => "the brain is starting or stopping; try again".to_owned(),
        }
    }
}
