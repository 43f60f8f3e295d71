//! Walking through pinned maps that the kernel changes meanwhile, and what a view needs besides them:
//! the time and the interfaces' names.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;
use std::hash::Hash;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, MapData, MapError};
use fsm_common::flow::{Address, Flow, FlowKey};
use ipnet::IpNet;

use super::Failure;
pub use crate::control::sweep::now_ns;
use crate::view::flow::is_original;

/// Calls `visit` once for each entry. An entry that goes away meanwhile may make the kernel begin again,
/// so what was seen is remembered.
pub fn each<K, V>(
    map: &HashMap<MapData, K, V>,
    mut visit: impl FnMut(K, V) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    K: Pod + Eq + Hash,
    V: Pod,
{
    let mut seen = HashSet::new();
    for key in map.keys() {
        let key = key?;
        if !seen.insert(key) {
            continue;
        }
        if let Some(value) = found(map.get(&key, 0))? {
            visit(key, value)?;
        }
    }
    Ok(())
}

/// `None` for an entry that is not there.
pub fn found<V>(value: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls `visit` once for each flow, with its original direction and, if there is one, the answering one.
pub fn each_flow<A: Address>(
    map: &HashMap<MapData, FlowKey<A>, Flow<A>>,
    mut visit: impl FnMut(&FlowKey<A>, &Flow<A>, Option<&Flow<A>>) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    each(map, |key, flow| {
        if !is_original(&flow) {
            return Ok(());
        }
        let reply = found(map.get(&flow.pair_key(&key), 0))?;
        visit(&key, &flow, reply.as_ref())
    })
}

/// Entries of a hash map.
pub fn count<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, max_entries: u32) -> u64 {
    counted(map.keys(), max_entries)
}

/// Entries of a trie.
pub fn count_trie<K: Pod, V: Pod>(map: &LpmTrie<MapData, K, V>, max_entries: u32) -> u64 {
    counted(map.keys(), max_entries)
}

/// Never more than fit, also where the walk began again.
fn counted<K>(keys: impl Iterator<Item = Result<K, MapError>>, max_entries: u32) -> u64 {
    keys.take(max_entries as usize)
        .filter(Result::is_ok)
        .count() as u64
}

/// Each CIDR of both families with its value.
pub fn cidrs<V: Pod>(
    v4: &LpmTrie<MapData, [u8; 4], V>,
    v6: &LpmTrie<MapData, [u8; 20], V>,
) -> Result<Vec<(IpNet, V)>, Failure> {
    let mut all = Vec::new();
    for entry in v4.iter() {
        let (key, value) = entry?;
        all.extend(net(IpAddr::from(key.data()), key.prefix_len()).map(|net| (net, value)));
    }
    for entry in v6.iter() {
        let (key, value) = entry?;
        let mut addr = [0; 16];
        addr.copy_from_slice(&key.data()[..16]);
        all.extend(net(IpAddr::from(addr), key.prefix_len()).map(|net| (net, value)));
    }
    Ok(all)
}

fn net(addr: IpAddr, prefix_len: u32) -> Option<IpNet> {
    IpNet::new(addr, u8::try_from(prefix_len).ok()?).ok()
}

/// The interfaces of this network namespace by index. Not by sysfs, which `nsenter --net` leaves behind.
pub fn interfaces() -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    // SAFETY: gives null, or an array that ends with a null name and is ours until freed.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return names;
    }
    let mut at = list;
    loop {
        // SAFETY: within the array: its end, which is the first null name, has not been passed.
        let entry = unsafe { &*at };
        if entry.if_name.is_null() {
            break;
        }
        // SAFETY: a name of the array, which is still ours.
        let name = unsafe { CStr::from_ptr(entry.if_name) };
        names.insert(entry.if_index, name.to_string_lossy().into_owned());
        // SAFETY: the entry before the end is not the last of the array.
        at = unsafe { at.add(1) };
    }
    // SAFETY: from if_nameindex, freed once; nothing borrowed from it is left.
    unsafe { libc::if_freenameindex(list) };
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_there() {
        assert_eq!(interfaces().get(&1).map(String::as_str), Some("lo"));
    }

    #[test]
    fn the_clock_runs() {
        let before = now_ns();
        assert!(before > 0 && now_ns() >= before);
    }
}
