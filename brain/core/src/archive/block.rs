//! A closed block of steps as bytes.
//!
//! Layout, integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version of the layout |
//! | 1 | [`Kpi`] |
//! | 1 | [`Tier`] |
//! | 8 | number of the block: its start is that times the block's length, counted from the epoch |
//! | 2 | steps, gaps among them |
//! | 2 | runs |
//! | 2 each | lengths of runs of steps: measured, gap, measured, ... The first may be empty |
//! | 4 | length of what follows |
//! | | codes of the means of the measured steps, compressed by pco |
//! | | how far the codes of the maxima lie above those, compressed by pco, to the end but for |
//! | 4 | CRC-32 of all of it |
//!
//! Gaps are kept apart because a sentinel among values costs bits at each of its neighbours.

use gnomon_common::time::Timestamp;
use pco::standalone::{simple_compress, simple_decompress_into};
use pco::{ChunkConfig, DeltaSpec, ModeSpec};

use super::code::Code;
use super::kpi::{Kpi, Tier};

/// Version of the layout. What is written with another one is refused, not guessed.
pub const BLOCK_VERSION: u8 = 1;

const HEADER_BYTES: usize = 15;
const CRC_BYTES: usize = 4;

/// How hard pco looks for bins. Blocks are of a few hundred values: more levels than this find nothing more.
const COMPRESSION_LEVEL: usize = 6;

/// Which block: what its owner keys it by, beside the VM's UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// What is measured.
    pub kpi: Kpi,
    /// At which resolution.
    pub tier: Tier,
    /// Start of the block since the epoch, in lengths of a block of that tier.
    pub number: u64,
}

impl BlockKey {
    /// When the block's time is over, however much of it was measured. Of a number that no clock reaches, the end of time.
    pub const fn end(self) -> Timestamp {
        let block_ms = self.tier.block_steps(self.kpi) * self.tier.step_ms();
        Timestamp::from_unix_ms(self.number.saturating_add(1).saturating_mul(block_ms))
    }
}

/// A block to be persisted, and to be given back after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBlock {
    /// What to keep it under. One of the same key replaces it.
    pub key: BlockKey,
    /// The block, header included.
    pub bytes: Box<[u8]>,
}

/// Why a block was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Bytes are missing or too many.
    #[error("the block is {bytes} bytes long, which its header does not allow: drop it")]
    Length {
        /// How many there are.
        bytes: usize,
    },
    /// Written by another version.
    #[error(
        "the block's layout is version {version}, this program reads {BLOCK_VERSION}: drop it, or run the version that wrote it"
    )]
    Version {
        /// The version it says.
        version: u8,
    },
    /// It was changed since it was written.
    #[error("the block's checksum does not fit: drop it")]
    Checksum,
    /// What its header says cannot be.
    #[error("the block's header is malformed ({what}): drop it")]
    Header {
        /// Which part of it.
        what: &'static str,
    },
    /// The codec cannot read its values.
    #[error("the block's {what} cannot be decompressed: drop it")]
    Values {
        /// Which values.
        what: &'static str,
    },
    /// It is not the block that it was given as.
    #[error("the block is another one than its key says: drop it")]
    Key,
    /// A newer block is in its place.
    #[error("the block is older than what is kept: drop it")]
    Outdated,
}

/// Mean and maximum of a step, or a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) mean: Code,
    pub(super) max: Code,
}

impl Pair {
    pub(super) const GAP: Self = Self { mean: Code::GAP, max: Code::GAP };

    /// A measured step. No maximum lies below its mean.
    pub(super) fn of(mean: f64, max: f64) -> Self {
        let mean = Code::of(mean);
        Self { mean, max: Code::of(max).max(mean) }
    }

    /// As coarse as an estimate is kept.
    pub(super) fn coarse(self) -> Self {
        Self { mean: self.mean.coarse(), max: self.max.coarse() }
    }

    pub(super) fn is_gap(self) -> bool {
        self.mean == Code::GAP
    }
}

/// Encodes the steps of a block from its start on, at most a block's.
pub(super) fn encode(key: BlockKey, steps: &[Pair]) -> SealedBlock {
    let runs = runs_of(steps);
    let measured: Vec<Pair> = steps.iter().copied().filter(|pair| !pair.is_gap()).collect();
    let means = compress(&measured.iter().map(|pair| pair.mean.0).collect::<Vec<_>>());
    let excesses = compress(&measured.iter().map(|pair| pair.max.0 - pair.mean.0).collect::<Vec<_>>());
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 2 * runs.len() + 4 + means.len() + excesses.len() + CRC_BYTES);
    bytes.extend([BLOCK_VERSION, key.kpi as u8, key.tier as u8]);
    bytes.extend(key.number.to_le_bytes());
    bytes.extend((steps.len() as u16).to_le_bytes());
    bytes.extend((runs.len() as u16).to_le_bytes());
    runs.iter().for_each(|run| bytes.extend(run.to_le_bytes()));
    bytes.extend((means.len() as u32).to_le_bytes());
    bytes.extend(&means);
    bytes.extend(&excesses);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    SealedBlock { key, bytes: bytes.into_boxed_slice() }
}

/// Decodes and checks a block.
///
/// # Errors
/// Whatever was not written by [`encode`] under this key, whole, is refused.
pub(super) fn decode(key: BlockKey, bytes: &[u8]) -> Result<Vec<Pair>, BlockError> {
    let length = BlockError::Length { bytes: bytes.len() };
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(length)?;
    if body.first().is_some_and(|&version| version != BLOCK_VERSION) {
        return Err(BlockError::Version { version: body[0] });
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(BlockError::Checksum);
    }
    let mut rest = Reader { rest: body, length };
    let [_, kpi, tier] = rest.take()?;
    if kpi != key.kpi as u8 || tier != key.tier as u8 || u64::from_le_bytes(rest.take()?) != key.number {
        return Err(BlockError::Key);
    }
    let steps = usize::from(u16::from_le_bytes(rest.take()?));
    if steps as u64 > key.tier.block_steps(key.kpi) {
        return Err(BlockError::Header { what: "steps" });
    }
    let runs = usize::from(u16::from_le_bytes(rest.take()?));
    let runs = (0..runs)
        .map(|_| rest.take().map(|run| usize::from(u16::from_le_bytes(run))))
        .collect::<Result<Vec<_>, _>>()?;
    if runs.iter().sum::<usize>() != steps {
        return Err(BlockError::Header { what: "runs" });
    }
    let measured = runs.iter().step_by(2).sum();
    let means_bytes = u32::from_le_bytes(rest.take()?) as usize;
    let (means, excesses) = rest.rest.split_at_checked(means_bytes).ok_or(length)?;
    let means = decompress(means, measured).ok_or(BlockError::Values { what: "means" })?;
    let excesses = decompress(excesses, measured).ok_or(BlockError::Values { what: "maxima" })?;
    let mut pairs = means.into_iter().zip(excesses);
    let mut decoded = Vec::with_capacity(steps);
    for (number, &run) in runs.iter().enumerate() {
        for _ in 0..run {
            let pair = if number % 2 == 0 { pairs.next() } else { None };
            decoded.push(match pair {
                Some((mean, excess)) => {
                    let max = mean.checked_add(excess).map(Code).filter(|max| max.value().is_some());
                    Pair { mean: Code(mean), max: max.ok_or(BlockError::Values { what: "maxima" })? }
                }
                None => Pair::GAP,
            });
        }
    }
    Ok(decoded)
}

struct Reader<'a> {
    rest: &'a [u8],
    length: BlockError,
}

impl Reader<'_> {
    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], BlockError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(self.length)?;
        self.rest = rest;
        Ok(*taken)
    }
}

fn runs_of(steps: &[Pair]) -> Vec<u16> {
    let mut runs = Vec::new();
    if steps.first().is_some_and(|pair| pair.is_gap()) {
        runs.push(0);
    }
    runs.extend(steps.chunk_by(|a, b| a.is_gap() == b.is_gap()).map(|run| run.len() as u16));
    runs
}

fn compress(codes: &[u16]) -> Vec<u8> {
    if codes.is_empty() {
        return Vec::new();
    }
    // Deltas are tried, and kept where they pay; modes such as common multiples mean nothing on a logarithmic scale.
    let config = ChunkConfig::default()
        .with_compression_level(COMPRESSION_LEVEL)
        .with_mode_spec(ModeSpec::Classic)
        .with_delta_spec(DeltaSpec::Auto);
    // It fails for settings out of range only, and these are constants; an empty stream is refused when it is read.
    simple_compress(codes, &config).unwrap_or_default()
}

fn decompress(bytes: &[u8], count: usize) -> Option<Vec<u16>> {
    if count == 0 {
        return bytes.is_empty().then(Vec::new);
    }
    // One more than there should be, so that too many are noticed.
    let mut codes = vec![0u16; count + 1];
    let progress = simple_decompress_into(bytes, &mut codes).ok()?;
    (progress.n_processed == count && progress.finished).then(|| {
        codes.truncate(count);
        codes
    })
}
