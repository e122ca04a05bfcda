//! Another host's libvirt, which may not answer.

use super::{Hypervisor, HypervisorError};
use crate::host::hanging::HangingCalls;
use std::sync::LazyLock;
use std::time::Duration;

/// How long the other host may take to answer: a connection to a host that is gone fails by itself only after minutes.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What another host's libvirt is asked about: what takes long for the one does not hold up the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// How a VM stands there.
    Vm,
    /// Files and storage pools.
    Storage,
}

/// Other hosts' daemons that are asked, for whatever.
static ASKED: LazyLock<HangingCalls<(String, About)>> = LazyLock::new(HangingCalls::default);

/// Asks another host's libvirt, for as long as is allowed. One that hangs is not asked again until it has answered, or minutes are over.
///
/// # Errors
/// Why there is no answer, for a person.
pub fn ask_there<T: Send + 'static>(
    uri: &str,
    about: About,
    ask: impl FnOnce(&Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, String> {
    let to = uri.to_owned();
    let answer =
        ASKED.ask(&(uri.to_owned(), about), ANSWER_MAX, move || Hypervisor::open(&to).and_then(|there| ask(&there)));
    let answer = answer.map_err(|error| format!("the target {error}"))?;
    answer.map_err(|error| error.to_string())
}
