//! Where a VM is after its migration has ended, however it did. Pure.
//!
//! At no time may two copies run. The copy here was stopped before the one there could run, so that the only way to two is to let the one here
//! run again: that takes proof that there is none there, and never was: what ran there has changed its disks since. No answer is no proof, and
//! neither is a copy that stands still there, or one that is shut off: a target is told to define it only as it begins to run it.

use crate::host::libvirt::migration::Standing;

/// What is to be concluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is here, running or stopped by someone else.
    Here,
    /// It stands still here, and the other host does not know it: it may run on, unless it was seen there before.
    Resume,
    /// It is on the other host, and not here.
    Moved,
    /// It is nowhere: its guest has shut down, or its processes were killed.
    Gone,
    /// It stands still here, and it is not known, or not so, that the other host has none.
    StandsStill,
    /// This host cannot be asked, or it is gone here and the other host does not say yet that it has it.
    Unknown,
}

/// Concludes from where it stands on both hosts; `None` where a host cannot be asked. There must be no migration under way any more.
pub(super) fn ending(here: Option<Standing>, there: Option<Standing>) -> Ending {
    match (here, there) {
        (None, _) => Ending::Unknown,
        (Some(Standing::Active | Standing::Stopped { by_migration: false }), _) => Ending::Here,
        (Some(Standing::Stopped { by_migration: true }), Some(Standing::Absent)) => Ending::Resume,
        (Some(Standing::Stopped { by_migration: true }), _) => Ending::StandsStill,
        (Some(Standing::Off | Standing::Absent), Some(there)) if has_run(there) && there != Standing::Off => {
            Ending::Moved
        }
        (Some(Standing::Off | Standing::Absent), Some(Standing::Off | Standing::Absent)) => Ending::Gone,
        // Still being received, so it seems: its libvirt will give that up.
        (Some(Standing::Off | Standing::Absent), _) => Ending::Unknown,
    }
}

/// Whether how it stands on the other host shows that it ran there: a copy here is older than that one's disks.
pub(super) fn has_run(there: Standing) -> bool {
    matches!(there, Standing::Active | Standing::Off | Standing::Stopped { by_migration: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDINGS: [Option<Standing>; 6] = [
        None,
        Some(Standing::Active),
        Some(Standing::Stopped { by_migration: true }),
        Some(Standing::Stopped { by_migration: false }),
        Some(Standing::Off),
        Some(Standing::Absent),
    ];

    #[test]
    fn it_is_resumed_only_if_a_migration_stopped_it_and_the_other_host_says_that_it_has_none() {
        for here in STANDINGS {
            for there in STANDINGS {
                let proven = here == Some(Standing::Stopped { by_migration: true }) && there == Some(Standing::Absent);
                assert_eq!(ending(here, there) == Ending::Resume, proven, "{here:?} {there:?}");
            }
        }
    }

    #[test]
    fn it_has_moved_only_if_it_is_gone_here_and_there_is_a_copy_there_that_is_not_being_received() {
        for here in STANDINGS {
            for there in STANDINGS {
                let there_for_good =
                    matches!(there, Some(Standing::Active | Standing::Stopped { by_migration: false }));
                let moved = matches!(here, Some(Standing::Off | Standing::Absent)) && there_for_good;
                assert_eq!(ending(here, there) == Ending::Moved, moved, "{here:?} {there:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_asked_is_not_guessed() {
        assert_eq!(ending(None, Some(Standing::Absent)), Ending::Unknown);
        assert_eq!(ending(Some(Standing::Absent), None), Ending::Unknown);
        assert_eq!(ending(Some(Standing::Stopped { by_migration: true }), None), Ending::StandsStill);
        assert_eq!(ending(Some(Standing::Absent), Some(Standing::Absent)), Ending::Gone);
        assert_eq!(ending(Some(Standing::Active), None), Ending::Here);
    }
}
