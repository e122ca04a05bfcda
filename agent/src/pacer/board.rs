//! The pacers of all shadows that run here: one link each, turned once a second by one thread.

use super::PacerLink;
use crate::actuate::shadow::Pacing;
use crate::actuate::shadow::definition::PACER_SOCKET;
use crate::host::inventory::Inventory;
use gnomon_common::wire::{PacerWindow, Profile, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often links are turned.
const EVERY: Duration = Duration::from_secs(1);

/// What a pacer said longer ago is not told any more: it says something each second.
const STALE: Duration = Duration::from_secs(10);

/// What is known of pacers: cheap to clone, all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Pacers(Arc<Mutex<BTreeMap<VmId, PacerLink>>>);

impl Pacers {
    /// Starts the thread that keeps a link to the pacer of every shadow in the inventory, whose folders are below `directory`. It ends with
    /// the inventory.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(&self, inventory: watch::Receiver<Arc<Inventory>>, directory: PathBuf) -> std::io::Result<()> {
        let pacers = self.clone();
        let keep = move || {
            // The sender goes with the inventory.
            while inventory.has_changed().is_ok() {
                let known = Arc::clone(&inventory.borrow());
                let shadows =
                    known.vms.iter().filter(|vm| vm.shadow_of.is_some() && vm.process.is_some()).map(|vm| vm.id);
                pacers.keep(&shadows.collect(), &directory, Instant::now());
                std::thread::sleep(EVERY);
            }
        };
        std::thread::Builder::new().name("gnomon-pacers".to_owned()).spawn(keep).map(|_| ())
    }

    /// Turns the links of these shadows, and drops those of others.
    fn keep(&self, shadows: &BTreeSet<VmId>, directory: &Path, now: Instant) {
        let mut links = self.lock();
        links.retain(|vm, _| shadows.contains(vm));
        for &vm in shadows {
            let socket = directory.join(vm.to_string()).join(PACER_SOCKET);
            let link = links.entry(vm).or_insert_with(|| PacerLink::new(&socket));
            if let Err(error) = link.turn(now) {
                tracing::debug!(%vm, %error, "the pacer of a shadow is not reached");
            }
        }
    }

    /// What the pacers have said lately.
    pub fn windows(&self) -> BTreeMap<VmId, PacerWindow> {
        let now = Instant::now();
        let links = self.lock();
        let said = links.iter().filter_map(|(&vm, link)| Some((vm, link.latest(now)?)));
        said.filter(|(_, latest)| latest.age < STALE).map(|(vm, latest)| (vm, latest.window)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, PacerLink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pacing for Pacers {
    fn pace(&mut self, shadow: VmId, socket: &Path, profile: &Profile) -> Result<(), String> {
        let now = Instant::now();
        let mut links = self.lock();
        let link = links.entry(shadow).or_insert_with(|| PacerLink::new(socket));
        link.pace(profile, now).map_err(|error| error.to_string())?;
        // The profile waits for a pacer that comes later; that there is none yet is worth knowing.
        match link.latest(now) {
            Some(latest) if latest.age < STALE => Ok(()),
            _ => Err("no pacer answers in the shadow's guest".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_pacer::protocol::{Said, Status};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use uuid::Uuid;

    #[test]
    fn a_pacer_that_speaks_is_told_and_paced_and_one_that_is_silent_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let vm = VmId(Uuid::from_u128(7));
        let home = folder.path().join(vm.to_string());
        std::fs::create_dir(&home).unwrap();
        let socket = home.join(PACER_SOCKET);
        let mut pacers = Pacers::default();
        let profile = Profile { valid_ms: 60_000, steps: Vec::new() };
        assert!(pacers.pace(vm, &socket, &profile).is_err(), "nobody is there");

        let guest = UnixListener::bind(&socket).unwrap();
        let shadows = BTreeSet::from([vm]);
        pacers.keep(&shadows, folder.path(), Instant::now());
        let (mut port, _) = guest.accept().unwrap();
        let status = Said::Status(Status::default()).to_string();
        writeln!(port, "{status}").unwrap();
        pacers.keep(&shadows, folder.path(), Instant::now());
        assert_eq!(pacers.windows(), BTreeMap::from([(vm, PacerWindow::default())]));
        assert_eq!(pacers.pace(vm, &socket, &profile), Ok(()));
        pacers.keep(&shadows, folder.path(), Instant::now());
        let mut heard = [0; 64];
        let count = port.read(&mut heard).unwrap();
        assert!(String::from_utf8_lossy(&heard[..count]).contains("gnomon-pacer/1 profile"));
        pacers.keep(&BTreeSet::new(), folder.path(), Instant::now());
        assert!(pacers.windows().is_empty());
    }
}
