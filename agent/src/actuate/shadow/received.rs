//! Copies of disks that other hosts have sent for shadows of this one: files in one folder, each named by its shadow's UUID. Their makers write to them by
//! way of this host's libvirt; this agent checks them before they are used, and deletes them with their shadow.

use crate::config::ShadowConfig;
use gnomon_common::wire::{VmId, received_prefix};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{ErrorKind, Result};
use std::path::PathBuf;
use uuid::Uuid;

/// All that were sent here.
#[derive(Clone, Debug)]
pub(super) struct Received {
    directory: PathBuf,
}

impl Received {
    /// Those of a host; `None` where the configuration names no place for them. What is there is deleted also where nothing more is taken.
    pub(super) fn new(config: &ShadowConfig) -> Option<Self> {
        Some(Self { directory: config.received_directory.clone()? })
    }

    /// For which shadows there are some, whole or half.
    pub(super) fn all(&self) -> Result<Vec<VmId>> {
        let all: BTreeSet<VmId> = self.names()?.iter().filter_map(|name| shadow_of(name.to_str()?)).collect();
        Ok(all.into_iter().collect())
    }

    /// Removes those of a shadow. Returns whether there was any.
    pub(super) fn remove(&self, shadow: VmId) -> Result<bool> {
        let of_shadow = |name: &&OsString| name.to_str().and_then(shadow_of) == Some(shadow);
        let mut removed = false;
        for name in self.names()?.iter().filter(of_shadow) {
            match std::fs::remove_file(self.directory.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                gone => {
                    gone?;
                    removed = true;
                    tracing::info!(%shadow, file = %name.display(), "a copy of a disk that another host has sent was deleted");
                }
            }
        }
        Ok(removed)
    }

    fn names(&self) -> Result<Vec<OsString>> {
        match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries?.map(|entry| Ok(entry?.file_name())).collect(),
        }
    }
}

/// The shadow that a file is of, by its name; what is named otherwise is none of ours.
fn shadow_of(name: &str) -> Option<VmId> {
    let shadow = VmId(name.split('.').next()?.parse::<Uuid>().ok()?);
    name.starts_with(&received_prefix(shadow)).then_some(shadow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_for_a_shadow_goes_with_it_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let received = Received { directory: folder.path().join("r") };
        let id = |number| VmId(Uuid::from_u128(number));
        assert_eq!((received.all().unwrap(), received.remove(id(1)).unwrap()), (vec![], false));
        std::fs::create_dir(&received.directory).unwrap();
        let ours =
            [(1, "vda"), (1, "vdb"), (2, "vda")].map(|(of, disk)| format!("{}{disk}.qcow2", received_prefix(id(of))));
        let others =
            ["somebody's".to_owned(), id(1).to_string(), format!("{}.vda", id(1).0.simple()), "..x".to_owned()];
        for name in ours.iter().chain(&others) {
            std::fs::write(received.directory.join(name), "x").unwrap();
        }
        assert_eq!(received.all().unwrap(), [id(1), id(2)]);
        assert!(received.remove(id(1)).unwrap() && !received.remove(id(1)).unwrap());
        assert_eq!(received.all().unwrap(), [id(2)]);
        assert!(others.iter().all(|name| received.directory.join(name).exists()));
    }
}
