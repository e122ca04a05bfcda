//! A recording that someone hands in: `gnomon-agent replay` reads it, whatever it is. What its readings lead to is tried in the agent's own tests.
#![no_main]

use file::{FileError, FrameWriter, Frames};
use gnomon_common::wire::Report;
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;

/// The agent's own reader, without the agent: see `spool_record`.
#[path = "../../../agent/src/recording/file.rs"]
#[allow(dead_code, unreachable_pub, reason = "what only the agent uses")]
mod file;

/// Bytes of the frame's length, at the begin of its header.
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 8;

/// Reads to the end. What is wrong is said, and where; what is left over is within the file.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> usize {
    let mut frames = match Frames::new(bytes.to_vec()) {
        Ok(frames) => frames,
        Err(error) => {
            assert!(!matches!(error, FileError::Damaged { .. }) && !error.to_string().is_empty());
            return 0;
        }
    };
    let mut count = 0;
    loop {
        let offset = frames.offset();
        match frames.next::<T>() {
            Ok(Some(_)) => count += 1,
            Ok(None) => break,
            Err(error) => {
                assert!(error.to_string().contains(&format!("damaged at byte {offset}")), "{error} at {offset}");
                return count;
            }
        }
        assert!(frames.offset() >= offset + HEADER_BYTES, "a frame takes bytes");
    }
    let torn = frames.torn().map_or(0, |torn| torn.bytes);
    assert_eq!(frames.offset() + torn, bytes.len());
    count
}

/// A frame with a right length and checksum around these bytes, whatever they inflate to.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("shorter than the fuzzer's longest input").to_le_bytes();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length);
    sum.update(payload);
    [&length[..LENGTH_BYTES], &sum.finalize().to_le_bytes(), payload].concat()
}

fuzz_target!(|bytes: &[u8]| {
    read::<Report>(bytes);
    let title = file::title().into_bytes();
    read::<Report>(&[&title, bytes].concat());
    // Behind the checksum, which a fuzzer has to solve for: any payload, and after a sound message, from which it differs.
    read::<Report>(&[title.clone(), framed(bytes), framed(bytes)].concat());
    let mut frames = FrameWriter::default();
    let sound: Vec<u64> = bytes.chunks(2).map(|pair| u64::from(pair[0])).collect();
    let sound = frames.frame(&sound).expect("shorter than any frame may be");
    read::<Vec<u64>>(&[title.clone(), sound.clone(), framed(bytes)].concat());
    // What was written whole is read, whatever follows.
    assert!(read::<Vec<u64>>(&[&title[..], &sound, bytes].concat()) >= 1);
});
