//! Gnomon's pure core: what the fleet is, what it will want, what to do about it.
//!
//! [`Core`] is sans-IO and deterministic: inputs and the time go in, outputs come out, and the same inputs give the same outputs
//! byte for byte. It never reads a clock, opens a file or socket, starts a thread, draws entropy or iterates a hash map. The
//! service (`gnomon-brain`) and the simulator (`gnomon-sim`) drive the very same `Core`. Data enters as [`Input`] (reports,
//! outcomes, operators' wishes) and leaves as [`Output`] (commands, records to persist, notices, pure fit jobs).

pub mod anomaly;
pub mod approval;
pub mod archive;
pub mod boost;
pub mod calendar;
pub mod capacity;
mod core;
mod draw;
mod fleet;
pub mod forecast;
mod history;
pub mod io;
mod job;
mod pattern;
pub mod plan;
pub mod policy;
pub mod proposal;
pub mod season;
pub mod shadow;
pub mod sizing;
pub mod view;
pub mod windows;

pub use crate::core::{Core, MoveRefusal, SetRefusal};
pub use capacity::{CapacityAnswer, CapacityKey, CapacityRefusal, CapacityRequest, CapacityState};
pub use io::{Audit, CommandRecord, Hold, Input, Lesson, Notice, OperatorRequest, Output, Record, Restored, Scope};
pub use job::{FitJob, FitResult};
pub use pattern::Corrections;
pub use plan::expectation::{Aftermath, Cost, Ending, Expectation, ExpectationState, Expected};
pub use plan::haul::MovePace;
pub use plan::{Plan, PlannedAction, Reason};
pub use policy::{Mode, Policy, PolicyError};
pub use proposal::{Proposal, ProposalKey, ProposalRefusal, ProposalState};
pub use shadow::response::{Heard, Response};
pub use shadow::size::Peaks;
pub use shadow::trial::{Level, Proposed, Trial, Verdict};
pub use shadow::{CopiesMade, Shadow, ShadowCause, ShadowRefusal, ShadowState, ShadowView};
