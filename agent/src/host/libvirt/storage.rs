//! Copies of disks on another host: what its libvirt says of the places where they would be, and making and removing them there.
//!
//! Copies are volumes of storage pools. That a pool is there, active, over the folder of a file is how a host's operator says that copies may be put
//! there; none is ever defined. What is there already is never touched.

use super::devices::children;
use super::migration::known;
use super::{Hypervisor, HypervisorError};
use gnomon_common::wire::VmId;
use roxmltree::Document;
use std::path::{Path, PathBuf};
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::sys;

/// Left free in the file system that a copy is put into, as a share of it: as much as ext4 keeps for root.
const RESERVE_SHARE: f64 = 0.05;

/// A disk that only this host has, whose file is to be copied to the same path on another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// What the guest knows it by (`vda`).
    pub target: String,
    /// Its own file.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// As large as its guest sees it, in bytes.
    pub capacity_bytes: u64,
    /// What its own file takes of the file system, in bytes.
    pub own_bytes: u64,
    /// What the images below it take, in bytes.
    pub image_bytes: u64,
    /// The image below it, where there is exactly one.
    pub image: Option<ImageFile>,
    /// Whether there is any.
    pub is_layer: bool,
}

/// An image that a disk is a layer on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// The length of the file, in bytes.
    pub length_bytes: u64,
}

/// What a host says of the place of one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landing {
    /// The pool over the folder; without one nothing can be put there.
    pub pool: Option<Pool>,
    /// A file is there already.
    pub is_taken: bool,
    /// The image that the disk is a layer on is there, under the same path and of the same length and format.
    pub has_image: bool,
}

/// A storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What its file system holds, in bytes.
    pub capacity_bytes: u64,
    /// What is free there, in bytes.
    pub available_bytes: u64,
}

impl Pool {
    /// What copies leave free of its file system, in bytes.
    pub fn reserve_bytes(&self) -> u64 {
        (self.capacity_bytes as f64 * RESERVE_SHARE) as u64
    }

    /// What copies may come to take there, in bytes.
    pub fn room_bytes(&self) -> u64 {
        self.available_bytes.saturating_sub(self.reserve_bytes())
    }
}

/// A storage pool over a folder, where copies could be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    /// Whether the pool is active; one that is not takes nothing, and does not say how large it is.
    pub is_active: bool,
    /// The pool.
    pub pool: Pool,
}

/// What goes along with a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// The disks.
    pub originals: Vec<Original>,
    /// The target has all images: only the layers on them are copied. Else every disk becomes one file.
    pub is_layered: bool,
    /// What is to be copied, in bytes, as it takes of the file system here.
    pub bytes: u64,
}

impl Hypervisor {
    /// How large a disk is as its guest sees it, in bytes. Asks QEMU. Blocks.
    pub fn disk_capacity(&self, vm: VmId, target: &str) -> Result<u64, HypervisorError> {
        let info = self.domain(vm)?.block_info(target, 0);
        Ok(info.map_err(|e| HypervisorError::call("tell the size of a disk", &e))?.capacity)
    }

    /// What this host says of the places of copies of another one's disks. Its pools look at their folders first. Blocks.
    pub fn landings(&self, originals: &[Original]) -> Result<Vec<Landing>, HypervisorError> {
        originals.iter().map(|original| self.landing(original)).collect()
    }

    fn landing(&self, original: &Original) -> Result<Landing, HypervisorError> {
        let has_image = match &original.image {
            Some(image) => self.has_image(image)?,
            None => false,
        };
        let Some(pool) = self.pool_over(&original.path)? else {
            return Ok(Landing { pool: None, is_taken: false, has_image });
        };
        let call = |e| HypervisorError::call("tell of a storage pool", &e);
        let is_taken = volume(&pool, &original.path)?.is_some();
        let info = pool.info().map_err(call)?;
        let name = pool.name().map_err(call)?;
        let pool = Pool { name, capacity_bytes: info.capacity, available_bytes: info.available };
        Ok(Landing { pool: Some(pool), is_taken, has_image })
    }

    /// The storage pools over folders: where copies could be put. Blocks.
    pub fn places(&self) -> Result<Vec<Place>, HypervisorError> {
        let call = |e| HypervisorError::call("tell of storage pools", &e);
        let mut places = Vec::new();
        for pool in self.connect.list_all_storage_pools(0).map_err(call)? {
            let Some(folder) = folder(&pool.xml_desc(0).map_err(call)?) else { continue };
            let (name, info) = (pool.name().map_err(call)?, pool.info().map_err(call)?);
            let is_active = pool.is_active().map_err(call)?;
            let pool = Pool { name, capacity_bytes: info.capacity, available_bytes: info.available };
            places.push(Place { folder, is_active, pool });
        }
        places.sort_by(|one, other| one.folder.cmp(&other.folder));
        Ok(places)
    }

    /// Makes an empty file of a disk's size. It must not be there. Blocks.
    pub fn make_copy(&self, original: &Original, is_layered: bool) -> Result<(), HypervisorError> {
        let Some(pool) = self.pool_over(&original.path)? else {
            let why = format!("no storage pool is over {}", original.path.display());
            return Err(HypervisorError::Unsupported(why));
        };
        let made = StorageVol::create_xml(&pool, &volume_xml(original, is_layered), 0);
        made.map(drop).map_err(|e| HypervisorError::call("make a volume", &e))
    }

    /// Removes a file that [`Self::make_copy`] made; that it is gone already is as good, where an active pool shows that. Blocks.
    pub fn remove_copy(&self, path: &Path) -> Result<(), HypervisorError> {
        let Some(pool) = self.pool_over(path)? else {
            let why =
                format!("no active storage pool is over {}: whether it is still there is not known", path.display());
            return Err(HypervisorError::Unsupported(why));
        };
        match volume(&pool, path)? {
            Some(volume) => volume.delete(0).map_err(|e| HypervisorError::call("remove a volume", &e)),
            None => Ok(()),
        }
    }

    /// The active pool over a file's folder, after it has looked at what is there.
    pub(super) fn pool_over(&self, file: &Path) -> Result<Option<StoragePool>, HypervisorError> {
        const WHAT: &str = "look a storage pool up";
        let Some(folder) = file.parent().and_then(Path::to_str) else { return Ok(None) };
        let found = self.connect.lookup_storage_pool_by_target_path(folder);
        let Some(pool) = known(found, ErrorNumber::NoStoragePool, WHAT)? else { return Ok(None) };
        let call = |e| HypervisorError::call(WHAT, &e);
        if !pool.is_active().map_err(call)? {
            return Ok(None);
        }
        pool.refresh(0).map_err(call)?;
        Ok(Some(pool))
    }

    fn has_image(&self, image: &ImageFile) -> Result<bool, HypervisorError> {
        let Some(pool) = self.pool_over(&image.path)? else { return Ok(false) };
        let Some(volume) = volume(&pool, &image.path)? else { return Ok(false) };
        let call = |e| HypervisorError::call("tell of a volume", &e);
        // With this flag the allocation is the length of the file.
        let info = volume.info_flags(sys::VIR_STORAGE_VOL_GET_PHYSICAL).map_err(call)?;
        let xml = volume.xml_desc(0).map_err(call)?;
        Ok(info.allocation == image.length_bytes && format(&xml).as_deref() == Some(image.format.as_str()))
    }
}

/// The volume of a pool that is this file.
pub(super) fn volume(pool: &StoragePool, file: &Path) -> Result<Option<StorageVol>, HypervisorError> {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    known(pool.lookup_storage_vol_by_name(name), ErrorNumber::NoStorageVolume, "look a volume up")
}

/// The folder that a pool is over, by its XML; `None` of a pool of something else than files.
fn folder(xml: &str) -> Option<PathBuf> {
    let document = Document::parse(xml).ok()?;
    let pool = document.root_element();
    if !["dir", "fs", "netfs"].contains(&pool.attribute("type")?) {
        return None;
    }
    let target = children(pool, "target").next()?;
    Some(children(target, "path").next()?.text()?.into())
}

/// The format of a volume, by its XML.
fn format(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let target = children(document.root_element(), "target").next()?;
    Some(children(target, "format").next()?.attribute("type")?.to_owned())
}

fn volume_xml(original: &Original, is_layered: bool) -> String {
    let name = original.path.file_name().unwrap_or_default().to_string_lossy();
    let below = original.image.as_ref().filter(|_| is_layered).map_or_else(String::new, |image| {
        let (path, format) = (escape(&image.path.to_string_lossy()), escape(&image.format));
        format!("<backingStore><path>{path}</path><format type='{format}'/></backingStore>")
    });
    format!(
        "<volume type='file'><name>{}</name><capacity unit='bytes'>{}</capacity><allocation>0</allocation>\
         <target><format type='{}'/></target>{below}</volume>",
        escape(&name),
        original.capacity_bytes,
        escape(&original.format)
    )
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_files_is_over_a_folder_and_any_other_is_over_none() {
        let of = |kind: &str| format!("<pool type='{kind}'><name>p</name><target><path>/srv/p</path></target></pool>");
        for kind in ["dir", "fs", "netfs"] {
            assert_eq!(folder(&of(kind)), Some("/srv/p".into()), "{kind}");
        }
        assert_eq!((folder(&of("logical")), folder("<pool type='dir'/>")), (None, None));
    }

    #[test]
    fn a_volume_is_as_large_as_the_disk_and_a_layer_only_where_the_image_is_there() {
        let image = ImageFile { path: "/images/a&b".into(), format: "raw".to_owned(), length_bytes: 7 };
        let original = Original {
            target: "vda".to_owned(),
            path: "/srv/it's.qcow2".into(),
            format: "qcow2".to_owned(),
            capacity_bytes: 1 << 20,
            own_bytes: 5,
            image_bytes: 7,
            image: Some(image),
            is_layer: true,
        };
        let flat = volume_xml(&original, false);
        assert!(flat.contains("<name>it&apos;s.qcow2</name><capacity unit='bytes'>1048576</capacity>"), "{flat}");
        assert!(!flat.contains("backingStore"));
        let layered = volume_xml(&original, true);
        let below = "<backingStore><path>/images/a&amp;b</path><format type='raw'/></backingStore>";
        assert!(layered.contains(below), "{layered}");
        assert_eq!(format(&layered).as_deref(), Some("qcow2"));
    }
}
