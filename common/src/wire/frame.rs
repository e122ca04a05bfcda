//! Bytes <-> messages: a 4-byte little-endian length, then that many bytes of bincode 2 (standard configuration).
//!
//! This is the only module that names bincode. It neither reads nor writes sockets: callers hand it bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::string::{String, ToString};
use std::vec::Vec;

/// The largest payload either side sends or accepts: 4 MiB, room for a report of about 10,000 VMs.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The prefix announces more than [`FRAME_BYTES_MAX`].
    #[error("frame of {announced} bytes is over the limit of {FRAME_BYTES_MAX} bytes")]
    TooLarge {
        /// What the prefix announced, or what encoding produced.
        announced: usize,
    },
    /// More than [`WIDE_BYTES_MAX`].
    #[error("message of {0} bytes is over the limit of {WIDE_BYTES_MAX} bytes")]
    TooWide(usize),
    /// The payload is not the expected message.
    #[error("frame does not decode: {0}")]
    Malformed(String),
    /// The payload holds the expected message and something behind it.
    #[error("frame has {0} bytes too many behind its message")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    // The limit bounds what a hostile length inside the payload can make the decoder allocate.
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// The largest message of [`encode_wide`]: 8 MiB, room for what an agent reads at once of the 512 VMs that it can measure.
pub const WIDE_BYTES_MAX: usize = 8 << 20;

fn wide_config() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<WIDE_BYTES_MAX>()
}

/// Encodes a message without a prefix and every number at its full width, so that a message that is much like another has most bytes at the
/// same places. For what is compressed, and never for the wire.
pub fn encode_wide<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes =
        bincode::serde::encode_to_vec(message, wide_config()).map_err(|e| FrameError::Malformed(e.to_string()))?;
    if bytes.len() > WIDE_BYTES_MAX { Err(FrameError::TooWide(bytes.len())) } else { Ok(bytes) }
}

/// Decodes what [`encode_wide`] made, which must be exactly one message.
pub fn decode_wide<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode_with(bytes, wide_config())
}

/// Encodes a message with its length prefix.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::from([0; PREFIX_BYTES]);
    bincode::serde::encode_into_std_write(message, &mut bytes, config())
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    let payload = bytes.len() - PREFIX_BYTES;
    if payload > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { announced: payload });
    }
    let length = u32::try_from(payload).map_err(|_| FrameError::TooLarge { announced: payload })?;
    bytes[..PREFIX_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The payload's length, from a prefix; refused when over the limit, before anything is allocated for it.
pub fn payload_len(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let announced = u32::from_le_bytes(prefix) as usize;
    if announced > FRAME_BYTES_MAX { Err(FrameError::TooLarge { announced }) } else { Ok(announced) }
}

/// Decodes a payload (without its prefix), which must hold exactly one message.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    decode_with(payload, config())
}

fn decode_with<T: DeserializeOwned>(bytes: &[u8], config: impl bincode::config::Config) -> Result<T, FrameError> {
    let (message, used) =
        bincode::serde::decode_from_slice(bytes, config).map_err(|e| FrameError::Malformed(e.to_string()))?;
    if used == bytes.len() { Ok(message) } else { Err(FrameError::Trailing(bytes.len() - used)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{AgentEpoch, Sequence};
    use crate::wire::{AgentMessage, BrainMessage, Report, ReportAck};
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_round_trip() {
        let ack = ReportAck { epoch: AgentEpoch(3), sequence: Sequence(70_000) };
        let bytes = encode(&ack).unwrap();
        let length = payload_len(bytes[..PREFIX_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - PREFIX_BYTES);
        assert_eq!(decode::<ReportAck>(&bytes[PREFIX_BYTES..]).unwrap(), ack);
    }

    #[test]
    fn an_oversized_announcement_is_refused_before_it_is_read() {
        let error = payload_len(u32::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { announced: u32::MAX as usize });
    }

    #[test]
    fn wide_messages_that_differ_in_a_number_differ_in_its_bytes_alone() {
        let bytes = |sequence| encode_wide(&ReportAck { epoch: AgentEpoch(3), sequence: Sequence(sequence) }).unwrap();
        let differing = bytes(70_000).iter().zip(bytes(3)).filter(|(one, other)| **one != *other).count();
        assert_eq!((bytes(3).len(), differing), (16, 3));
        assert_eq!(decode_wide::<ReportAck>(&bytes(9)).unwrap().sequence, Sequence(9));
        assert_eq!(decode_wide::<Sequence>(&bytes(9)), Err(FrameError::Trailing(8)));
        assert!(matches!(encode_wide(&"x".repeat(WIDE_BYTES_MAX)), Err(FrameError::TooWide(_))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&Sequence(1)).unwrap();
        bytes.push(0);
        assert_eq!(decode::<Sequence>(&bytes[PREFIX_BYTES..]), Err(FrameError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<AgentMessage>(&bytes);
            let _ = decode::<BrainMessage>(&bytes);
            let _ = decode::<Report>(&bytes);
            let _ = decode::<ReportAck>(&bytes);
        }
    }
}
