//! Work that takes longer than [`Core::handle`](crate::Core::handle) may: pure jobs, for any thread.

use crate::core::{Learnt, Lecture};
use crate::forecast::{Refit, Refitted};
use crate::pattern::{Look, Looked};

/// A pure piece of work: run it on any thread and bring the result back as [`Input::FitDone`](crate::Input::FitDone).
#[derive(Clone, Debug)]
pub struct FitJob(pub(crate) Job);

/// What a [`FitJob`] found.
#[derive(Clone, Debug)]
pub struct FitResult(pub(crate) Done);

#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// The near forecast of a VM.
    Refit(Refit),
    /// A look at a VM's long history.
    Look(Box<Look>),
    /// The model that sizes the fleet.
    Train(Lecture),
}

#[derive(Clone, Debug)]
pub(crate) enum Done {
    Refit(Box<Refitted>),
    Look(Box<Looked>),
    Train(Learnt),
}

impl FitJob {
    /// Does the work. Deterministic. Milliseconds to tens of them; training the fleet's model, once a day, takes some seconds.
    pub fn run(self) -> FitResult {
        FitResult(match self.0 {
            Job::Refit(refit) => Done::Refit(Box::new(refit.run())),
            Job::Look(look) => Done::Look(Box::new(look.run())),
            Job::Train(lecture) => Done::Train(lecture.run()),
        })
    }
}
