//! Who may connect: enrolment tokens, the certificates issued, and the hosts whose certificates no longer count.
//!
//! ```text
//! token:  created --> spent (a host joined) | revoked | expired
//! host:   joined --> renews, renews, ... --> revoked: everything issued so far is void --> joins again with a new token
//! ```
//! A revocation is an instant, not a state: certificates issued up to it are void for ever, so that a copied key stays
//! void when the host has come back. The commands `gnomon-brain token` and `gnomon-brain host` change the same database
//! that a running brain reads; every change is one transaction together with its line in the audit log.

use super::{Pending, StoreError};
use crate::ca::Serial;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{EnrolRefusal, HostId, TokenId};
use gnomon_core::Audit;
use std::collections::BTreeMap;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// A token as the store has it: without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredToken {
    /// Which.
    pub id: TokenId,
    /// The host that it is good for.
    pub host: HostId,
    /// SHA-256 of its secret.
    pub secret_sha256: [u8; 32],
    /// When it was made.
    pub created: Timestamp,
    /// Until when it is good.
    pub expires: Timestamp,
    /// When a host joined with it.
    pub spent: Option<Timestamp>,
    /// When an operator took it back.
    pub revoked: Option<Timestamp>,
}

impl StoredToken {
    /// Whether a secret with this hash is this token's. The time taken tells nothing of how near a guess came.
    pub fn is_proved_by(&self, secret_sha256: &[u8; 32]) -> bool {
        self.secret_sha256.ct_eq(secret_sha256).into()
    }

    /// Whether the bearer, who has proved to have it, may let `host` in now.
    pub fn admits(&self, host: &HostId, now: Timestamp) -> Result<(), EnrolRefusal> {
        if self.host != *host {
            Err(EnrolRefusal::OtherHost)
        } else if self.revoked.is_some() {
            Err(EnrolRefusal::Revoked)
        } else if self.spent.is_some() {
            Err(EnrolRefusal::Spent)
        } else if self.expires <= now {
            Err(EnrolRefusal::Expired)
        } else {
            Ok(())
        }
    }
}

/// A certificate that a running brain issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCertificate {
    /// Which.
    pub serial: Serial,
    /// For whom.
    pub host: HostId,
    /// When.
    pub issued: Timestamp,
    /// Until when it is valid.
    pub expires: Timestamp,
}

/// What the store knows of a certificate that somebody shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// When it was issued; `None` for one issued by hand.
    pub issued: Option<Timestamp>,
    /// When its host was last revoked.
    pub revoked: Option<Timestamp>,
}

impl Standing {
    /// When the certificate became void, if it did.
    pub fn void_since(self) -> Option<Timestamp> {
        self.revoked.filter(|revoked| self.issued.is_none_or(|issued| issued <= *revoked))
    }
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The new certificate is in the list.
    Done,
    /// The certificate shown is void since then.
    Void(Timestamp),
    /// The host has got one this little time ago.
    TooSoon(Duration),
}

/// What a running brain asks and tells the store about admissions.
pub trait Admissions: Send + Sync + 'static {
    /// A token, if there is one of that id.
    fn token(&self, id: TokenId) -> Pending<'_, Option<StoredToken>>;

    /// Spends a token for this certificate, unless the token has been spent, revoked or become too old meanwhile; then
    /// nothing is written and the answer is `false`.
    fn enrol<'a>(&'a self, token: TokenId, certificate: &'a StoredCertificate, line: &'a Audit) -> Pending<'a, bool>;

    /// Lists the next certificate of a host that showed `shown`, unless that is void, or the host's last one is younger
    /// than `interval_min`.
    fn renew<'a>(
        &'a self,
        shown: &'a Serial,
        certificate: &'a StoredCertificate,
        interval_min: Duration,
        line: &'a Audit,
    ) -> Pending<'a, Renewal>;

    /// What is known of a certificate.
    fn standing<'a>(&'a self, host: &'a HostId, shown: &'a Serial) -> Pending<'a, Standing>;

    /// Every host that was ever revoked, and when last.
    fn revocations(&self) -> Pending<'_, BTreeMap<HostId, Timestamp>>;

    /// A certificate of this revoked host was turned away. The first time since the revocation, `line` goes into the
    /// audit log and the answer is `true`.
    fn turn_away<'a>(&'a self, host: &'a HostId, line: &'a Audit) -> Pending<'a, bool>;
}

/// What the operator's commands do to admissions.
pub trait AdmissionsOffice: Send + Sync + 'static {
    /// Keeps a new token.
    fn create_token<'a>(&'a self, token: &'a StoredToken, line: &'a Audit) -> Pending<'a, ()>;

    /// All tokens, newest first.
    fn tokens(&self) -> Pending<'_, Vec<StoredToken>>;

    /// Takes a token back; returns it as it was before, and writes nothing if it was of no use any more.
    fn revoke_token<'a>(&'a self, id: TokenId, at: Timestamp, line: &'a Audit) -> Pending<'a, Option<StoredToken>>;

    /// Makes everything void that lets this host in: its certificates and its unspent tokens.
    fn revoke_host<'a>(&'a self, host: &'a HostId, at: Timestamp, line: &'a Audit) -> Pending<'a, Revoked>;

    /// The newest certificate of every host that got one, and when the host was revoked, by name.
    fn hosts(&self) -> Pending<'_, Vec<(StoredCertificate, Option<Timestamp>)>>;
}

/// What a host's revocation met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The brain had seen the host, or had issued it a certificate.
    pub known: bool,
    /// Unspent tokens taken back with it.
    pub tokens: u64,
}

/// The failure of a stored value that no release wrote.
pub(super) fn corrupt(what: &'static str) -> StoreError {
    StoreError::Other(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Timestamp {
        Timestamp::from_unix_ms(s * 1000)
    }

    fn token() -> StoredToken {
        let host = HostId::new("a").unwrap();
        let (created, expires) = (at(100), at(200));
        StoredToken { id: TokenId([1; 8]), host, secret_sha256: [7; 32], created, expires, spent: None, revoked: None }
    }

    #[test]
    fn a_token_is_good_for_its_host_its_time_and_once() {
        let (host, other) = (HostId::new("a").unwrap(), HostId::new("b").unwrap());
        assert_eq!(token().admits(&host, at(199)), Ok(()));
        assert_eq!(token().admits(&host, at(200)), Err(EnrolRefusal::Expired));
        assert_eq!(token().admits(&other, at(150)), Err(EnrolRefusal::OtherHost));
        let spent = StoredToken { spent: Some(at(120)), ..token() };
        assert_eq!(spent.admits(&host, at(150)), Err(EnrolRefusal::Spent));
        let revoked = StoredToken { revoked: Some(at(120)), ..token() };
        assert_eq!(revoked.admits(&host, at(150)), Err(EnrolRefusal::Revoked));
        assert!(token().is_proved_by(&[7; 32]) && !token().is_proved_by(&[8; 32]));
    }

    #[test]
    fn a_revocation_voids_what_was_issued_before_it_and_what_is_in_no_list_but_nothing_later() {
        let standing = |issued: Option<u64>, revoked: Option<u64>| {
            Standing { issued: issued.map(at), revoked: revoked.map(at) }.void_since()
        };
        assert_eq!(standing(Some(5), None), None);
        assert_eq!(standing(None, None), None);
        assert_eq!(standing(Some(5), Some(6)), Some(at(6)));
        assert_eq!(standing(Some(6), Some(6)), Some(at(6)));
        assert_eq!(standing(None, Some(6)), Some(at(6)));
        assert_eq!(standing(Some(7), Some(6)), None);
    }
}
