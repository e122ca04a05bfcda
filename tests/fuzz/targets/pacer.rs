//! What a guest says to the agent through the pacer's port, and an agent to the guest: lines of text.
#![no_main]

use gnomon_pacer::protocol::{LINE_BYTES_MAX, Lines, Profile, Said};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A guest writes in pieces as it likes; their size is the first byte.
    let Some((size, bytes)) = bytes.split_first() else { return };
    let mut lines = Lines::default();
    for line in bytes.chunks(usize::from(*size).max(1)).flat_map(|piece| lines.push(piece)).flatten() {
        if let Ok(said) = Said::parse(&line) {
            let written = said.to_string();
            let again = Said::parse(&written).expect("what was read is written as it can be read");
            assert_eq!(again.to_string(), written);
        }
        if let Ok(profile) = Profile::parse(&line) {
            let written = profile.to_string();
            assert!(written.len() <= LINE_BYTES_MAX, "{} bytes are no line", written.len());
            let again = Profile::parse(&written).expect("what was read is written as it can be read");
            assert_eq!(again.to_string(), written);
        }
    }
});
