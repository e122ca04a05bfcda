//! Keys of the maps by which a probe knows its VMs.

use super::ProbeError;
use super::accounting::{is_not_found, map_error};
use aya::maps::{HashMap, MapData};
use std::collections::BTreeSet;

/// Makes a VM's keys in a map those that are wanted. What is noted in `present` is in the map, also where this fails midway.
pub(super) fn replace<K: aya::Pod + Ord>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    present: &mut BTreeSet<K>,
    wanted: &[K],
    number: u32,
) -> Result<(), ProbeError> {
    let gone: Vec<K> = present.iter().copied().filter(|key| !wanted.contains(key)).collect();
    for key in gone {
        remove(map, name, &key)?;
        present.remove(&key);
    }
    for &key in wanted {
        if !present.contains(&key) {
            map.insert(key, number, 0).map_err(map_error(name))?;
            present.insert(key);
        }
    }
    Ok(())
}

/// Removes a key from a map, where it is there.
pub(super) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), ProbeError> {
    match map.remove(key) {
        Err(error) if !is_not_found(&error) => Err(map_error(name)(error)),
        _ => Ok(()),
    }
}
