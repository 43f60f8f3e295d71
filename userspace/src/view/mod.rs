//! Map entries as people and programs see them: pure functions from keys and values to rows and JSON.
//!
//! Nothing here opens a map or asks the daemon; `cli` and the daemon's exports do. `seed` has the
//! shapes of the predecessor's dumps, everything else those of this program's own verbs.

pub mod acl;
pub mod cfg;
pub mod dpi;
pub mod flow;
pub mod nat;
pub mod origin;
pub mod protect;
pub mod seed;
pub mod state;
pub mod status;
pub mod trace;
pub mod worker;

use std::borrow::Cow;
use std::net::IpAddr;

use fsm_common::flow::Address;
use fsm_common::policy::PROTO_OTHER;
use fsm_common::wire::l3::IpProto;

/// A row of a table.
pub trait Row {
    /// Titles of the columns.
    const HEAD: &'static [&'static str];
    /// One text a column.
    fn cells(&self) -> Vec<String>;
}

/// An address from a field of 16 bytes, IPv4 in the front.
pub fn wide_ip(wide: [u8; 16], v6: bool) -> IpAddr {
    match v6 {
        true => IpAddr::from(wide),
        false => IpAddr::from(<[u8; 4]>::narrow(wide)),
    }
}

/// An address of either family.
pub fn ip<A: Address>(addr: A) -> IpAddr {
    wide_ip(addr.widen(), is_v6::<A>())
}

/// Whether the addresses of this type are IPv6.
pub const fn is_v6<A>() -> bool {
    size_of::<A>() == 16
}

/// `ipv4` or `ipv6`.
pub const fn family(v6: bool) -> &'static str {
    match v6 {
        true => "ipv6",
        false => "ipv4",
    }
}

/// A port from network byte order.
pub const fn port(port: [u8; 2]) -> u16 {
    u16::from_be_bytes(port)
}

/// A protocol's name as the configuration has it, or its number.
pub fn proto(number: u8) -> Cow<'static, str> {
    match IpProto(number) {
        IpProto::TCP => "tcp".into(),
        IpProto::UDP => "udp".into(),
        IpProto::ICMP | IpProto::ICMPV6 => "icmp".into(),
        IpProto(PROTO_OTHER) => "other".into(),
        IpProto(number) => number.to_string().into(),
    }
}

/// `addr:port`, or `[v6]:port`.
pub fn endpoint(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

/// A text, or `-` for none.
pub fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read() {
        assert_eq!(ip([10, 0, 0, 1]).to_string(), "10.0.0.1");
        let mut wide = [0; 16];
        (wide[0], wide[15]) = (0xfd, 1);
        assert_eq!(ip(wide).to_string(), "fd00::1");
        assert_eq!(
            wide_ip([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], false).to_string(),
            "10.0.0.1"
        );
        assert_eq!(endpoint(ip(wide), 80), "[fd00::1]:80");
    }

    #[test]
    fn protocols_have_their_names() {
        let names: Vec<_> = [6, 17, 1, 58, 255, 132].map(proto).into();
        assert_eq!(names, ["tcp", "udp", "icmp", "icmp", "other", "132"]);
    }
}
