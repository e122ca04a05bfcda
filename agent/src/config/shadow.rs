//! `[shadow]`: whether this host takes shadows of other hosts' VMs, and how much of it they may have.

use gnomon_common::wire::ShadowFacts;
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};

/// Shadows on one host: more are a farm of them.
const SHADOWS_MAX: u32 = 256;

/// Longest directory, in bytes: the path of a socket in a shadow's folder below it has at most 107 (unix(7)).
const DIRECTORY_BYTES_MAX: usize = 56;

/// A copy is given up where less than half of the reserve is left, which is looked at five times a second: a guest whose disk is being copied must
/// never be the one to find the file system full.
const COPIES_RESERVE_BYTES_MIN: u64 = 256 << 20;

/// `[shadow]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShadowConfig {
    /// At most so many; 0 takes none.
    pub shadows_max: u32,
    /// Together at most this share of the host's CPU and of its memory.
    pub share_max: f64,
    /// Where their files are: a folder for each.
    pub directory: PathBuf,
    /// Where images, kernels and firmware lie that a shadow may be made from; no other file of the host gets into one.
    pub image_paths: Vec<PathBuf>,
    /// Where copies of this host's VMs' disks are made for their shadows on other hosts, which see it under the same path; `None` makes none.
    pub copies_directory: Option<PathBuf>,
    /// The disks that were copied there are together at most so large, in bytes.
    pub copies_bytes_max: u64,
    /// What stays free on that file system, in bytes.
    pub copies_reserve_bytes: u64,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        Self {
            shadows_max: 0,
            share_max: 0.25,
            directory: "/var/lib/gnomon/shadows".into(),
            image_paths: ["/var/lib/libvirt/images", "/usr/share", "/boot"].map(PathBuf::from).into(),
            copies_directory: None,
            copies_bytes_max: 100 << 30,
            copies_reserve_bytes: 10 << 30,
        }
    }
}

impl ShadowConfig {
    /// What the brain hears of it; `None` while it takes none.
    pub fn facts(&self) -> Option<ShadowFacts> {
        let Self { shadows_max, share_max, .. } = *self;
        (shadows_max > 0).then_some(ShadowFacts { shadows_max, share_max })
    }

    /// Whether a shadow may be made from this file.
    pub fn is_image_path(&self, path: &Path) -> bool {
        is_plain(path) && self.image_paths.iter().any(|allowed| path.starts_with(allowed) && path != allowed)
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.shadows_max > SHADOWS_MAX {
            return Err(("shadow.shadows_max", format!("{} is not within 0..={SHADOWS_MAX}", self.shadows_max)));
        }
        if !(self.share_max > 0.0 && self.share_max <= 1.0) {
            return Err(("shadow.share_max", format!("{} is not a share above 0 and up to 1", self.share_max)));
        }
        if !is_plain(&self.directory) || self.directory.as_os_str().len() > DIRECTORY_BYTES_MAX {
            let why = format!("is no path from / without .. and of at most {DIRECTORY_BYTES_MAX} bytes");
            return Err(("shadow.directory", format!("{} {why}", self.directory.display())));
        }
        if let Some(path) = self.image_paths.iter().find(|path| !is_plain(path)) {
            return Err(("shadow.image_paths", format!("{} is no path from / without ..", path.display())));
        }
        if let Some(copies) = &self.copies_directory {
            let (folder, own) = (copies.display(), &self.directory);
            if !is_plain(copies) {
                return Err(("shadow.copies_directory", format!("{folder} is no path from / without ..")));
            }
            // What is in the one is removed by other rules than what is in the other.
            if copies.starts_with(own) || own.starts_with(copies) {
                return Err(("shadow.copies_directory", format!("{folder} is not apart from shadow.directory")));
            }
        }
        if self.copies_bytes_max == 0 {
            return Err(("shadow.copies_bytes_max", "0 has room for no disk".to_owned()));
        }
        if self.copies_reserve_bytes < COPIES_RESERVE_BYTES_MIN {
            let why = format!("{} is less than {COPIES_RESERVE_BYTES_MIN} (256 MiB)", self.copies_reserve_bytes);
            return Err(("shadow.copies_reserve_bytes", why));
        }
        Ok(())
    }
}

/// Whether a path says where it leads: from the root, and nowhere back.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && path.file_name().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_takes_no_shadows_unless_it_says_so() {
        let config = ShadowConfig::default();
        assert_eq!((config.check(), config.facts()), (Ok(()), None));
        let taking = ShadowConfig { shadows_max: 2, ..config };
        assert_eq!(taking.facts(), Some(ShadowFacts { shadows_max: 2, share_max: 0.25 }));
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let refused = |config: ShadowConfig| config.check().unwrap_err().0;
        let default = ShadowConfig::default;
        assert_eq!(refused(ShadowConfig { shadows_max: 257, ..default() }), "shadow.shadows_max");
        for share_max in [0.0, 1.1, f64::NAN] {
            assert_eq!(refused(ShadowConfig { share_max, ..default() }), "shadow.share_max");
        }
        for directory in ["shadows", "/", "/a/../b", &format!("/{}", "x".repeat(56))] {
            assert_eq!(refused(ShadowConfig { directory: directory.into(), ..default() }), "shadow.directory");
        }
        assert_eq!(refused(ShadowConfig { image_paths: vec!["images".into()], ..default() }), "shadow.image_paths");
        for copies in ["copies", "/var/lib/gnomon/shadows", "/var/lib/gnomon/shadows/x", "/var/lib"] {
            let config = ShadowConfig { copies_directory: Some(copies.into()), ..default() };
            assert_eq!(refused(config), "shadow.copies_directory", "{copies}");
        }
        let apart = ShadowConfig { copies_directory: Some("/srv/copies".into()), ..default() };
        assert_eq!(apart.check(), Ok(()));
        assert_eq!(refused(ShadowConfig { copies_bytes_max: 0, ..default() }), "shadow.copies_bytes_max");
        assert_eq!(refused(ShadowConfig { copies_reserve_bytes: 1, ..default() }), "shadow.copies_reserve_bytes");
    }

    #[test]
    fn only_files_below_the_named_paths_get_into_a_shadow() {
        let config = ShadowConfig::default();
        let may = |path: &str| config.is_image_path(Path::new(path));
        assert!(may("/var/lib/libvirt/images/debian.qcow2") && may("/usr/share/OVMF/OVMF_CODE.fd"));
        for not in ["/etc/shadow", "/var/lib/libvirt/images/../../../../etc/shadow", "boot/x", "/boot", "/bootx", ""] {
            assert!(!may(not), "{not}");
        }
    }
}
