//! How fast a guest writes to its memory, measured when somebody asks.

use super::{Hypervisor, HypervisorError};
use crate::host::libvirt_raw::dirty_rate::{self, Measurement};
use gnomon_common::wire::VmId;
use std::thread;
use std::time::{Duration, Instant};
use virt::error::Error;

/// The longest measurement that QEMU takes, in seconds (`MAX_FETCH_DIRTYRATE_TIME_SEC` of QEMU's `migration/dirtyrate.h`).
pub const DIRTY_RATE_PERIOD_MAX_S: u8 = 60;

/// How long QEMU may take beyond that for its sums.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

impl Hypervisor {
    /// The id of the domain with this name or UUID.
    ///
    /// # Errors
    /// If libvirt knows none, or cannot be asked.
    pub fn find(&self, vm: &str) -> Result<VmId, HypervisorError> {
        let known = self.domains()?.described;
        let found = known.iter().find(|facts| facts.name == vm || facts.vm.to_string() == vm);
        found.map(|facts| facts.vm).ok_or_else(|| HypervisorError::NoSuchName(vm.to_owned()))
    }

    /// Memory of a running domain that its guest writes to within `period_s` seconds, per second, in bytes: what a live migration has to send again. A page counts once
    /// however often it is written to. QEMU samples pages (512 of each GiB) and sums them up at both ends, on a thread of its own. Blocks for that time.
    ///
    /// # Errors
    /// If the domain does not run, QEMU is older than 5.2 (libvirt 7.2), or it does not end in time.
    pub fn dirty_bytes_per_s(&self, vm: VmId, period_s: u8) -> Result<f64, HypervisorError> {
        let domain = self.domain(vm)?;
        let call = |error: Error| HypervisorError::call("measure how fast memory is written to", &error);
        dirty_rate::start(&domain, period_s).map_err(call)?;
        let deadline = Instant::now() + Duration::from_secs(period_s.into()) + PATIENCE;
        loop {
            thread::sleep(POLL);
            match dirty_rate::read(&domain).map_err(call)? {
                Measurement::Done(mib_per_s) => return Ok(mib_per_s as f64 * f64::from(1u32 << 20)),
                Measurement::Pending if Instant::now() > deadline => {
                    return Err(HypervisorError::DirtyRateLate(PATIENCE));
                }
                Measurement::Pending => {}
            }
        }
    }
}
