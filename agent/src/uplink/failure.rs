//! Why a connection was not made or has ended: for people, for metrics, and for the peer.

use super::framing::FramingError;
use super::outbox::NotAwaited;
use gnomon_common::wire::RefusalCode;
use gnomon_common::wire::frame::FrameError;
use quinn::{ConnectError, ConnectionError, ReadError, ReadExactError, VarInt, WriteError};

/// QUIC's error codes of TLS alerts are 0x100 plus the alert (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// The alert `certificate_expired` among them (RFC 8446, section 6.2).
const ALERT_CERTIFICATE_EXPIRED: u64 = 0x100 + 45;

/// The agent's application close codes: the numbers the brain uses for the same.
const CLOSE_DONE: u32 = 0;
const CLOSE_MALFORMED: u32 = 3;
const CLOSE_SILENT: u32 = 6;

/// Longest reason phrase of a close: it has to fit into one packet.
const REASON_BYTES_MAX: usize = 512;

/// Why a session ended, or never began.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The brain's name does not resolve.
    #[error("cannot resolve {address}: {source}")]
    Resolve { address: String, source: std::io::Error },
    /// No socket, or a server name that cannot be one.
    #[error("cannot begin to connect: {0}")]
    Socket(#[from] std::io::Error),
    /// The connection cannot be attempted.
    #[error("cannot begin to connect: {0}")]
    Connect(#[from] ConnectError),
    /// No answer in time.
    #[error("no answer from the brain within {} s while {during}", .limit.as_secs())]
    Timeout { during: &'static str, limit: std::time::Duration },
    /// The connection was lost, refused by TLS, or closed by the brain.
    #[error("{}", explain(.0))]
    Connection(#[from] ConnectionError),
    /// The brain said no.
    #[error("the brain refuses this agent ({code:?}): {reason}")]
    Refused { code: RefusalCode, reason: String },
    /// Three heart-beats were missed.
    #[error("three heart-beats of the brain were missed")]
    Silent,
    /// The brain sent bytes that are no message.
    #[error("the brain sent an invalid frame: {0}")]
    Frame(#[from] FrameError),
    /// The brain said something out of order.
    #[error("the brain broke the protocol: {0}")]
    Protocol(&'static str),
    /// The brain speaks a version it was not offered.
    #[error("the brain wants to speak version {0}, which it was not offered")]
    Version(u16),
    /// The brain acknowledged what was not sent, or not on that stream.
    #[error(transparent)]
    NotAwaited(#[from] NotAwaited),
    /// The brain takes no reports.
    #[error("the brain takes reports more slowly than they are made; what waits goes by the spool")]
    Stalled,
    /// A stream was ended or stopped while the connection is up.
    #[error("the brain ended the {0} stream")]
    StreamEnded(&'static str),
    /// There is no identity to connect with.
    #[error(transparent)]
    Identity(#[from] super::identity::IdentityError),
    /// The command thread takes nothing.
    #[error("the agent's command thread takes nothing: {0}")]
    Commands(#[from] crate::command::NotTaken),
}

impl Failure {
    /// What a frame's failure on the stream `name` means.
    pub(super) fn of_stream(name: &'static str, error: FramingError) -> Self {
        match error {
            FramingError::Frame(error) => Self::Frame(error),
            FramingError::Ended(ReadExactError::ReadError(ReadError::ConnectionLost(error)))
            | FramingError::Refused(WriteError::ConnectionLost(error)) => Self::Connection(error),
            FramingError::Ended(_) | FramingError::Refused(_) => Self::StreamEnded(name),
        }
    }

    /// The metric's label.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Socket(_) | Self::Connect(_) => "socket",
            Self::Timeout { .. } => "timeout",
            Self::Connection(error) => connection_kind(error),
            Self::Refused { code: RefusalCode::Version, .. } => "refused_version",
            Self::Refused { code: RefusalCode::Identity, .. } => "refused_identity",
            Self::Refused { code: RefusalCode::Malformed, .. } => "refused_malformed",
            Self::Refused { code: RefusalCode::Busy, .. } => "refused_busy",
            Self::Refused { code: RefusalCode::Revoked, .. } => "refused_revoked",
            Self::Refused { code: RefusalCode::Expired, .. } => "refused_expired",
            Self::Identity(_) => "identity",
            Self::Silent => "silent",
            Self::Frame(FrameError::TooLarge { .. }) => "frame_too_large",
            Self::Frame(_) => "frame_malformed",
            Self::Protocol(_) | Self::Version(_) | Self::NotAwaited(_) | Self::StreamEnded(_) => "protocol",
            Self::Stalled => "stalled",
            Self::Commands(_) => "commands",
        }
    }

    /// Whether trying again soon is pointless until a person has changed something.
    pub(super) fn needs_a_person(&self) -> bool {
        matches!(
            self.kind(),
            "refused_version"
                | "refused_identity"
                | "refused_revoked"
                | "refused_expired"
                | "identity"
                | "tls"
                | "tls_peer"
        )
    }

    /// What the brain is told when the agent closes.
    pub(super) fn close(&self) -> (VarInt, String) {
        let code = match self.kind() {
            "frame_too_large" | "frame_malformed" | "protocol" => CLOSE_MALFORMED,
            "silent" => CLOSE_SILENT,
            _ => CLOSE_DONE,
        };
        let mut reason = self.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        (VarInt::from_u32(code), reason)
    }
}

/// The close of an agent that stops.
pub(super) fn close_done() -> VarInt {
    VarInt::from_u32(CLOSE_DONE)
}

fn connection_kind(error: &ConnectionError) -> &'static str {
    match error {
        ConnectionError::TransportError(error) if TLS_ALERTS.contains(&u64::from(error.code)) => "tls",
        ConnectionError::ConnectionClosed(close) if TLS_ALERTS.contains(&u64::from(close.error_code)) => "tls_peer",
        ConnectionError::ApplicationClosed(_) => "closed",
        ConnectionError::TimedOut => "timeout",
        _ => "lost",
    }
}

fn alert(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
        _ => None,
    }
}

fn explain(error: &ConnectionError) -> String {
    match connection_kind(error) {
        "tls" => format!("the brain's certificate is not accepted: {error}; check brain.ca and brain.server_name"),
        "tls_peer" if alert(error) == Some(ALERT_CERTIFICATE_EXPIRED) => format!(
            "the brain does not accept this host's certificate: {error}: it has expired, or this host's or the brain's clock is wrong; \
             to join again: `gnomon-brain token create --host NAME` there, `gnomon-agent join BRAIN TOKEN` here"
        ),
        "tls_peer" => {
            format!(
                "the brain does not accept this agent's certificate: {error}; check brain.certificate and brain.key"
            )
        }
        _ => match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason);
                format!("the brain closed the connection (code {}): {reason}", close.error_code)
            }
            other => format!("the connection was lost: {other}"),
        },
    }
}
