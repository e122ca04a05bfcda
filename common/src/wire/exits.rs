//! Why a VM's vCPUs left their guest.

use super::report::is_quantity;
pub use crate::abi::exits::{EXIT_REASONS, ExitReason};
use serde::{Deserialize, Serialize};

/// What one kind of exits did in a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ExitShare {
    /// Why.
    pub reason: ExitReason,
    /// How often, per second, all vCPUs together.
    pub exits_per_s: f64,
    /// vCPUs that were away from the guest for it, on average over the window: of a halt, those that had nothing to do.
    pub away_vcpus: f64,
}

impl ExitShare {
    /// Whether these can be the shares of a window: each reason at most once, nothing negative or infinite.
    pub fn are_sane(shares: &[Self]) -> bool {
        shares.windows(2).all(|pair| pair[0].reason < pair[1].reason)
            && shares.iter().all(|share| is_quantity(share.exits_per_s) && is_quantity(share.away_vcpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_twice_and_what_is_no_quantity_are_not_sane() {
        let share = |reason, away_vcpus| ExitShare { reason, exits_per_s: 1.0, away_vcpus };
        assert!(ExitShare::are_sane(&[share(ExitReason::Halt, 0.5), share(ExitReason::Io, 0.0)]));
        assert!(!ExitShare::are_sane(&[share(ExitReason::Halt, 0.5), share(ExitReason::Halt, 0.0)]));
        assert!(!ExitShare::are_sane(&[share(ExitReason::Halt, f64::NAN)]));
        assert!(!ExitShare::are_sane(&[share(ExitReason::Halt, -1.0)]));
    }
}
