//! The way to the workers: a veth pair with a queue for each of them, and the three programs on it. The data path
//! sends into `dpi0`, the front, and what workers give back comes out of it; their sockets are on `dpi1`, the back.
//!
//! The pair outlives the daemon, as all of the data path does; the next one takes it over where it fits. A pair
//! cannot change its number of queues, so where that differs it is made anew.

use std::{io, path::Path};

use aya::programs::TcAttachType;
use fsm_common::{escalate::HEAD, wire::l2::VLAN_LEN};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute,
    },
};

use super::{
    attach::{self, AttachError, TcKind, link_dir},
    devices::{self, Device},
    ethtool::Ethtool,
    objects::{Objects, program},
    sys::{AttachType, Link, XDP_NATIVE},
};

/// The pair's names: front and back.
pub const NAMES: [&str; 2] = fsm_common::escalate::PAIR;
/// What veth takes with a native XDP program on the other end that does not read packets in parts: a page less
/// headroom, `skb_shared_info` and the Ethernet header (`veth_xdp_set`, drivers/net/veth.c), here with some to spare.
pub const MAX_MTU: u32 = 3_498;
/// The pinned links, in the folder of links.
const PINS: [&str; 3] = ["dpi-rx", "dpi-tx", "dpi-back"];

/// Why there is no way to the workers.
#[derive(Debug, thiserror::Error)]
pub enum DpiError {
    /// Something of that name is there.
    #[error("{0}: a device of this name is there that is no end of our pair: rename or remove it")]
    Foreign(String),
    /// It has vanished.
    #[error("{0}: the device has gone")]
    Gone(String),
    /// Netlink.
    #[error("{name}: {source}")]
    Netlink {
        /// Device.
        name: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// ethtool.
    #[error("{name}: offloads cannot be switched off: {source}")]
    Offloads {
        /// Device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The programs.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The pair, up and ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Where the data path sends: `dpi0`.
    pub front: Device,
    /// Where the sockets are: `dpi1`.
    pub back: Device,
    /// It was there already.
    pub is_adopted: bool,
}

/// The MTU that a pair needs for packets of devices whose MTU is at most `largest`: their head comes on top, and a
/// second VLAN tag may. Longer packets than [`MAX_MTU`] allows cannot be given to workers.
pub fn mtu_for(largest: u32) -> u32 {
    (largest + (HEAD + VLAN_LEN) as u32).min(MAX_MTU)
}

/// Makes the pair, or takes over the one that is there; it is up then, and silent by itself.
///
/// # Errors
/// See [`DpiError`].
pub async fn ensure(
    handle: &Handle,
    names: [&str; 2],
    queues: u32,
    mtu: u32,
) -> Result<Pair, DpiError> {
    let old = find(handle, names).await?;
    let fits = |pair: &[Device; 2]| pair.iter().all(|end| end.queues == [queues; 2]);
    let is_adopted = old.as_ref().is_some_and(fits);
    if !is_adopted {
        if let Some([front, _]) = &old {
            delete(handle, front).await?;
        }
        let request = handle.link().add(message(names, queues));
        request.execute().await.map_err(netlink(names[0]))?;
    }
    let ends = find(handle, names).await?;
    let [front, back] = ends.ok_or_else(|| DpiError::Gone(names[0].into()))?;
    for end in [&front, &back] {
        set_up(handle, end, mtu).await?;
    }
    let ends = find(handle, names).await?;
    let [front, back] = ends.ok_or_else(|| DpiError::Gone(names[0].into()))?;
    Ok(Pair {
        front,
        back,
        is_adopted,
    })
}

fn netlink(name: &str) -> impl FnOnce(rtnetlink::Error) -> DpiError {
    move |source| DpiError::Netlink {
        name: name.to_owned(),
        source,
    }
}

/// Both ends, where they are there and are ours.
async fn find(handle: &Handle, names: [&str; 2]) -> Result<Option<[Device; 2]>, DpiError> {
    let devices = devices::list(handle).await.map_err(netlink(names[0]))?;
    let named = |name: &str| devices.iter().find(|device| device.name == name).cloned();
    match names.map(named) {
        [None, None] => Ok(None),
        [Some(front), Some(back)]
            if front.is_pair
                && front.peer == Some(back.ifindex)
                && front.peer_nsid.is_none()
                && back.peer == Some(front.ifindex) =>
        {
            Ok(Some([front, back]))
        }
        [Some(other), _] | [None, Some(other)] => Err(DpiError::Foreign(other.name)),
    }
}

fn message(names: [&str; 2], queues: u32) -> rtnetlink::packet_route::link::LinkMessage {
    let with_queues = [
        LinkAttribute::NumTxQueues(queues),
        LinkAttribute::NumRxQueues(queues),
    ];
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(names[1]);
    let mut front = LinkVeth::new(names[0], names[1]);
    for attribute in with_queues {
        peer = peer.append_extra_attribute(attribute.clone());
        front = front.append_extra_attribute(attribute);
    }
    let peer = InfoData::Veth(InfoVeth::Peer(peer.build()));
    front.set_info_data(peer).build()
}

/// No addresses, no neighbours, no offloads, up.
async fn set_up(handle: &Handle, end: &Device, mtu: u32) -> Result<(), DpiError> {
    // Where IPv6 is not built in, there is no such file, nor need of it.
    let quiet = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", end.name);
    let _ = std::fs::write(quiet, "1");
    let no_addresses = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    let silent = LinkUnspec::new_with_index(end.ifindex)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            no_addresses,
        )]))
        .build();
    let _ = handle.link().set(silent).execute().await;
    // What goes in comes out as one packet with its checksums and tags in place: what is left to a card elsewhere
    // would never be done here.
    Ethtool::open(end.ifindex)
        .and_then(|ethtool| ethtool.switch_off(is_offload))
        .map_err(|source| DpiError::Offloads {
            name: end.name.clone(),
            source,
        })?;
    let up = LinkUnspec::new_with_index(end.ifindex)
        .mtu(mtu)
        .arp(false)
        .multicast(false)
        .up()
        .build();
    let request = handle.link().set(up);
    request.execute().await.map_err(netlink(&end.name))
}

/// Names as in `netdev_features_strings` (net/ethtool/common.c).
fn is_offload(name: &str) -> bool {
    name.starts_with("tx-")
        && ["checksum", "segmentation", "gso", "vlan"]
            .iter()
            .any(|part| name.contains(part))
}

/// Puts the three programs in place; what an earlier daemon left is replaced without a gap.
///
/// # Errors
/// See [`DpiError`].
pub fn attach(objects: &mut Objects, dir: &Path, pair: &Pair, tc: TcKind) -> Result<(), DpiError> {
    let link_dir = link_dir(dir);
    std::fs::create_dir_all(&link_dir).map_err(|source| AttachError::Pin {
        path: link_dir.clone(),
        source,
    })?;
    let Pair { front, back, .. } = pair;
    if tc == TcKind::Clsact {
        attach::ensure_clsact(front)?;
    }
    let [rx, tx, from_workers] = PINS;
    for (name, pin, device, kind, direction) in [
        (
            program::DPI_BACK,
            from_workers,
            front,
            AttachType::TcxIngress,
            Some(TcAttachType::Ingress),
        ),
        (program::DPI_RX, rx, back, AttachType::Xdp, None),
        (
            program::DPI_TX,
            tx,
            front,
            AttachType::TcxEgress,
            Some(TcAttachType::Egress),
        ),
    ] {
        if let (TcKind::Clsact, Some(direction)) = (tc, direction) {
            attach::attach_clsact(objects.tc(name), device, direction)?;
            continue;
        }
        let path = link_dir.join(pin);
        let is_elsewhere = Link::open(&path)
            .and_then(|link| link.map(|link| link.info()).transpose())
            .map_err(|source| AttachError::Pin {
                path: path.clone(),
                source,
            })?
            .is_some_and(|info| info.ifindex != device.ifindex);
        if is_elsewhere {
            attach::remove_pin(&path)?;
        }
        let flags = if kind == AttachType::Xdp {
            XDP_NATIVE
        } else {
            0
        };
        attach::take_over(objects, name, &path, device, |program| {
            Link::create(program, device.ifindex, kind, flags)
        })?;
    }
    Ok(())
}

/// Lets go of the programs.
///
/// # Errors
/// Where a pin cannot be removed.
pub fn detach(dir: &Path) -> Result<(), DpiError> {
    for pin in PINS {
        attach::remove_pin(&link_dir(dir).join(pin))?;
    }
    Ok(())
}

/// Removes the pair, and the programs with it; whether there was one.
///
/// # Errors
/// See [`DpiError`]; another's device of that name is left alone without one.
pub async fn remove(handle: &Handle, dir: &Path, names: [&str; 2]) -> Result<bool, DpiError> {
    detach(dir)?;
    match find(handle, names).await {
        Ok(Some([front, _])) => delete(handle, &front).await.map(|()| true),
        Ok(None) | Err(DpiError::Foreign(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn delete(handle: &Handle, end: &Device) -> Result<(), DpiError> {
    let request = handle.link().del(end.ifindex);
    request.execute().await.map_err(netlink(&end.name))
}
