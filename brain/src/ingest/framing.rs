//! Frames over QUIC streams; the bytes themselves are [`gnomon_common::wire::frame`]'s.

use super::close::{CloseCode, Ending};
use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// How long a frame may take from its first byte to its last: 4 MiB at 2 Mbit/s.
const FRAME_TIMEOUT: Duration = Duration::from_secs(16);

/// Reads the next frame's payload; `None` when the stream ended between two frames.
pub(super) async fn read_payload(stream: &mut RecvStream) -> Result<Option<Vec<u8>>, Ending> {
    read_payload_within(stream, frame::FRAME_BYTES_MAX).await
}

/// The same where less than a largest frame is expected.
pub(super) async fn read_payload_within(stream: &mut RecvStream, bytes_max: usize) -> Result<Option<Vec<u8>>, Ending> {
    let mut prefix = [0; PREFIX_BYTES];
    // The first byte may take its time: it is the peer's to speak.
    match stream.read_exact(&mut prefix[..1]).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(_)) => return Ok(None),
        Err(ReadExactError::ReadError(error)) => return Err(unreadable(&error)),
    }
    let rest = async {
        stream.read_exact(&mut prefix[1..]).await.map_err(cut)?;
        let bytes = frame::payload_len(prefix).map_err(|error| Ending::new(CloseCode::Malformed, error.to_string()))?;
        if bytes > bytes_max {
            return Err(Ending::new(
                CloseCode::Malformed,
                format!("frame of {bytes} bytes is over the limit of {bytes_max}"),
            ));
        }
        let mut payload = vec![0; bytes];
        stream.read_exact(&mut payload).await.map_err(cut)?;
        Ok(Some(payload))
    };
    let late = || Ending::new(CloseCode::Malformed, format!("a frame took longer than {FRAME_TIMEOUT:?}"));
    timeout(FRAME_TIMEOUT, rest).await.unwrap_or_else(|_| Err(late()))
}

/// Decodes a payload.
pub(super) fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, Ending> {
    frame::decode(payload).map_err(|error| Ending::new(CloseCode::Malformed, error.to_string()))
}

/// Writes one message as one frame.
pub(super) async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), Ending> {
    // Ours are far below the limit: a message that does not encode is a defect of this program, not of the peer.
    let bytes = frame::encode(message).map_err(|error| Ending::new(CloseCode::Stopping, error.to_string()))?;
    stream.write_all(&bytes).await.map_err(|error| unwritable(&error))
}

fn cut(error: ReadExactError) -> Ending {
    match error {
        ReadExactError::FinishedEarly(_) => {
            Ending::new(CloseCode::Malformed, "the stream ended in the middle of a frame")
        }
        ReadExactError::ReadError(error) => unreadable(&error),
    }
}

fn unreadable(error: &ReadError) -> Ending {
    Ending::new(CloseCode::Done, error.to_string())
}

fn unwritable(error: &WriteError) -> Ending {
    Ending::new(CloseCode::Done, error.to_string())
}
