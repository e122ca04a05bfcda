//! One report on disk: bytes <-> record. Pure, and never panics on any bytes.
//!
//! ```text
//! offset  bytes  little-endian
//!      0      4  MARK: where a record may begin, so that a reader finds the next one behind damage
//!      4      4  length of the payload
//!      8      4  CRC-32 (IEEE) of everything from offset 12 on, and of the length
//!     12      8  epoch
//!     20      8  sequence
//!     28      8  when it was put in, in milliseconds since 1970
//!     36      n  payload: an encoded report, without the frame's length prefix
//! ```

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, FRAME_BYTES_MAX, Sequence};

/// `GSR1`: Gnomon's spool record, first layout.
pub const MARK: [u8; 4] = *b"GSR1";

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 36;

/// A report, or what is to become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// In which life of the agent it was made.
    pub epoch: AgentEpoch,
    /// Which report of that life.
    pub sequence: Sequence,
    /// When it was put in, on the host's wall clock.
    pub at: Timestamp,
    /// The encoded report.
    pub payload: &'a [u8],
}

/// Why bytes do not begin with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end within the record: a write that was cut short.
    #[error("the record is cut short")]
    Short,
    /// There is no [`MARK`].
    #[error("no record begins here")]
    Mark,
    /// Longer than any report.
    #[error("the record announces {0} bytes, more than any report has")]
    TooLong(usize),
    /// The checksum does not match.
    #[error("the record's checksum does not match")]
    Checksum,
}

/// Decodes the record at the beginning of `bytes`; returns it and how many bytes it takes.
pub fn decode(bytes: &[u8]) -> Result<(Record<'_>, usize), RecordError> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    if header[..4] != MARK {
        return Err(RecordError::Mark);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let length = word(4) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(RecordError::TooLong(length));
    }
    let payload = rest.get(..length).ok_or(RecordError::Short)?;
    if checksum(&header[4..8], &header[12..], payload) != word(8) {
        return Err(RecordError::Checksum);
    }
    let record = Record {
        epoch: AgentEpoch(long(12)),
        sequence: Sequence(long(20)),
        at: Timestamp::from_unix_ms(long(28)),
        payload,
    };
    Ok((record, HEADER_BYTES + length))
}

/// Encodes a record. `None` for a payload longer than a frame may be, which no encoded report is.
pub fn encode(record: &Record<'_>) -> Option<Vec<u8>> {
    let length = u32::try_from(record.payload.len()).ok().filter(|length| *length as usize <= FRAME_BYTES_MAX)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + record.payload.len());
    bytes.extend(MARK);
    bytes.extend(length.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record.epoch.0.to_le_bytes());
    bytes.extend(record.sequence.0.to_le_bytes());
    bytes.extend(record.at.unix_ms().to_le_bytes());
    let sum = checksum(&bytes[4..8], &bytes[12..], record.payload);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes.extend(record.payload);
    Some(bytes)
}

fn checksum(length: &[u8], header: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(length);
    sum.update(header);
    sum.update(payload);
    sum.finalize()
}

/// The records of a file, one after the other; damage is stepped over.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
    damaged: u64,
}

impl<'a> Records<'a> {
    /// From `offset` on.
    pub fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset, damaged: 0 }
    }

    /// Where the next record is looked for.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Stretches of bytes stepped over so far because they are no record: at least one was lost in each.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let mut sound = true;
        while self.offset < self.bytes.len() {
            let here = &self.bytes[self.offset..];
            if let Ok((record, taken)) = decode(here) {
                self.offset += taken;
                return Some(record);
            }
            self.damaged += u64::from(std::mem::replace(&mut sound, false));
            let next = here[1..].windows(MARK.len()).position(|window| window == MARK);
            self.offset += next.map_or(here.len(), |distance| distance + 1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(sequence: u64, payload: &[u8]) -> Record<'_> {
        Record { epoch: AgentEpoch(7), sequence: Sequence(sequence), at: Timestamp::from_unix_ms(99), payload }
    }

    fn file(payloads: &[&[u8]]) -> Vec<u8> {
        let encoded = |(sequence, payload): (usize, &&[u8])| encode(&record(sequence as u64 + 1, payload)).unwrap();
        payloads.iter().enumerate().flat_map(encoded).collect()
    }

    fn sequences(bytes: &[u8]) -> (Vec<u64>, u64) {
        let mut records = Records::new(bytes, 0);
        let found = records.by_ref().map(|record| record.sequence.0).collect();
        (found, records.damaged())
    }

    #[test]
    fn a_torn_last_record_is_counted_and_those_before_it_are_read() {
        let whole = file(&[b"one", b"two", b"three"]);
        for cut in 1..HEADER_BYTES + b"three".len() {
            assert_eq!(sequences(&whole[..whole.len() - cut]), (vec![1, 2], 1), "{cut} bytes missing");
        }
    }

    #[test]
    fn behind_damage_the_next_record_is_found() {
        let mut bytes = file(&[b"one", b"two", b"three"]);
        bytes[HEADER_BYTES + 3 + 20] ^= 1;
        assert_eq!(sequences(&bytes), (vec![1, 3], 1));
        // A length that lies does not lead the reader astray.
        let mut bytes = file(&[b"one", b"two", b"three"]);
        bytes[4] = 200;
        assert_eq!(sequences(&bytes), (vec![2, 3], 1));
    }

    #[test]
    fn a_payload_that_looks_like_a_record_is_payload() {
        let inner = file(&[b"inner"]);
        assert_eq!(sequences(&file(&[&inner, b"two"])), (vec![1, 2], 0));
    }

    proptest! {
        #[test]
        fn a_record_survives_the_round_trip(epoch: u64, sequence: u64, at: u64, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let at = Timestamp::from_unix_ms(at);
            let record = Record { epoch: AgentEpoch(epoch), sequence: Sequence(sequence), at, payload: &payload };
            let bytes = encode(&record).unwrap();
            prop_assert_eq!(decode(&bytes), Ok((record, bytes.len())));
        }

        #[test]
        fn any_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..64), bit: prop::sample::Index) {
            let mut bytes = encode(&record(1, &payload)).unwrap();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn garbage_never_panics_and_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut records = Records::new(&bytes, 0);
            records.by_ref().for_each(drop);
            prop_assert_eq!(records.offset(), bytes.len());
        }
    }
}
