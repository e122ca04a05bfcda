//! New keys and certificates: made in memory, put on disk so that a kill at any moment leaves an identity that works.
//!
//! ```text
//! write KEY.new, CERTIFICATE.new -> do they work together? -> rename the key -> rename the certificate
//! ```
//! Two files cannot be replaced in one step. Killed before the first rename, the old pair is complete. Killed between the two, the new
//! key is in place and the new certificate beside its place: the next start finds that the pair does not match, that it would with
//! the certificate beside, and does the second rename.

use super::{Files, Identity, IdentityError};
use gnomon_common::wire::HostId;
use rcgen::{CertificateParams, KeyPair};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A key pair that was just made, and the request to certify it. The private key leaves this host in no way.
pub struct Fresh {
    key: KeyPair,
    /// The certificate signing request (PKCS #10, DER).
    pub request: Vec<u8>,
}

impl Fresh {
    /// Makes a key (ECDSA P-256) and a request for `host`.
    pub fn make(host: &HostId) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![host.as_str().to_owned()])?;
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, request })
    }
}

impl Files {
    /// Replaces key and certificate, and the authority if one is given; returns the identity that they make. What does not work
    /// together is not put in place.
    pub fn replace(&self, fresh: &Fresh, certificate: &str, ca: Option<&str>) -> Result<Identity, IdentityError> {
        let beside = Self { ca: beside(&self.ca), certificate: beside(&self.certificate), key: beside(&self.key) };
        let replaced = self.stage_and_rename(&beside, fresh, certificate, ca);
        if replaced.is_err() {
            for path in [&beside.key, &beside.certificate, &beside.ca] {
                let _ = fs::remove_file(path);
            }
        }
        replaced
    }

    fn stage_and_rename(
        &self,
        beside: &Self,
        fresh: &Fresh,
        certificate: &str,
        ca: Option<&str>,
    ) -> Result<Identity, IdentityError> {
        write(&beside.key, &fresh.key.serialize_pem(), 0o600)?;
        write(&beside.certificate, certificate, 0o644)?;
        let mut staged = beside.clone();
        match ca {
            Some(ca) => write(&beside.ca, ca, 0o644)?,
            None => staged.ca.clone_from(&self.ca),
        }
        let identity = staged.assemble()?;
        if ca.is_some() {
            rename(&beside.ca, &self.ca)?;
        }
        rename(&beside.key, &self.key)?;
        rename(&beside.certificate, &self.certificate)?;
        Ok(identity)
    }

    /// The second rename, if a kill prevented it.
    pub(super) fn finish_replacing(&self) -> Option<Identity> {
        let new = beside(&self.certificate);
        let identity = Self { certificate: new.clone(), ..self.clone() }.assemble().ok()?;
        tracing::info!(certificate = %self.certificate.display(), "a renewal that was interrupted is finished");
        rename(&new, &self.certificate)
            .inspect_err(|error| tracing::warn!(%error, "the next start will have to do it again"))
            .ok();
        Some(identity)
    }

    /// Makes the directories of the files, for their owner alone, where they are missing.
    pub fn make_directories(&self) -> Result<(), IdentityError> {
        for path in [&self.ca, &self.certificate, &self.key] {
            let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { continue };
            make_directory(folder).map_err(|source| IdentityError::Write { path: folder.to_owned(), source })?;
        }
        Ok(())
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn make_directory(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_directory(above)?;
    }
    DirBuilder::new().mode(0o700).create(folder)?;
    give_to_owner_of_folder(&File::open(folder)?, folder)
}

/// Writes a file that nobody looks at yet, to the disk.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let write = || {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // The umask may have narrowed the mode.
        file.set_permissions(Permissions::from_mode(mode))?;
        give_to_owner_of_folder(&file, path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}

/// Root joins on behalf of the agent's own user: what it writes must belong to whom the folder belongs to, or the agent could not read it.
fn give_to_owner_of_folder(file: &File, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = fs::metadata(folder)?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    let rename = || {
        fs::rename(from, to)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    rename().map_err(|source| IdentityError::Write { path: to.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateSigningRequestParams, Issuer};
    use rustls::pki_types::CertificateSigningRequestDer;

    struct Authority(Issuer<'static, KeyPair>, String);

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(Vec::new()).unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self(Issuer::new(params, key), pem)
        }

        fn certify(&self, fresh: &Fresh) -> String {
            let request = CertificateSigningRequestDer::from(fresh.request.as_slice());
            CertificateSigningRequestParams::from_der(&request).unwrap().signed_by(&self.0).unwrap().pem()
        }
    }

    fn files(dir: &Path) -> Files {
        let file = |name| dir.join("identity").join(name);
        Files { ca: file("ca.pem"), certificate: file("agent.pem"), key: file("agent.key") }
    }

    fn fresh() -> Fresh {
        Fresh::make(&HostId::new("h1").unwrap()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_first_identity_is_private_and_a_second_replaces_it_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let (files, authority) = (files(dir.path()), Authority::new());
        files.make_directories().unwrap();
        assert_eq!(mode(&dir.path().join("identity")), 0o700);
        let first = fresh();
        files.replace(&first, &authority.certify(&first), Some(&authority.1)).unwrap();
        files.load().unwrap();
        let key = fs::read_to_string(&files.key).unwrap();
        assert_eq!(mode(&files.key), 0o600);

        let second = fresh();
        files.replace(&second, &authority.certify(&second), None).unwrap();
        files.load().unwrap();
        assert_ne!(fs::read_to_string(&files.key).unwrap(), key);
        assert_eq!(fs::read_dir(dir.path().join("identity")).unwrap().count(), 3, "something is left over");
    }

    #[test]
    fn a_certificate_for_another_key_is_not_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (files, authority) = (files(dir.path()), Authority::new());
        files.make_directories().unwrap();
        let first = fresh();
        files.replace(&first, &authority.certify(&first), Some(&authority.1)).unwrap();
        assert!(files.replace(&fresh(), &authority.certify(&fresh()), None).is_err());
        assert!(files.replace(&fresh(), "no certificate at all", None).is_err());
        files.load().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("identity")).unwrap().count(), 3, "something is left over");
    }

    #[test]
    fn a_kill_at_any_moment_leaves_an_identity_that_works() {
        let authority = Authority::new();
        for renames_done in 0..=2 {
            let dir = tempfile::tempdir().unwrap();
            let files = files(dir.path());
            files.make_directories().unwrap();
            let (old, new) = (fresh(), fresh());
            files.replace(&old, &authority.certify(&old), Some(&authority.1)).unwrap();
            write(&beside(&files.key), &new.key.serialize_pem(), 0o600).unwrap();
            write(&beside(&files.certificate), &authority.certify(&new), 0o644).unwrap();
            let steps = [(beside(&files.key), &files.key), (beside(&files.certificate), &files.certificate)];
            for (from, to) in steps.iter().take(renames_done) {
                rename(from, to).unwrap();
            }
            files.load().unwrap();
            // Loading has settled it: the pair in place is complete, and a later renewal starts afresh.
            files.assemble().unwrap();
            let next = fresh();
            files.replace(&next, &authority.certify(&next), None).unwrap();
            files.load().unwrap();
        }
    }
}
