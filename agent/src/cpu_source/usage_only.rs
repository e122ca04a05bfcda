//! The last rung: no source of its own.

use crate::cost::Costed;
use crate::reading::SchedReading;
use crate::sample::{SchedSource, SourceError};
use gnomon_common::wire::VmId;

/// Tells nothing: windows are made of what the VMs' control groups were charged with.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsageOnly;

impl Costed for UsageOnly {
    fn name(&self) -> &'static str {
        "cgroup"
    }
}

impl SchedSource for UsageOnly {
    fn tells_demand(&self) -> bool {
        false
    }

    fn track(&mut self, _vm: VmId, _tgids: &[u32]) -> Result<(), SourceError> {
        Ok(())
    }

    fn untrack(&mut self, _vm: VmId) -> Result<(), SourceError> {
        Ok(())
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        Ok(SchedReading::default())
    }
}
