//! `[[nat]]` and `[gateway]`: where steered traffic goes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::address::{address, listener, network, socket};
use super::balance::{self, ANNOUNCE_S, Extra, Health, OnRemoved, Source, System};
use super::reader::Table;
use super::report::{ValueError, quoted};
use super::values::{Family, absolute_path, number, or_off, parsed, port, port_text, text, words};

words! {
    /// Which way a flow is opened, seen from the app.
    Direction is "direction" {
        /// The app sends.
        Egress = "egress",
        /// The app receives.
        Ingress = "ingress",
    }
}

words! {
    /// A protocol that can be translated.
    NatProto is "protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

words! {
    /// How a new flow's endpoint is chosen.
    Select is "way to select" {
        /// By a hash of the flow: any node, any restart, the same answer.
        Maglev = "maglev",
        /// In turn.
        RoundRobin = "round-robin",
    }
}

/// The destination that a NAT entry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatTarget {
    /// One address and port.
    AddrPort(SocketAddr),
    /// Every port of one address.
    Addr(IpAddr),
    /// One port of every address.
    Port(u16),
    /// Everything.
    Any,
}

impl NatTarget {
    /// The family, where the target has an address.
    pub const fn family(&self) -> Option<Family> {
        match self {
            Self::AddrPort(socket) => Some(Family::of(&socket.ip())),
            Self::Addr(addr) => Some(Family::of(addr)),
            Self::Port(_) | Self::Any => None,
        }
    }
}

impl fmt::Display for NatTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddrPort(socket) => socket.fmt(f),
            Self::Addr(addr) => addr.fmt(f),
            Self::Port(port) => write!(f, ":{port}"),
            Self::Any => f.pad("any"),
        }
    }
}

impl FromStr for NatTarget {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad =
            |what: String| ValueError::new(what, "\"addr:port\", \"addr\", \":port\", \"any\"");
        let target = match text {
            "any" => Self::Any,
            "" => return Err(bad("is empty".to_owned())),
            _ if text.contains('/') => {
                return Err(bad(format!("{} is a network", quoted(text))));
            }
            _ => match (text.parse::<IpAddr>(), text.strip_prefix(':')) {
                (Ok(_), _) => Self::Addr(address(text)?),
                (_, Some(port)) if !port.starts_with(':') => Self::Port(port_text(port)?),
                _ if text.contains(':') => Self::AddrPort(socket(text)?),
                _ => return Err(bad(format!("{} is not an address", quoted(text)))),
            },
        };
        let unspecified = match target {
            Self::AddrPort(socket) if socket.ip().is_unspecified() => {
                Some(Self::Port(socket.port()))
            }
            Self::Addr(addr) if addr.is_unspecified() => Some(Self::Any),
            _ => None,
        };
        match unspecified {
            Some(meant) => {
                Err(bad(format!("{} is no destination", quoted(text))).or_rather(meant.to_string()))
            }
            None => Ok(target),
        }
    }
}

impl Serialize for NatTarget {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// One place where a NAT entry sends flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// Unicast address and port. Required.
    pub addr: SocketAddr,
    /// Share of the new flows against the other endpoints; 0 gives it none. Default: 1.
    pub weight: u16,
    /// `false` takes it out for new flows and drains the rest. Default: `true`.
    pub active: bool,
}

impl Endpoint {
    /// An active endpoint of weight 1.
    pub const fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: 1,
            active: true,
        }
    }

    fn read(table: &mut Table<'_>) -> Option<Self> {
        let addr = table.need("addr", |value| text(value, listener));
        let weight = table.number("weight", 0..=u16::MAX, 1);
        let active = table.flag("active", true);
        Some(Self {
            addr: addr?,
            weight,
            active,
        })
    }
}

/// `[[nat]]`: flows to `to` go to one of `endpoints`. The most exact entry
/// wins: address and port, address, port, any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nat {
    /// Which way the flow is opened. Required.
    pub direction: Direction,
    /// Its protocol. Required.
    pub proto: NatProto,
    /// Its original destination. Required.
    pub to: NatTarget,
    /// Where it goes instead: 1 to 128 endpoints of one family. Required.
    pub endpoints: Vec<Endpoint>,
    /// How the endpoint is chosen. Default: `maglev`.
    pub select: Select,
    /// Whose entry it is. With `e4lb` the direction is ingress and need not be said. Default: `mesh`.
    pub system: System,
    /// e4lb: the uplink that carries the virtual address. Default: every uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// e4lb: the source address that endpoints see. Default: `auto`.
    pub source: Source,
    /// e4lb: seconds from one announcement of the virtual address to the next (gratuitous ARP, unsolicited
    /// neighbour advertisement); 0 only at the start and when the uplink comes up. Default: 30.
    pub announce_s: u32,
    /// What becomes of flows whose endpoint is no longer there. Default: `drain`.
    pub on_removed: OnRemoved,
    /// How endpoints are probed. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// What makes two entries the same entry.
pub type NatKey = (System, Direction, NatProto, NatTarget, Family);

impl Nat {
    /// As many as the seed's `fsm_xnat` holds.
    pub const MAX_ENDPOINTS: usize = 128;

    /// An entry with the defaults.
    pub const fn new(
        direction: Direction,
        proto: NatProto,
        to: NatTarget,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        Self {
            direction,
            proto,
            to,
            endpoints,
            select: Select::Maglev,
            system: System::Mesh,
            interface: None,
            source: Source::Auto,
            announce_s: ANNOUNCE_S,
            on_removed: OnRemoved::Drain,
            health: None,
        }
    }

    /// What makes two entries the same entry.
    pub fn key(&self) -> NatKey {
        let (direction, proto, to) = (self.direction, self.proto, self.to);
        (self.system, direction, proto, to, self.family())
    }

    /// The virtual address of a load balancer's entry.
    pub fn vip(&self) -> Option<IpAddr> {
        match (self.system, self.to) {
            (System::E4lb, NatTarget::AddrPort(socket)) => Some(socket.ip()),
            (System::E4lb, NatTarget::Addr(addr)) => Some(addr),
            _ => None,
        }
    }

    /// The family of the flows it takes: that of its endpoints.
    pub fn family(&self) -> Family {
        let endpoint = self.endpoints.first().map(|endpoint| endpoint.addr.ip());
        endpoint.map_or(Family::Ipv4, |addr| Family::of(&addr))
    }

    /// Checks what the endpoints must have in common, for an entry that is not from a file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), ValueError> {
        check_endpoints(&self.endpoints, Some(&self.to))?;
        match self.system {
            System::Mesh => Ok(()),
            System::E4lb => balance::check(self.direction, &self.to, &self.endpoints)
                .map_err(|(_, error)| error),
        }
    }

    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let extra = Extra::read(table);
        let direction = match extra.system {
            System::E4lb if !table.has("direction") => Some(Direction::Ingress),
            _ => table.need("direction", parsed),
        };
        let proto = table.need("proto", parsed);
        let to = table.need("to", parsed);
        let endpoints = table.sections("endpoints", Endpoint::read);
        let select = table.get("select", parsed).unwrap_or(Select::Maglev);
        if endpoints.len() < table.count("endpoints") {
            return None;
        }
        if let Err(error) = check_endpoints(&endpoints, to.as_ref()) {
            table.refuse("endpoints", &error);
            return None;
        }
        let (direction, to) = (direction?, to?);
        if extra.system == System::E4lb
            && let Err((key, error)) = balance::check(direction, &to, &endpoints)
        {
            table.refuse(key, &error);
            return None;
        }
        Some(Self {
            direction,
            proto: proto?,
            to,
            endpoints,
            select,
            system: extra.system,
            interface: extra.interface,
            source: extra.source,
            announce_s: extra.announce_s,
            on_removed: extra.on_removed,
            health: extra.health,
        })
    }
}

/// Checks what one endpoint alone cannot show.
fn check_endpoints(endpoints: &[Endpoint], to: Option<&NatTarget>) -> Result<(), ValueError> {
    let max = Nat::MAX_ENDPOINTS;
    let Some(first) = endpoints.first() else {
        let allowed = format!("1 to {max} of {{ addr = \"ADDRESS:PORT\" }}");
        return Err(ValueError::new("there are no endpoints", allowed));
    };
    if endpoints.len() > max {
        let what = format!("{} endpoints are too many", endpoints.len());
        return Err(ValueError::new(what, format!("1 to {max}")));
    }
    let family = Family::of(&first.addr.ip());
    if let Some(other) = endpoints
        .iter()
        .find(|endpoint| Family::of(&endpoint.addr.ip()) != family)
    {
        let what = format!("{} and {} are of two families", first.addr, other.addr);
        return Err(ValueError::new(what, "IPv4 only, or IPv6 only"));
    }
    if let Some(target) = to.and_then(NatTarget::family).filter(|to| *to != family) {
        let what = format!("{family} endpoints cannot take flows to an {target} address");
        return Err(ValueError::new(what, format!("{target} endpoints")));
    }
    if endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        let what = "every weight is 0, so no flow has a place to go";
        return Err(ValueError::new(what, "at least one weight above 0"));
    }
    let mut seen = BTreeMap::new();
    match endpoints
        .iter()
        .find(|endpoint| seen.insert(endpoint.addr, ()).is_some())
    {
        Some(twice) => {
            let what = format!("{} is there twice", twice.addr);
            Err(ValueError::new(what, "each once, with a weight"))
        }
        None => Ok(()),
    }
}

/// `[gateway]`: this node's gateway; sugar for NAT entries ([`Gateway::nat`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// Unicast listeners that get first what an app receives by TCP. Default: none.
    pub inbound: Vec<SocketAddr>,
    /// Unicast listeners that get first what an app sends by TCP. Default: none.
    pub outbound: Vec<SocketAddr>,
    /// Unicast listeners that get what an app sends to port 53, UDP and TCP. Default: none.
    pub dns: Vec<SocketAddr>,
    /// The app's own ports whose flows never go to `inbound`. Default: none.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports whose flows never go to `outbound`. Default: none.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations whose flows never go to `outbound`. Default: none.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Users whose own traffic is left alone. The host's side of a veth does not
    /// see users: without an interface with `attach = "inside"` this does nothing,
    /// and the daemon says so. Default: none.
    pub exclude_uids: Vec<u32>,
    /// Absolute path of the cgroup v2 whose processes get a flow's original
    /// destination by `getsockopt`; `None` (written `""`) is off. Default: off.
    pub original_dst: Option<PathBuf>,
}

impl Gateway {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let mut listeners = |key| {
            let list = table.list(key, |value| text(value, listener));
            list.unwrap_or_default()
        };
        let (inbound, outbound, dns) = (
            listeners("inbound"),
            listeners("outbound"),
            listeners("dns"),
        );
        Self {
            inbound,
            outbound,
            dns,
            exclude_inbound_ports: table
                .list("exclude_inbound_ports", port)
                .unwrap_or_default(),
            exclude_outbound_ports: table
                .list("exclude_outbound_ports", port)
                .unwrap_or_default(),
            exclude_outbound_cidrs: table
                .list("exclude_outbound_cidrs", |value| text(value, network))
                .unwrap_or_default(),
            exclude_uids: table
                .list("exclude_uids", |value| number(value, &(0..=u32::MAX)))
                .unwrap_or_default(),
            original_dst: table
                .get("original_dst", or_off(absolute_path))
                .unwrap_or_default(),
        }
    }

    /// The NAT entries that the listeners stand for: one a family and kind.
    pub fn nat(&self) -> Vec<Nat> {
        let dns = NatTarget::Port(53);
        let kinds = [
            (
                &self.inbound,
                Direction::Ingress,
                NatProto::Tcp,
                NatTarget::Any,
            ),
            (
                &self.outbound,
                Direction::Egress,
                NatProto::Tcp,
                NatTarget::Any,
            ),
            (&self.dns, Direction::Egress, NatProto::Udp, dns),
            (&self.dns, Direction::Egress, NatProto::Tcp, dns),
        ];
        let mut entries = Vec::new();
        for (listeners, direction, proto, to) in kinds {
            for family in [Family::Ipv4, Family::Ipv6] {
                let of_family = |addr: &&SocketAddr| Family::of(&addr.ip()) == family;
                let endpoints: Vec<Endpoint> = listeners
                    .iter()
                    .filter(of_family)
                    .map(|addr| Endpoint::new(*addr))
                    .collect();
                if !endpoints.is_empty() {
                    entries.push(Nat::new(direction, proto, to, endpoints));
                }
            }
        }
        entries
    }
}
