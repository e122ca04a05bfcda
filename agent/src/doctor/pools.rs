//! Storage pools: where disks of VMs that come here could be copied to, where this host takes part in copying any.

use super::{Check, State};
use crate::config::Config;
use crate::host::libvirt::Hypervisor;
use crate::host::libvirt::storage::Place;
use std::time::Duration;
use tokio::time::timeout;

const SIGNAL: &str = "copies from other hosts";

/// How long libvirt may take to tell of its pools.
const ANSWER_MAX: Duration = Duration::from_secs(5);

const DEFINE: &str = "virsh pool-define-as NAME dir --target FOLDER && virsh pool-autostart NAME && virsh pool-start NAME, for each folder with disks: docs/migration.md";

pub(super) async fn examine(config: &Config) -> Vec<Check> {
    if config.migration.copy_bytes_max == 0 {
        return Vec::new();
    }
    let uri = config.host.libvirt_uri.clone();
    let asked = uri.clone();
    let told = tokio::task::spawn_blocking(move || Hypervisor::open(&asked)?.places());
    let why = match timeout(ANSWER_MAX, told).await {
        Ok(Ok(Ok(places))) => return checks(&uri, &places),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("does not tell of storage pools within {} s", ANSWER_MAX.as_secs()),
    };
    vec![Check::unavailable(SIGNAL, uri, why).enable("see that libvirt answers: virsh pool-list --all")]
}

/// One for each pool.
fn checks(uri: &str, places: &[Place]) -> Vec<Check> {
    if places.is_empty() {
        let none = Check::unavailable(SIGNAL, uri, "no storage pool over any folder: no disk is copied to this host");
        return vec![none.enable(DEFINE)];
    }
    places.iter().map(check).collect()
}

fn check(place: &Place) -> Check {
    let (folder, name) = (place.folder.display().to_string(), &place.pool.name);
    if !place.is_active {
        return Check::degraded(SIGNAL, folder, format!("pool {name} is not active, and takes nothing"))
            .enable(format!("virsh pool-start {name} && virsh pool-autostart {name}"));
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let (free, room) = (gib(place.pool.available_bytes), place.pool.room_bytes());
    let why = format!("pool {name}, active: {free:.1} GiB free, takes copies of up to {:.1} GiB", gib(room));
    let state = if room == 0 { State::Degraded } else { State::Ok };
    let check = Check::new(SIGNAL, state, folder, why);
    if room == 0 { check.enable("make room there: 5 % of the file system stay free") } else { check }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libvirt::storage::Pool;
    use std::path::Path;

    fn config(migration: &str) -> Config {
        let text = format!(
            "[host]\nname = \"h1\"\nlibvirt_uri = \"test:///default\"\n[brain]\naddress = \"brain:1\"\n[migration]\n{migration}"
        );
        Config::parse(&text, Path::new("/etc/gnomon/agent.toml")).unwrap()
    }

    fn place(is_active: bool, available_gib: u64) -> Place {
        let pool = Pool { name: "disks".to_owned(), capacity_bytes: 100 << 30, available_bytes: available_gib << 30 };
        Place { folder: "/srv/disks".into(), is_active, pool }
    }

    #[test]
    fn each_pool_is_told_with_what_it_takes_and_what_would_make_it_take_more() {
        let told = checks("qemu:///system", &[place(true, 45), place(false, 0), place(true, 4)]);
        let said: Vec<_> = told.iter().map(|check| (check.state, check.source.as_str(), check.why.as_str())).collect();
        assert_eq!(
            said,
            [
                (State::Ok, "/srv/disks", "pool disks, active: 45.0 GiB free, takes copies of up to 40.0 GiB"),
                (State::Degraded, "/srv/disks", "pool disks is not active, and takes nothing"),
                (State::Degraded, "/srv/disks", "pool disks, active: 4.0 GiB free, takes copies of up to 0.0 GiB"),
            ]
        );
        assert!(told[1].enable.as_ref().is_some_and(|how| how.contains("virsh pool-start disks")));
        assert!(told.iter().all(|check| (check.state == State::Ok) == check.enable.is_none()));
        let none = checks("qemu:///system", &[]);
        assert!(none.len() == 1 && none[0].state == State::Unavailable && none[0].enable.is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn libvirt_is_asked_where_disks_are_copied_at_all() {
        assert_eq!(examine(&config("")).await, []);
        // libvirt's test driver has a pool.
        let told = examine(&config("copy_bytes_max = 1\n")).await;
        assert!(told.len() == 1 && told[0].source == "/default-pool", "{told:?}");
        assert!(told[0].why.starts_with("pool default-pool, active: "), "{told:?}");
    }
}
