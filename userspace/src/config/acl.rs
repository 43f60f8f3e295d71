//! `[[acl]]`: what is trusted, inspected or dropped, by the peer's side of a flow.

use ipnet::IpNet;
use serde::Serialize;

use super::address::network;
use super::reader::Table;
use super::report::ValueError;
use super::values::{PortRange, parsed, ports, text, words};

words! {
    /// What a matching flow gets.
    AclAction is "action" {
        /// Forward without NAT or DPI, past the stack where possible.
        Trusted = "trusted",
        /// Steer and inspect.
        Audit = "audit",
        /// Drop.
        Deny = "deny",
    }
}

words! {
    /// The protocol that a rule is about.
    AclProto is "protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// ICMP, or ICMPv6 for an IPv6 address.
        Icmp = "icmp",
        /// Every protocol; a rule that names the flow's protocol goes before.
        Any = "any",
    }
}

/// `[[acl]]`. The most exact rule wins: address and port, address, then the
/// longest prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Acl {
    /// The peer's address or network. Required.
    pub addr: IpNet,
    /// The peer's port or ports. Default: any.
    pub port: PortRange,
    /// The protocol. Default: `any`.
    pub proto: AclProto,
    /// What to do. Required.
    pub action: AclAction,
    /// The owner's tag, 0 to 65535, without meaning here. Default: 0.
    pub id: u16,
}

impl Acl {
    /// What makes two rules the same rule.
    pub fn key(&self) -> (IpNet, PortRange, AclProto) {
        (self.addr, self.port, self.proto)
    }

    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let addr = table.need("addr", |value| text(value, network));
        let port = table.get("port", ports).unwrap_or(PortRange::ANY);
        let proto = table.get("proto", parsed).unwrap_or(AclProto::Any);
        let action = table.need("action", parsed);
        let id = table.number("id", 0..=u16::MAX, 0);
        if proto == AclProto::Icmp && !port.is_any() {
            let error = ValueError::new("ICMP has no ports", "0, or proto tcp or udp");
            table.refuse("port", &error);
            return None;
        }
        Some(Self {
            addr: addr?,
            port,
            proto,
            action: action?,
            id,
        })
    }
}
