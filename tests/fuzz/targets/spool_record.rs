//! What the agent finds in its spool after a kill, a full disk or worse.
#![no_main]

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, Sequence};
use libfuzzer_sys::fuzz_target;
use record::{Record, Records, decode, encode};

/// The agent's own decoder, without the agent: its build brings a kernel's worth of dependencies that have nothing to do with this.
#[path = "../../../agent/src/uplink/spool/record.rs"]
#[allow(dead_code, reason = "what only the agent uses")]
mod record;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let found = Records::new(bytes, 0).count();
    assert!(found <= bytes.len() / record::HEADER_BYTES, "{found} records in {} bytes", bytes.len());

    // A sound record is found again, whatever lies before and behind it: short of another sound record that reaches into it, and the
    // fuzzer is well able to solve for a checksum.
    let payload = &bytes[..bytes.len() / 2];
    let epoch = AgentEpoch(u64::MAX);
    let sound = Record { epoch, sequence: Sequence(7), at: Timestamp::from_unix_ms(9), payload };
    let written = encode(&sound).expect("shorter than a frame");
    let file = [bytes, &written, bytes].concat();
    let mut marks = file.windows(record::MARK.len()).take(bytes.len());
    if !marks.any(|window| window == record::MARK) {
        assert!(Records::new(&file, 0).any(|record| record == sound), "a sound record is lost behind {bytes:?}");
    }
    // And one that was cut short is not taken for sound.
    assert!(decode(&written[..written.len() - 1]).is_err());
});
