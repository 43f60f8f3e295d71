//! What changes on the host while the daemon runs: devices come and go, routes and neighbours change.

use std::{collections::HashMap, io, net::IpAddr};

use futures_util::StreamExt as _;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    },
};
use tokio::sync::mpsc;

/// Something that the data path depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A device has come, gone or changed.
    Device,
    /// A route, or a neighbour's MAC.
    Route,
}

/// Watches until the receiver is gone. Events that find the channel full are dropped: one that says the same
/// is in it.
///
/// # Errors
/// Where netlink cannot be opened.
pub fn start(events: mpsc::Sender<Event>) -> io::Result<()> {
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
    ])?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        let mut neighbours = HashMap::new();
        while let Some((message, _)) = messages.next().await {
            if events.is_closed() {
                return;
            }
            if let Some(event) = read(&message, &mut neighbours) {
                let _ = events.try_send(event);
            }
        }
    });
    Ok(())
}

type Neighbours = HashMap<(u32, IpAddr), Vec<u8>>;

fn read(
    message: &NetlinkMessage<RouteNetlinkMessage>,
    neighbours: &mut Neighbours,
) -> Option<Event> {
    let NetlinkPayload::InnerMessage(message) = &message.payload else {
        return None;
    };
    match message {
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Some(Event::Device),
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Some(Event::Route),
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            moved(neighbour, neighbours).then_some(Event::Route)
        }
        _ => None,
    }
}

/// Whether a known neighbour has got another MAC: states come and go all the time and mean nothing.
fn moved(message: &NeighbourMessage, neighbours: &mut Neighbours) -> bool {
    /// More neighbours than this are forgotten together; each is then learned anew.
    const MOST: usize = 65_536;
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                address = Some(IpAddr::V4(*a))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                address = Some(IpAddr::V6(*a))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes.clone()),
            _ => {}
        }
    }
    let (Some(address), Some(mac)) = (address, mac) else {
        return false;
    };
    if neighbours.len() >= MOST {
        neighbours.clear();
    }
    let old = neighbours.insert((message.header.ifindex, address), mac.clone());
    old.is_some_and(|old| old != mac)
}
