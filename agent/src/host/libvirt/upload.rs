//! Files that are sent to another host by way of its libvirt: into volumes of a storage pool that is active over a folder there. What is there already is
//! never written to.

use super::storage::{Pool, escape, volume};
use super::{Hypervisor, HypervisorError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt::sys;

/// What is handed to libvirt at once, in bytes: not more than one of its messages carries.
const CHUNK_BYTES: usize = 128 << 10;

/// Files of a pool that are looked at: more are none of ours.
const FILES_MAX: usize = 16_384;

/// What a folder of another host has, and has room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The storage pool over it.
    pub pool: Pool,
    /// What is in it.
    pub files: Vec<PoolFile>,
}

/// A file of a storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFile {
    /// Its name.
    pub name: String,
    /// Its length, in bytes.
    pub bytes: u64,
    /// What it takes of the file system by now, in bytes.
    pub allocated_bytes: u64,
}

/// Whose a new file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

impl Hypervisor {
    /// What a folder has, by the active pool over it; `None` where there is no such pool. Blocks.
    pub fn folder(&self, folder: &Path) -> Result<Option<Folder>, HypervisorError> {
        let Some(pool) = self.pool_over(&folder.join("any"))? else { return Ok(None) };
        let call = |e| HypervisorError::call("tell what a storage pool has", &e);
        let volumes = pool.list_all_volumes(0).map_err(call)?;
        if volumes.len() > FILES_MAX {
            let why =
                format!("{} holds {} files, and nothing but copies should be there", folder.display(), volumes.len());
            return Err(HypervisorError::Unsupported(why));
        }
        let mut files = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let name = volume.name().map_err(call)?;
            // With this flag the allocation is the length of the file.
            let length = volume.info_flags(sys::VIR_STORAGE_VOL_GET_PHYSICAL).map_err(call)?;
            let taken = volume.info().map_err(call)?;
            files.push(PoolFile { name, bytes: length.allocation, allocated_bytes: taken.allocation });
        }
        let info = pool.info().map_err(call)?;
        let name = pool.name().map_err(call)?;
        let pool = Pool { name, capacity_bytes: info.capacity, available_bytes: info.available };
        Ok(Some(Folder { pool, files }))
    }

    /// Makes a file of this length, for its owner alone, that takes no room yet. It must not be there. Blocks.
    pub fn make_file(&self, file: &Path, bytes: u64, owner: Owner) -> Result<(), HypervisorError> {
        let Some(pool) = self.pool_over(file)? else {
            return Err(HypervisorError::Unsupported(format!("no storage pool is active over {}", file.display())));
        };
        let made = StorageVol::create_xml(&pool, &file_xml(file, bytes, owner), 0);
        made.map(drop).map_err(|e| HypervisorError::call("make a volume", &e))
    }

    /// Sends a part of a file into the same place of another one, which has to be there, and returns when that has it: `false` where `goes_on`, which
    /// hears what was sent of it, said no before. Blocks for as long as the other side likes.
    pub fn send_part(
        &self,
        from: &File,
        to: &Path,
        part: std::ops::Range<u64>,
        mut goes_on: impl FnMut(u64) -> bool,
    ) -> Result<bool, HypervisorError> {
        let call = |e| HypervisorError::call("send a file", &e);
        let read = |error: std::io::Error| HypervisorError::Unsupported(format!("reading what is to be sent: {error}"));
        let found = self.pool_over(to)?.map(|pool| volume(&pool, to)).transpose()?.flatten();
        let Some(volume) = found else {
            return Err(HypervisorError::Unsupported(format!("{} is not there any more", to.display())));
        };
        let stream = Stream::new(&self.connect, 0).map_err(call)?;
        volume.upload(&stream, part.start, part.end - part.start, 0).map_err(call)?;
        let (mut at, mut chunk) = (part.start, vec![0; CHUNK_BYTES]);
        while at < part.end {
            let length = usize::try_from(part.end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let chunk = &mut chunk[..length];
            let sent = match goes_on(at - part.start) {
                false => Ok(None),
                true => from.read_exact_at(chunk, at).map_err(read).and_then(|()| send(&stream, chunk).map(Some)),
            };
            match sent {
                Ok(Some(sent)) => at += sent,
                given_up => {
                    // One that has failed may have been ended by libvirt already.
                    if let Err(error) = stream.abort() {
                        tracing::debug!(%error, "a stream that is given up is not aborted");
                    }
                    return given_up.map(|_| false);
                }
            }
        }
        // Only this says that all was written there.
        stream.finish().map_err(call)?;
        Ok(true)
    }
}

/// Hands some of a chunk to libvirt, and returns how much.
fn send(stream: &Stream, chunk: &[u8]) -> Result<u64, HypervisorError> {
    let sent = stream.send(chunk).map_err(|e| HypervisorError::call("send a file", &e))?;
    // The crate takes only -1 for an error, and libvirt has others.
    match u64::try_from(sent) {
        Ok(sent) if sent > 0 => Ok(sent),
        _ => Err(HypervisorError::Unsupported(format!("libvirt has sent {sent} bytes"))),
    }
}

fn file_xml(file: &Path, bytes: u64, owner: Owner) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Owner { user, group } = owner;
    // What it is does not matter to libvirt: raw is taken as it comes.
    format!(
        "<volume type='file'><name>{}</name><capacity unit='bytes'>{bytes}</capacity><allocation>0</allocation>\
         <target><format type='raw'/><permissions><owner>{user}</owner><group>{group}</group><mode>0600</mode></permissions>\
         </target></volume>",
        escape(&name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_for_its_owner_alone_and_takes_no_room_before_it_is_written() {
        let xml = file_xml(Path::new("/srv/a&b.qcow2"), 7, Owner { user: 107, group: 108 });
        let expected = "<name>a&amp;b.qcow2</name><capacity unit='bytes'>7</capacity><allocation>0</allocation>";
        assert!(xml.contains(expected), "{xml}");
        assert!(xml.contains("<owner>107</owner><group>108</group><mode>0600</mode>"), "{xml}");
    }

    #[test]
    fn a_libvirt_that_knows_of_no_pool_over_a_folder_makes_nothing_and_takes_nothing() {
        // This driver has no way to find one by its folder.
        let libvirt = Hypervisor::open("test:///default").unwrap();
        let folder = Path::new("/nonexistent/gnomon");
        let (owner, file) = (Owner { user: 0, group: 0 }, tempfile::tempfile().unwrap());
        let errors = [
            libvirt.folder(folder).map(drop),
            libvirt.make_file(&folder.join("a"), 1, owner),
            libvirt.send_part(&file, &folder.join("a"), 0..1, |_| panic!("nothing is sent")).map(drop),
        ];
        for error in errors {
            assert!(matches!(error, Err(HypervisorError::Unsupported(_))), "{error:?}");
        }
    }
}
