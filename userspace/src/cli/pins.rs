//! Walking through pinned maps that the kernel changes meanwhile, and what a view needs besides them:
//! the time and the interfaces' names.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::net::IpAddr;
use std::path::Path;

use aya::Pod;
use aya::maps::MapError;
use fsm_common::flow::{Address, Flow, FlowKey};
use fsm_common::policy::{Cidr4Key, Cidr6Key};
use ipnet::IpNet;

use super::Failure;
pub use crate::control::sweep::now_ns;
use crate::loader::bulk::Bulk;
use crate::view::flow::is_original;

/// Calls `visit` once for each entry of a map.
pub fn each<K: Pod, V: Pod>(
    maps: &Path,
    name: &'static str,
    visit: impl FnMut(K, V) -> Result<(), Failure>,
) -> Result<(), Failure> {
    Bulk::open(maps, name)?.each(visit)
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
    maps: &Path,
    name: &'static str,
    mut visit: impl FnMut(&FlowKey<A>, &Flow<A>, Option<&Flow<A>>) -> Result<(), Failure>,
) -> Result<(), Failure>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let flows = Bulk::open(maps, name)?;
    flows.each(|key: FlowKey<A>, flow: Flow<A>| {
        if !is_original(&flow) {
            return Ok(());
        }
        let reply = flows.get(&flow.pair_key(&key))?;
        visit(&key, &flow, reply.as_ref())
    })
}

/// Entries of a map.
pub fn count<K: Pod, V: Pod>(maps: &Path, name: &'static str) -> Result<u64, MapError> {
    let mut count = 0;
    Bulk::open(maps, name)?.each(|_: K, _: V| {
        count += 1;
        Ok::<_, MapError>(())
    })?;
    Ok(count)
}

/// Each network of an IPv4 trie with its value.
pub fn nets4<V: Pod>(
    maps: &Path,
    name: &'static str,
    mut visit: impl FnMut(IpNet, V),
) -> Result<(), Failure> {
    each(maps, name, |key: Cidr4Key, value| {
        if let Some(net) = net(IpAddr::from(key.addr), key.prefix_len) {
            visit(net, value);
        }
        Ok(())
    })
}

/// Each network of an IPv6 trie with its value.
pub fn nets6<V: Pod>(
    maps: &Path,
    name: &'static str,
    mut visit: impl FnMut(IpNet, V),
) -> Result<(), Failure> {
    each(maps, name, |key: Cidr6Key, value| {
        if let Some(net) = net(IpAddr::from(key.addr), key.prefix_len) {
            visit(net, value);
        }
        Ok(())
    })
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
