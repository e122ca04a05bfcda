//! Frames on QUIC streams: [`gnomon_common::wire::frame`] knows the bytes, this reads and writes them.
//!
//! Neither function is safe to cancel in the middle of a frame: a session that gives up on one closes its connection.

use gnomon_common::wire::frame::{self, FrameError, PREFIX_BYTES};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a frame did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramingError {
    /// The bytes are no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended within a frame, or where none may end.
    #[error("the stream ended")]
    Ended(#[source] ReadExactError),
    /// The stream does not take more.
    #[error("the stream does not take more")]
    Refused(#[from] WriteError),
}

/// Reads one message. An oversized frame is refused by its prefix, before anything is read or allocated for it.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, FramingError> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await.map_err(FramingError::Ended)?;
    let mut payload = vec![0; frame::payload_len(prefix)?];
    stream.read_exact(&mut payload).await.map_err(FramingError::Ended)?;
    Ok(frame::decode(&payload)?)
}

/// Writes one message.
pub(super) async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), FramingError> {
    Ok(stream.write_all(&frame::encode(message)?).await?)
}
