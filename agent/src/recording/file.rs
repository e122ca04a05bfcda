//! A recording's bytes. Pure, and no bytes make it panic.
//!
//! ```text
//! a line of text: gnomon-agent recording, format 5, by VERSION
//! frames, one for the start and one for each tick:
//! offset  bytes  little-endian
//!      0      4  length of the payload
//!      4      4  CRC-32 (IEEE) of that length and the payload
//!      8      n  payload
//! ```
//! A payload is a message at full width ([`frame::encode_wide`]), XORed with the message before it and deflated: of counters only the low bytes
//! change, and of what VMs there are nothing. A frame is written at once, so that whatever ends a recording cuts at most its last
//! frame short.

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use gnomon_common::wire::frame::{self, FrameError, WIDE_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};

/// The format that is written and read. It is raised with every change of what is kept of a tick.
const FORMAT: u32 = 5;

const TITLE: &str = "gnomon-agent recording, format ";
/// Longest first line that is looked at.
const TITLE_BYTES_MAX: usize = 128;
const HEADER_BYTES: usize = 8;

/// Why bytes are not a recording that can be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Something else.
    #[error("this is no recording: it does not begin with \"{TITLE}\"; `gnomon-agent record` makes one")]
    Foreign,
    /// Nothing was recorded yet when its writer ended.
    #[error("this recording ends at byte {0}, before its first reading: record again")]
    Empty(usize),
    /// Of another version of the agent.
    #[error(
        "this recording has format {format} and gnomon-agent {version} wrote it, this one reads format {FORMAT}: replay it with gnomon-agent {version}"
    )]
    Format {
        /// Its format.
        format: u32,
        /// Who wrote it.
        version: String,
    },
    /// It is not what was written.
    #[error("this recording is damaged at byte {offset} ({why}), which no end of its writer explains: copy it again")]
    Damaged {
        /// Where the frame begins.
        offset: usize,
        /// What is wrong.
        why: String,
    },
}

/// A last frame that was cut short: its writer was killed, or the file is still being written or copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where it begins.
    pub offset: usize,
    /// How many bytes of it there are.
    pub bytes: usize,
}

/// The first line.
pub(super) fn title() -> String {
    format!("{TITLE}{FORMAT}, by {}\n", env!("CARGO_PKG_VERSION"))
}

/// Encodes frames, each as a difference from the one before.
#[derive(Debug, Default)]
pub(super) struct FrameWriter {
    before: Vec<u8>,
}

impl FrameWriter {
    /// The next frame. A message that is too large is left out, and the one after it compared with the one before it.
    pub(super) fn frame<T: Serialize>(&mut self, message: &T) -> Result<Vec<u8>, FrameError> {
        let message = frame::encode_wide(message)?;
        let mut difference = message.clone();
        toggle(&mut difference, &self.before);
        let mut deflated = DeflateEncoder::new(vec![0; HEADER_BYTES], Compression::default());
        let bytes = deflated.write_all(&difference).and_then(|()| deflated.finish());
        let mut bytes = bytes.map_err(|error| FrameError::Malformed(error.to_string()))?;
        let length = u32::try_from(bytes.len() - HEADER_BYTES).map_err(|_| FrameError::TooWide(bytes.len()))?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(length, &bytes[HEADER_BYTES..]);
        bytes[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        self.before = message;
        Ok(bytes)
    }
}

/// The frames of a recording, one after the other.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    offset: usize,
    before: Vec<u8>,
}

impl Frames {
    /// Looks at the first line.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, FileError> {
        let line = bytes.iter().take(TITLE_BYTES_MAX).position(|&byte| byte == b'\n');
        let Some(end) = line else {
            let begins = title().as_bytes().starts_with(&bytes);
            return Err(if begins { FileError::Empty(bytes.len()) } else { FileError::Foreign });
        };
        let line = std::str::from_utf8(&bytes[..end]).map_err(|_| FileError::Foreign)?;
        let told = line.strip_prefix(TITLE).and_then(|line| line.split_once(", by "));
        let (format, version) = told.ok_or(FileError::Foreign)?;
        let format = format.parse().map_err(|_| FileError::Foreign)?;
        if format != FORMAT {
            return Err(FileError::Format { format, version: version.to_owned() });
        }
        Ok(Self { bytes, offset: end + 1, before: Vec::new() })
    }

    /// How many bytes were read.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// What follows the last whole frame, at the end.
    pub(crate) fn torn(&self) -> Option<Torn> {
        let bytes = self.bytes.len() - self.offset;
        (bytes > 0).then_some(Torn { offset: self.offset, bytes })
    }

    /// The next message; `None` at the end, or where the last frame is cut short. Needs no more memory than the bytes and two messages.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FileError> {
        let offset = self.offset;
        let damaged = |why: String| FileError::Damaged { offset, why };
        let Some((&header, rest)) = self.bytes[offset..].split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [a, b, c, d, sum @ ..] = header;
        let (length, sum) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(sum));
        if length as usize > WIDE_BYTES_MAX {
            return Err(damaged(format!("a frame of {length} bytes")));
        }
        let Some(payload) = rest.get(..length as usize) else { return Ok(None) };
        if checksum(length, payload) != sum {
            return Err(damaged("the checksum does not match".to_owned()));
        }
        let mut message = Vec::new();
        let inflated = DeflateDecoder::new(payload).take(WIDE_BYTES_MAX as u64 + 1).read_to_end(&mut message);
        inflated.map_err(|error| damaged(error.to_string()))?;
        if message.len() > WIDE_BYTES_MAX {
            return Err(damaged(FrameError::TooWide(message.len()).to_string()));
        }
        toggle(&mut message, &self.before);
        let decoded = frame::decode_wide(&message).map_err(|error| damaged(error.to_string()))?;
        self.offset += HEADER_BYTES + payload.len();
        self.before = message;
        Ok(Some(decoded))
    }
}

/// Message to difference, and back.
fn toggle(bytes: &mut [u8], before: &[u8]) {
    bytes.iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
}

fn checksum(length: u32, payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length.to_le_bytes());
    sum.update(payload);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(messages: &[Vec<u64>]) -> Vec<u8> {
        let mut frames = FrameWriter::default();
        let mut bytes = title().into_bytes();
        bytes.extend(messages.iter().flat_map(|message| frames.frame(message).unwrap()));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Vec<u64>>, Option<Torn>), FileError> {
        let mut frames = Frames::new(bytes.to_vec())?;
        let mut messages = Vec::new();
        while let Some(message) = frames.next()? {
            messages.push(message);
        }
        Ok((messages, frames.torn()))
    }

    #[test]
    fn a_frame_cut_short_anywhere_is_told_and_those_before_it_are_read() {
        let messages = [vec![1, 2, 3], vec![1, 2, 4, 5], vec![7]];
        let (whole, two) = (file(&messages), file(&messages[..2]).len());
        assert_eq!(read(&whole), Ok((messages.to_vec(), None)));
        for cut in two + 1..whole.len() {
            let torn = Torn { offset: two, bytes: cut - two };
            assert_eq!(read(&whole[..cut]), Ok((messages[..2].to_vec(), Some(torn))), "at {cut}");
        }
        for cut in 0..title().len() {
            assert_eq!(read(&whole[..cut]), Err(FileError::Empty(cut)));
        }
    }

    #[test]
    fn what_is_not_ours_and_what_is_of_another_format_is_told_apart() {
        for bytes in [&b"\x7fELF"[..], b"gnomon-agent recording, format two, by 1\n", &[b'x'; 4096]] {
            assert_eq!(read(bytes), Err(FileError::Foreign));
        }
        let error = read(b"gnomon-agent recording, format 7, by 9.1.0\n...").unwrap_err();
        assert_eq!(error, FileError::Format { format: 7, version: "9.1.0".to_owned() });
        assert!(error.to_string().contains("replay it with gnomon-agent 9.1.0"));
    }

    #[test]
    fn a_length_that_lies_costs_nothing() {
        let mut bytes = file(&[vec![1]]);
        let offset = bytes.len();
        bytes.extend(u32::MAX.to_le_bytes());
        bytes.extend([0; 100]);
        assert!(matches!(read(&bytes), Err(FileError::Damaged { offset: at, .. }) if at == offset));
        // One that deflates to more than a message may have.
        let mut deflated = DeflateEncoder::new(vec![0; HEADER_BYTES], Compression::best());
        deflated.write_all(&vec![0; 64 << 20]).unwrap();
        let mut frame = deflated.finish().unwrap();
        let length = u32::try_from(frame.len() - HEADER_BYTES).unwrap();
        frame[..4].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(length, &frame[HEADER_BYTES..]);
        frame[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        let bytes = [title().into_bytes(), frame].concat();
        assert!(matches!(read(&bytes), Err(FileError::Damaged { why, .. }) if why.contains("over the limit")));
    }

    proptest! {
        #[test]
        fn messages_survive_the_round_trip(messages in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..20), 0..8)) {
            prop_assert_eq!(read(&file(&messages)), Ok((messages, None)));
        }

        #[test]
        fn a_flipped_bit_is_noticed(message in prop::collection::vec(any::<u64>(), 1..20), bit: prop::sample::Index) {
            let mut bytes = file(&[message.clone(), message.clone()]);
            let frames = title().len() * 8;
            let bit = frames + bit.index(bytes.len() * 8 - frames);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(read(&bytes), Ok((vec![message.clone(), message], None)));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = read(&bytes);
            let _ = read(&[title().as_bytes(), &bytes].concat());
        }
    }
}
