//! What a brain says on the control stream.
#![no_main]

use gnomon_common::wire::BrainMessage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    if let Some(BrainMessage::Command(command)) = gnomon_fuzz::decode(payload) {
        // What ends up in logs and answers.
        let _ = format!("{} {} {:?} {}", command.id, command.vm, command.action, command.fence);
    }
});
