//! A peer's stream: prefixes and payloads, as long as they make sense.
#![no_main]

use gnomon_common::wire::frame::{FRAME_BYTES_MAX, PREFIX_BYTES, payload_len};
use gnomon_common::wire::{AgentMessage, BrainMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX_BYTES>() {
        let Ok(length) = payload_len(*prefix) else { return };
        assert!(length <= FRAME_BYTES_MAX);
        let Some((payload, behind)) = behind.split_at_checked(length) else { return };
        let _ = gnomon_fuzz::decode::<AgentMessage>(payload);
        let _ = gnomon_fuzz::decode::<BrainMessage>(payload);
        rest = behind;
    }
});
