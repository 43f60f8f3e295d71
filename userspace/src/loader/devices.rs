//! The host's network devices, as netlink tells of them.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
        nsid::{NsidAttribute, NsidMessage},
        tc::TcHandle,
    },
};

/// XDP on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpState {
    /// Id of the program.
    pub prog_id: u32,
    /// In the driver, not in the stack.
    pub native: bool,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MAC; zero where it has none.
    pub mac: [u8; 6],
    /// L3 bytes.
    pub mtu: u32,
    /// A veth or netkit.
    pub is_pair: bool,
    /// Administratively up.
    pub is_up: bool,
    /// With a carrier.
    pub is_running: bool,
    /// Index of the other end, in its own namespace.
    pub peer: Option<u32>,
    /// This namespace's id for the other end's namespace, where that is another one.
    pub peer_nsid: Option<i32>,
    /// XDP program, if any.
    pub xdp: Option<XdpState>,
    /// Queues for sending and for receiving.
    pub queues: [u32; 2],
}

/// All devices of this namespace.
///
/// # Errors
/// What netlink says.
pub async fn list(handle: &Handle) -> Result<Vec<Device>, rtnetlink::Error> {
    handle
        .link()
        .get()
        .execute()
        .map_ok(|message| read(&message))
        .try_collect()
        .await
}

fn read(message: &LinkMessage) -> Device {
    let mut device = Device {
        ifindex: message.header.index,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_running: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..Device::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                device.mac = bytes.as_slice().try_into().unwrap_or_default()
            }
            LinkAttribute::Link(peer) => device.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => device.peer_nsid = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                device.is_pair = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit)));
            }
            LinkAttribute::Xdp(states) => device.xdp = read_xdp(states),
            LinkAttribute::NumTxQueues(count) => device.queues[0] = *count,
            LinkAttribute::NumRxQueues(count) => device.queues[1] = *count,
            _ => {}
        }
    }
    device
}

fn read_xdp(states: &[LinkXdp]) -> Option<XdpState> {
    let mut state = XdpState::default();
    for attribute in states {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(XdpAttached::Driver) => state.native = true,
            LinkXdp::ProgId(id) => state.prog_id = *id,
            _ => {}
        }
    }
    (state.prog_id != 0).then_some(state)
}

/// Removes the clsact qdisc of a device, if there is one.
///
/// # Errors
/// What netlink says.
pub async fn remove_clsact(handle: &Handle, ifindex: u32) -> Result<(), rtnetlink::Error> {
    let mut request = handle.qdisc().del(ifindex as i32);
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.execute().await
}

/// This namespace's id for the namespace behind `namespace`, if it has one.
///
/// # Errors
/// What netlink says.
pub async fn namespace_id(handle: &mut Handle, namespace: &OwnedFd) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message
        .attributes
        .push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(request).map_err(io::Error::other)?;
    use futures_util::StreamExt as _;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                let id = message.attributes.iter().find_map(|a| match a {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                });
                return Ok(id);
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(None)
}
