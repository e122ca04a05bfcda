//! How connections end: codes for programs, reasons for people, kinds for metrics.

use gnomon_common::wire::RefusalCode;
use quinn::{ConnectionError, VarInt};

/// Longest reason phrase in a close frame.
const REASON_BYTES_MAX: usize = 512;

/// The application close codes of `gnomon/1`. The reason phrase beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The peer is done.
    Done = 0,
    /// No protocol version in common.
    Version = 1,
    /// The certificate does not name the host.
    Identity = 2,
    /// A message that does not decode, is too large, late or out of order.
    Malformed = 3,
    /// The brain cannot serve this agent now.
    Busy = 4,
    /// A newer connection of the same host took over.
    Replaced = 5,
    /// Three heart-beats were missed.
    Silent = 6,
    /// The brain stops, or takes a new lease term: connect again.
    Stopping = 7,
    /// The host's certificate was revoked.
    Revoked = 8,
    /// The certificate has ended while the connection stood.
    Expired = 9,
}

impl CloseCode {
    /// For QUIC.
    pub fn var_int(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// The metric's label.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Version => "version",
            Self::Identity => "identity",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
            Self::Replaced => "replaced",
            Self::Silent => "silent",
            Self::Stopping => "stopping",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

    /// What the control stream says before the connection closes, where it says anything.
    pub fn refusal(self) -> Option<RefusalCode> {
        match self {
            Self::Version => Some(RefusalCode::Version),
            Self::Identity => Some(RefusalCode::Identity),
            Self::Malformed => Some(RefusalCode::Malformed),
            Self::Busy => Some(RefusalCode::Busy),
            Self::Revoked => Some(RefusalCode::Revoked),
            Self::Expired => Some(RefusalCode::Expired),
            Self::Done | Self::Replaced | Self::Silent | Self::Stopping => None,
        }
    }
}

/// A connection that is ending: with which code, and why in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Ending {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

impl Ending {
    pub(crate) fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// The reason phrase for a close frame, which must fit into one packet.
    pub(crate) fn reason_bytes(&self) -> &[u8] {
        &self.reason.as_bytes()[..self.reason.floor_char_boundary(REASON_BYTES_MAX)]
    }
}

/// Names why a handshake failed. TLS alerts travel in QUIC's crypto error codes, 0x100 + alert (RFC 9001, section 4.8).
pub(crate) fn handshake_kind(error: &ConnectionError) -> &'static str {
    const CRYPTO: u64 = 0x100;
    // TLS alerts, RFC 8446 section 6.2.
    const NO_APPLICATION_PROTOCOL: u64 = 120;
    const CERTIFICATE_REQUIRED: u64 = 116;
    const BAD_CERTIFICATE: u64 = 42;
    const UNKNOWN_CA: u64 = 48;
    const DECRYPT_ERROR: u64 = 51;
    match error {
        ConnectionError::TransportError(error) => match u64::from(error.code).checked_sub(CRYPTO) {
            Some(NO_APPLICATION_PROTOCOL) => "protocol",
            Some(BAD_CERTIFICATE..=UNKNOWN_CA | DECRYPT_ERROR | CERTIFICATE_REQUIRED) => "certificate",
            Some(alert) if alert < CRYPTO => "tls",
            _ => "transport",
        },
        ConnectionError::VersionMismatch => "quic_version",
        ConnectionError::TimedOut => "handshake_timeout",
        // The client saw our certificate and did not like it, or gave up.
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => {
            "closed_by_peer"
        }
        ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => "internal",
    }
}
