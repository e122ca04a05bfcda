//! The two hosts of a migration by their libvirt daemons.

use super::journey::{NotMade, Refusal, Sides};
use super::{CopyRecord, MoverConfig, Order, preflight};
use crate::host::libvirt::migration::{Job, Standing};
use crate::host::libvirt::needs::{CpuNeed, Disk, Image, Needs, Place};
use crate::host::libvirt::storage::{Copies, ImageFile, Original};
use crate::host::libvirt::{About, Devices, Hypervisor, HypervisorError, Reconnecting, ask_there};
use crate::host::storage;
use gnomon_common::wire::{Immovable, Migration, VmId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// The two hosts' libvirt daemons.
pub(super) struct Libvirts {
    config: Arc<MoverConfig>,
    vm: VmId,
    migration: Migration,
    here: Reconnecting,
    copies: Option<Copies>,
    /// Why the other host did not say last whether it has the VM: said once, not each second.
    silence: Option<String>,
}

impl Libvirts {
    pub(super) fn new(config: Arc<MoverConfig>, order: &Order) -> Self {
        let here = Reconnecting::new(config.uri.clone());
        Self { config, vm: order.vm, migration: order.migration.clone(), here, copies: None, silence: None }
    }

    /// Asks the other host's libvirt, for as long as is allowed.
    fn ask_there<T: Send + 'static>(
        &self,
        about: About,
        ask: impl FnOnce(&Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, String> {
        ask_there(&self.migration.uri, about, ask)
    }

    fn needs(&mut self) -> Result<(Needs, Devices), HypervisorError> {
        let here = self.here.get()?;
        let xml = here.definition(self.vm)?;
        let none = || HypervisorError::Unsupported("its definition is not understood".to_owned());
        let mut needs = Needs::parse(&xml).ok_or_else(none)?;
        needs.disks = Needs::parse(&here.live_definition(self.vm)?).ok_or_else(none)?.disks;
        if let CpuNeed::SameAs(cpu) = &mut needs.cpu {
            *cpu = here.host_cpu()?.unwrap_or_default();
        }
        Ok((needs, Devices::parse(&xml)))
    }

    /// What is to be known of a disk that is to be copied.
    fn original(&mut self, disk: &Disk) -> Result<Original, String> {
        let (Place::Path(path), Ok(layers)) = (&disk.place, &disk.copy) else {
            return Err(format!("{} cannot be copied", disk.target));
        };
        let capacity = self.here.get().and_then(|here| here.disk_capacity(self.vm, &disk.target));
        let unknown = |error: io::Error| format!("how large the files of {} are is not known: {error}", disk.target);
        let image = match layers.below.as_slice() {
            [Image { path, format }] => {
                let (_, length_bytes) = storage::sizes(path).map_err(unknown)?;
                Some(ImageFile { path: path.clone(), format: format.clone(), length_bytes })
            }
            _ => None,
        };
        Ok(Original {
            target: disk.target.clone(),
            path: path.clone(),
            format: layers.format.clone(),
            capacity_bytes: capacity.map_err(|error| error.to_string())?,
            own_bytes: storage::sizes(path).map_err(unknown)?.0,
            image_bytes: storage::image_bytes(layers).map_err(unknown)?,
            image,
            is_layer: !layers.below.is_empty(),
        })
    }
}

impl Sides for Libvirts {
    fn check(&mut self) -> Result<Option<CopyRecord>, Refusal> {
        let (needs, devices) = self.needs().map_err(|error| Refusal::Unclear(error.to_string()))?;
        preflight::may_leave(&devices.terms).map_err(Refusal::Immovable)?;
        let (shared_paths, bytes_max) = (&self.config.shared_paths, self.config.copy_bytes_max);
        let may_copy = self.migration.copy_storage && bytes_max > 0;
        let paths = needs.disks.iter().filter_map(|disk| match &disk.place {
            Place::Path(path) => Some(path),
            Place::Network | Place::Other(_) => None,
        });
        let shared = paths.map(|path| storage::is_shared(path, shared_paths).map(|shared| (path.clone(), shared)));
        let shared: BTreeMap<PathBuf, bool> =
            shared.collect::<Result<_, _>>().map_err(|error: io::Error| Refusal::Unclear(error.to_string()))?;
        let is_shared = |path: &Path| shared.get(path).copied().unwrap_or(false);
        let lonely = preflight::storage(&needs, is_shared, may_copy);
        let lonely = lonely.map_err(Refusal::Immovable)?;
        let originals: Result<Vec<Original>, String> = lonely.into_iter().map(|disk| self.original(disk)).collect();
        let originals = originals.map_err(Refusal::Unclear)?;
        let (vm, wanted, files) = (self.vm, needs.clone(), originals.clone());
        let offer =
            self.ask_there(About::Storage, move |there| Ok((there.offer(vm, &wanted)?, there.landings(&files)?)));
        let (offer, landings) = offer.map_err(|error| Refusal::Immovable(Immovable::Unreachable(error)))?;
        preflight::target(&needs, &offer, self.config.reserve_bytes).map_err(Refusal::Immovable)?;
        if !originals.is_empty() {
            self.copies = Some(preflight::copies(originals, &landings, bytes_max).map_err(Refusal::Immovable)?);
        }
        Ok(self.copies.as_ref().map(|copies| CopyRecord {
            files: copies.originals.iter().map(|original| original.path.display().to_string()).collect(),
            made: 0,
            is_layered: copies.is_layered,
            bytes: copies.bytes,
        }))
    }

    fn make_copy(&mut self, file: &str) -> Result<(), NotMade> {
        let of_file = |original: &&Original| original.path == Path::new(file);
        let found = self.copies.as_ref().and_then(|copies| {
            copies.originals.iter().find(of_file).map(|original| (original.clone(), copies.is_layered))
        });
        let Some((original, is_layered)) = found else { return Err(NotMade::Refused("not checked".to_owned())) };
        // libvirt's word that it has not made it is believed; no word is none.
        match self.ask_there(About::Storage, move |there| {
            Ok(there.make_copy(&original, is_layered).map_err(|error| error.to_string()))
        }) {
            Ok(said) => said.map_err(NotMade::Refused),
            Err(error) => Err(NotMade::Unclear(error)),
        }
    }

    fn remove_copy(&mut self, file: &str) -> Result<(), String> {
        let file = PathBuf::from(file);
        self.ask_there(About::Storage, move |there| there.remove_copy(&file))
    }

    fn keep(&mut self, keepsake: Option<&str>) {
        if let Err(error) = self.here.get().and_then(|here| here.keep(self.vm, keepsake)) {
            tracing::warn!(vm = %self.vm, %error, "how to undo what was set does not go with the VM, or stays in its metadata");
        }
    }

    fn begin(&mut self) -> Receiver<Result<(), String>> {
        let (tell, ended) = channel();
        let (uri, vm, migration) = (self.config.uri.clone(), self.vm, self.migration.clone());
        let copies = self.copies.clone();
        // A connection of its own: the other one goes on answering.
        let run = move || {
            let said = Hypervisor::open(&uri).and_then(|here| here.migrate(vm, &migration, copies.as_ref()));
            let _ = tell.send(said.map_err(|error| error.to_string()));
        };
        if let Err(error) = std::thread::Builder::new().name("gnomon-migrating".to_owned()).spawn(run) {
            tracing::error!(%error, "no thread to migrate a VM");
        }
        ended
    }

    fn job(&mut self) -> Option<Option<Job>> {
        self.here.get().and_then(|here| here.migration_job(self.vm)).ok()
    }

    fn abort(&mut self) {
        if let Err(error) = self.here.get().and_then(|here| here.abort_job(self.vm)) {
            tracing::warn!(vm = %self.vm, %error, "the migration is not aborted yet");
        }
    }

    fn here(&mut self) -> Option<Standing> {
        self.here.get().and_then(|here| here.standing(self.vm)).ok()
    }

    fn there(&mut self) -> Option<Standing> {
        let vm = self.vm;
        let answer = self.ask_there(About::Vm, move |there| there.standing(vm));
        let silence = answer.as_ref().err().cloned();
        if let Some(error) = silence.as_ref().filter(|_| silence != self.silence) {
            tracing::warn!(%vm, error, "the target does not say whether it has it");
        }
        self.silence = silence;
        answer.ok()
    }

    fn resume(&mut self) -> Result<(), String> {
        self.here.get().and_then(|here| here.resume(self.vm)).map_err(|error| error.to_string())
    }

    fn completed(&mut self) -> Option<Job> {
        let vm = self.vm;
        self.ask_there(About::Vm, move |there| there.completed_job(vm)).ok().flatten()
    }
}
