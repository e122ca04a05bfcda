//! Another host's libvirt, which may not answer.

use super::{Hypervisor, HypervisorError};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long the other host may take to answer: a connection to a host that is gone fails by itself only after minutes.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Asks another host's libvirt, for as long as is allowed. A call that hangs is left to end by itself on its thread.
///
/// # Errors
/// Why there is no answer, for a person.
pub fn ask_there<T: Send + 'static>(
    uri: &str,
    ask: impl FnOnce(&Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, String> {
    let (tell, answer) = channel();
    let uri = uri.to_owned();
    let run = move || {
        let _ = tell.send(Hypervisor::open(&uri).and_then(|there| ask(&there)));
    };
    std::thread::Builder::new().name("gnomon-target".to_owned()).spawn(run).map_err(|error| error.to_string())?;
    match answer.recv_timeout(ANSWER_MAX) {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
    }
}
