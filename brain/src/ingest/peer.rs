//! Who is at the other end, once TLS is done: an agent with a certificate, a host that wants to join, or nobody.

use super::close::{CloseCode, Ending};
use crate::ca::{self, Identity};
use gnomon_common::wire::{ALPN, ENROL_ALPN};
use quinn::Connection;
use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use std::any::Any;

/// What a connection may do.
pub(super) enum Peer {
    /// An agent, which showed this certificate of our CA.
    Agent(Identity),
    /// Somebody who may have a token.
    Joining,
}

impl Peer {
    /// Looks at a connection. TLS itself asks for a certificate and verifies it, but lets those pass who show none,
    /// because joining needs none: this is where every other protocol demands one.
    pub(super) fn of(connection: &Connection) -> Result<Self, Ending> {
        if connection.handshake_data().is_some_and(|data| speaks(&*data, ENROL_ALPN)) {
            return Ok(Self::Joining);
        }
        let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = identity.as_deref().and_then(|chain| chain.first());
        let leaf = leaf.ok_or_else(|| {
            let protocol = String::from_utf8_lossy(ALPN);
            Ending::new(CloseCode::Identity, format!("no client certificate, which {protocol} demands"))
        })?;
        let identity = ca::identity(leaf).map_err(|error| Ending::new(CloseCode::Identity, error.to_string()))?;
        Ok(Self::Agent(identity))
    }
}

/// Whether a handshake has agreed on this application protocol.
pub(super) fn speaks(handshake: &dyn Any, alpn: &[u8]) -> bool {
    handshake.downcast_ref::<HandshakeData>().is_some_and(|data| data.protocol.as_deref() == Some(alpn))
}
