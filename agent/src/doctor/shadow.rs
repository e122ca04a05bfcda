//! Shadows: whether what making one takes is here, where this host is to take some.

use super::Check;
use crate::config::{Config, ShadowConfig};
use std::path::Path;
use std::process::{Command, Stdio};

const SIGNAL: &str = "shadows";
const COPIES: &str = "copies of disks";
const RECEIVED: &str = "copies of disks from other hosts";

pub(super) fn examine(config: &Config) -> Check {
    let shadow = &config.shadow;
    if shadow.shadows_max == 0 {
        return Check::unavailable(SIGNAL, "[shadow]", "switched off")
            .enable("shadows_max = how many shadows of other hosts' VMs this one takes: docs/shadows.md");
    }
    let ShadowConfig { shadows_max, share_max, directory, .. } = shadow;
    let place = directory.display().to_string();
    if !is_writable(directory) {
        let why = "the agent may not make folders there";
        return Check::unavailable(SIGNAL, place, why)
            .enable("install -d -m 711 -o gnomon-agent -g gnomon-agent DIRECTORY, and ReadWritePaths= in its unit");
    }
    if !has_qemu_img() {
        return Check::unavailable(SIGNAL, "qemu-img", "is not here: only VMs without disks have shadows")
            .enable("install qemu-img (Debian: qemu-utils)");
    }
    Check::ok(SIGNAL, place, format!("at most {shadows_max}, with {:.0} % of this host", share_max * 100.0))
}

/// Whether copies of disks can be made, where the host is to make some.
pub(super) fn examine_copies(config: &Config) -> Option<Check> {
    let directory = config.shadow.copies_directory.as_ref()?;
    let place = directory.display().to_string();
    Some(if !is_writable(directory) {
        Check::unavailable(COPIES, place, "the agent may not make folders there")
            .enable("install -d -m 711 -o gnomon-agent -g gnomon-agent DIRECTORY, and ReadWritePaths= in its unit")
    } else if !has_qemu_img() {
        Check::unavailable(COPIES, "qemu-img", "is not here: no disk is copied")
            .enable("install qemu-img (Debian: qemu-utils)")
    } else {
        Check::ok(COPIES, place, format!("of disks of at most {} GiB together", config.shadow.copies_bytes_max >> 30))
    })
}

/// Whether copies of other hosts' disks can be taken, where the host is to take some.
pub(super) fn examine_received(config: &Config) -> Option<Check> {
    let ShadowConfig { received_directory, received_bytes_max: bytes_max, .. } = &config.shadow;
    let directory = received_directory.as_ref().filter(|_| *bytes_max > 0)?;
    let place = directory.display().to_string();
    Some(if !directory.is_dir() || !is_writable(directory) {
        Check::unavailable(RECEIVED, place, "it is no directory in which the agent may remove files").enable(
            "install -d -m 711 -o gnomon-agent -g gnomon-agent DIRECTORY, ReadWritePaths= in its unit, and a storage pool of libvirt over it",
        )
    } else {
        Check::ok(RECEIVED, place, format!("of at most {} GiB together, by {}", bytes_max >> 30, config.migration.uri))
    })
}

fn has_qemu_img() -> bool {
    let asked = Command::new("qemu-img").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Whether the directory, or what it is yet to be made in, takes new entries.
fn is_writable(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    existing
        .is_some_and(|existing| existing.is_dir() && rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn config(shadow: &str) -> Config {
        let text = format!("[host]\nname = \"h1\"\n[brain]\naddress = \"brain:1\"\n[shadow]\n{shadow}");
        Config::parse(&text, Path::new("/etc/gnomon/agent.toml")).unwrap()
    }

    #[test]
    fn what_is_off_and_what_cannot_be_made_is_told_with_a_way_out() {
        let off = examine(&config(""));
        assert_eq!((off.state, off.needed, off.why.as_str()), (State::Unavailable, false, "switched off"));
        let lost = examine(&config("shadows_max = 1\ndirectory = \"/dev/null/shadows\"\n"));
        assert_eq!((lost.state, lost.why.as_str()), (State::Unavailable, "the agent may not make folders there"));
        assert!(lost.enable.is_some());
        assert!(examine_copies(&config("")).is_none() && examine_received(&config("")).is_none());
        let taking = "received_directory = \"/dev/null/x\"\nreceived_bytes_max = 1\n[migration]\nuri = \"qemu+tls://h1/system\"\n";
        let lost = examine_received(&config(taking)).unwrap();
        assert!(lost.state == State::Unavailable && lost.enable.is_some_and(|way| way.contains("storage pool")));
        let lost = examine_copies(&config("copies_directory = \"/dev/null/copies\"\n")).unwrap();
        assert_eq!((lost.state, lost.why.as_str()), (State::Unavailable, "the agent may not make folders there"));
    }
}
