//! Virtual addresses on uplinks: with the address on the device the kernel answers ARP and neighbour solicitations
//! for it. Which of them were put there by us is kept in `fsm_vip`, so that whoever removes the data path, the same
//! daemon or none, takes off just those.

use std::{collections::HashSet, io, net::IpAddr};

use fsm_common::maps::{Vip, VipKey};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_route::address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
    },
};
use tracing::{info, warn};

use super::devices::Device;
use crate::{config::Config, maps::Maps, model::wide};

/// A virtual address on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDevice {
    /// The address.
    pub addr: IpAddr,
    /// The device.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Whether it has a carrier.
    pub is_running: bool,
    /// Seconds between announcements; 0 for none.
    pub announce_s: u32,
}

/// Where a configuration wants virtual addresses, of the uplinks that there are: each once.
pub fn wanted(config: &Config, uplinks: &[Device]) -> Vec<OnDevice> {
    let mut list: Vec<OnDevice> = Vec::new();
    for entry in &config.nat {
        let Some(addr) = entry.vip() else { continue };
        let is_meant = |device: &&Device| {
            entry
                .interface
                .as_ref()
                .is_none_or(|name| *name == device.name)
        };
        for device in uplinks.iter().filter(is_meant) {
            let there = list
                .iter_mut()
                .find(|vip| (vip.addr, vip.ifindex) == (addr, device.ifindex));
            if let Some(vip) = there {
                // 0 is never; else the shorter time of two entries.
                let times = [vip.announce_s, entry.announce_s].into_iter();
                vip.announce_s = times.filter(|s| *s > 0).min().unwrap_or(0);
                continue;
            }
            list.push(OnDevice {
                addr,
                ifindex: device.ifindex,
                name: device.name.clone(),
                mac: device.mac,
                is_running: device.is_running,
                announce_s: entry.announce_s,
            });
        }
    }
    list
}

/// Puts the addresses there that are missing, and takes those of ours off that are no longer wanted. What fails is
/// logged: the other addresses do not wait for it.
///
/// # Errors
/// What the kernel said of `fsm_vip`, or of listing addresses.
pub async fn sync(maps: &mut Maps, handle: &Handle, wanted: &[OnDevice]) -> io::Result<()> {
    let there = addresses(handle).await.map_err(io::Error::other)?;
    for vip in wanted {
        let key = vip_key(vip.addr, vip.ifindex);
        // On whichever device: the kernel answers for it.
        let is_there = there.iter().any(|(addr, _)| *addr == vip.addr);
        if is_there {
            if maps.vip.get(&key, 0).is_err() {
                maps.vip
                    .insert(key, Vip { added: 0 }, 0)
                    .map_err(io::Error::other)?;
            }
            continue;
        }
        // Noted first: better one removal too many than an address left behind.
        maps.vip
            .insert(key, Vip { added: 1 }, 0)
            .map_err(io::Error::other)?;
        match add(handle, vip).await {
            Ok(()) => info!(address = %vip.addr, interface = vip.name, "virtual address added"),
            Err(error) => {
                let _ = maps.vip.remove(&key);
                warn!(address = %vip.addr, interface = vip.name, "virtual address not added: {error}");
            }
        }
    }
    let keep: HashSet<VipKey> = wanted
        .iter()
        .map(|vip| vip_key(vip.addr, vip.ifindex))
        .collect();
    for addr in remove(maps, handle, |key| !keep.contains(key)).await? {
        info!(address = %addr, "virtual address removed");
    }
    Ok(())
}

/// Takes the addresses of ours off that `which` says; gives them.
///
/// # Errors
/// What the kernel said of `fsm_vip`.
pub async fn remove(
    maps: &mut Maps,
    handle: &Handle,
    which: impl Fn(&VipKey) -> bool,
) -> io::Result<Vec<IpAddr>> {
    let entries: Vec<(VipKey, Vip)> = maps
        .vip
        .iter()
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let mut removed = Vec::new();
    for (key, vip) in entries.into_iter().filter(|(key, _)| which(key)) {
        let addr = address(&key);
        if vip.added != 0 {
            let mut message = AddressMessage::default();
            fill(&mut message, addr, key.ifindex);
            // It may be gone with its device.
            if handle.address().del(message).execute().await.is_ok() {
                removed.push(addr);
            }
        }
        maps.vip.remove(&key).map_err(io::Error::other)?;
    }
    Ok(removed)
}

async fn addresses(handle: &Handle) -> Result<Vec<(IpAddr, u32)>, rtnetlink::Error> {
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let read = |message: &AddressMessage| {
        // IPv4 has both on a point-to-point link, and then the local one is the host's.
        let find = |local: bool| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(addr) if local => Some(*addr),
                AddressAttribute::Address(addr) if !local => Some(*addr),
                _ => None,
            })
        };
        let addr = find(true).or_else(|| find(false))?;
        Some((addr, message.header.index))
    };
    Ok(messages.iter().filter_map(read).collect())
}

async fn add(handle: &Handle, vip: &OnDevice) -> Result<(), rtnetlink::Error> {
    let mut request = handle
        .address()
        .add(vip.ifindex, vip.addr, prefix_len(vip.addr));
    let message = request.message_mut();
    message.attributes.clear();
    fill(message, vip.addr, vip.ifindex);
    if vip.addr.is_ipv6() {
        // Of use at once, and never chosen as the host's own source (RFC 6724 §5, rule 3), by the daemon's
        // probes for one.
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
        let mut times = CacheInfo::default();
        (times.ifa_preferred, times.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(times));
    }
    request.execute().await
}

fn fill(message: &mut AddressMessage, addr: IpAddr, ifindex: u32) {
    message.header.family = match addr {
        IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    message.header.prefix_len = prefix_len(addr);
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(addr));
    message.attributes.push(AddressAttribute::Address(addr));
}

const fn prefix_len(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn vip_key(addr: IpAddr, ifindex: u32) -> VipKey {
    VipKey {
        addr: wide(addr),
        ifindex,
        v6: u8::from(addr.is_ipv6()),
        pad: [0; 3],
    }
}

fn address(key: &VipKey) -> IpAddr {
    crate::view::wide_ip(key.addr, key.v6 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::path::Path;

    #[test]
    fn a_virtual_address_is_wanted_once_on_each_uplink_that_is_meant() {
        let text = "[[interface]]\nname = \"up*\"\nrole = \"uplink\"\n\
            [[nat]]\nsystem = \"e4lb\"\nproto = \"tcp\"\nto = \"10.0.0.9:80\"\nannounce_s = 0\n\
            endpoints = [{ addr = \"10.0.0.1:80\" }]\n\
            [[nat]]\nsystem = \"e4lb\"\nproto = \"udp\"\nto = \"10.0.0.9\"\nannounce_s = 7\n\
            endpoints = [{ addr = \"10.0.0.1:80\" }]\n\
            [[nat]]\nsystem = \"e4lb\"\nproto = \"tcp\"\nto = \"[fd00::9]:80\"\ninterface = \"up1\"\n\
            endpoints = [{ addr = \"[fd00::1]:80\" }]\n";
        let config = parse(text, Path::new("node.toml")).unwrap();
        let uplinks = [(1, "up0"), (2, "up1")].map(|(ifindex, name)| Device {
            ifindex,
            name: name.to_owned(),
            ..Device::default()
        });
        let list: Vec<_> = wanted(&config, &uplinks)
            .into_iter()
            .map(|vip| (vip.addr.to_string(), vip.ifindex, vip.announce_s))
            .collect();
        let expected = [("10.0.0.9", 1, 7), ("10.0.0.9", 2, 7), ("fd00::9", 2, 30)];
        assert_eq!(list, expected.map(|(a, i, s)| (a.to_owned(), i, s)));
    }
}
