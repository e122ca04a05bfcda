//! What an agent says on its control stream; a hello goes on into the core, as a host's facts.
#![no_main]

use gnomon_common::time::Timestamp;
use gnomon_common::wire::AgentMessage;
use gnomon_core::{Core, Input, Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let mut core = Core::new(Policy::default(), 1, 1);
    let now = Timestamp::from_unix_ms(1_700_000_000_000);
    match gnomon_fuzz::decode::<AgentMessage>(payload) {
        Some(AgentMessage::Hello(hello)) => {
            let host = hello.host.clone();
            core.handle(now, Input::HostUp { host: hello.host, facts: hello.facts });
            core.handle(now, Input::HostLost { host });
        }
        Some(AgentMessage::Outcome(outcome)) => {
            let host = gnomon_common::wire::HostId::new("a").expect("a legal name");
            core.handle(now, Input::Outcome { host, outcome });
        }
        _ => {}
    }
    while core.poll_output().is_some() {}
});
