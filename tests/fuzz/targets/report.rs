//! A host's report; what decodes goes on into the core of a brain that knows the host and acts on its own.
#![no_main]

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Report, ReportAck};
use gnomon_core::{Core, Input, Mode, Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let _ = gnomon_fuzz::decode::<ReportAck>(payload);
    let Some(report) = gnomon_fuzz::decode::<Report>(payload) else { return };
    let now = Timestamp::from_unix_ms(gnomon_fuzz::NOW_UNIX_MS);
    let mut core = Core::new(Policy { mode: Mode::Auto, ..Policy::default() }, 1, 1);
    core.handle(now, Input::HostUp { host: report.host.clone(), facts: gnomon_fuzz::facts() });
    // Twice: the second one is late, or its clock was set back, or it is a repetition.
    core.handle(now, Input::Report(Box::new(report.clone())));
    core.handle(now, Input::Report(Box::new(report)));
    while core.poll_output().is_some() {}
    let _ = core.vms();
});
