//! What a stranger sends to join, what a brain answers, and what somebody pastes for a token.
#![no_main]

use gnomon_common::wire::{EnrolReply, EnrolRequest, Token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = gnomon_fuzz::decode::<EnrolRequest>(bytes);
    let _ = gnomon_fuzz::decode::<EnrolReply>(bytes);
    if let Some(token) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Token>().ok()) {
        let again: Token = token.to_string().parse().expect("what was printed can be read");
        assert_eq!(again.to_string(), token.to_string());
    }
});
