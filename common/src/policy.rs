//! The ACL: what an entry says, and in which order entries are asked.
//!
//! Order for a peer: exact (address, port, protocol), then (address, any port, protocol), then the longest
//! CIDR. User space compiles CIDRs so that the longest one carries the rules of those around it: the
//! kernel looks once.

use crate::{flow::Address, shared, wire::l3::IpProto};

/// Value of [`AclValue::acl`], the seed's numbers.
pub mod acl {
    /// Drop.
    pub const DENY: u8 = 0;
    /// Steer and inspect; also what no entry means.
    pub const AUDIT: u8 = 1;
    /// Forward without NAT or DPI.
    pub const TRUSTED: u8 = 2;
    /// No entry speaks of the peer. Never in a map; a number, because the verifier refuses the
    /// undefined half of an `Option` that LLVM reads ahead.
    pub const SILENT: u8 = 3;
}

/// Protocol number in ACL keys for whatever is not TCP, UDP or ICMP (RFC 5237's reserved 255).
pub const PROTO_OTHER: u8 = 255;
/// Rules that one CIDR can hold, those of the CIDRs around it included.
pub const CIDR_RULES: usize = 15;

/// Which kinds of entry exist, so that the kernel leaves out look-ups that cannot hit.
pub mod kind {
    /// (address, port, protocol), IPv4.
    pub const EXACT4: u32 = 1;
    /// (address, protocol), IPv4.
    pub const ADDR4: u32 = 2;
    /// CIDR, IPv4.
    pub const CIDR4: u32 = 4;
    /// The same three for IPv6.
    pub const V6_SHIFT: u32 = 3;
}

shared! {
    /// Key of `fsm_xacl`: an IPv4 peer.
    pub struct Acl4Key {
        /// Address.
        pub addr: [u8; 4],
        /// Port, network byte order; zero for any.
        pub port: [u8; 2],
        /// IP protocol, or [`PROTO_OTHER`].
        pub proto: u8,
        /// [`crate::maps::sys`].
        pub sys: u8,
    }

    /// Key of `fsm_xacl6`: an IPv6 peer.
    pub struct Acl6Key {
        /// Address.
        pub addr: [u8; 16],
        /// Port, network byte order; zero for any.
        pub port: [u8; 2],
        /// IP protocol, or [`PROTO_OTHER`].
        pub proto: u8,
        /// [`crate::maps::sys`].
        pub sys: u8,
        /// Always zero.
        pub pad: [u8; 4],
    }

    /// Value of the ACL maps.
    pub struct AclValue {
        /// One of [`acl`].
        pub acl: u8,
        /// The seed's field; not used by the kernel.
        pub flag: u8,
        /// Owner tag.
        pub id: u16,
        /// Always zero.
        pub pad: [u8; 4],
    }

    /// One rule of a CIDR.
    pub struct CidrRule {
        /// First port, host order; 0 to 65535 for any.
        pub port_lo: u16,
        /// Last port, host order.
        pub port_hi: u16,
        /// IP protocol, [`PROTO_OTHER`], or 0 for any.
        pub proto: u8,
        /// One of [`acl`].
        pub acl: u8,
        /// Owner tag.
        pub id: u16,
    }

    /// Value of the CIDR tries: the first rule that matches decides.
    pub struct CidrRules {
        /// Rules in use.
        pub len: u32,
        /// Always zero.
        pub pad: u32,
        /// Most exact prefix first, within it narrower port ranges first.
        pub rules: [CidrRule; CIDR_RULES],
    }

    /// Key of `fsm_cidr4`.
    pub struct Cidr4Key {
        /// Bits that count.
        pub prefix_len: u32,
        /// Network address.
        pub addr: [u8; 4],
    }

    /// Key of `fsm_cidr6`.
    pub struct Cidr6Key {
        /// Bits that count.
        pub prefix_len: u32,
        /// Network address.
        pub addr: [u8; 16],
        /// Always zero.
        pub pad: [u8; 4],
    }
}

impl CidrRules {
    /// The first rule for `proto` and `port` (host order).
    #[inline(always)]
    pub fn find(&self, proto: u8, port: u16) -> Option<AclValue> {
        for i in 0..CIDR_RULES {
            if i as u32 >= self.len {
                break;
            }
            let rule = &self.rules[i];
            if (rule.proto == 0 || rule.proto == proto)
                && rule.port_lo <= port
                && port <= rule.port_hi
            {
                return Some(AclValue {
                    acl: rule.acl,
                    flag: 0,
                    id: rule.id,
                    pad: [0; 4],
                });
            }
        }
        None
    }
}

/// The protocol number that ACL keys use for a packet's protocol.
#[inline(always)]
pub const fn acl_proto(proto: u8) -> u8 {
    match IpProto(proto) {
        IpProto::TCP | IpProto::UDP | IpProto::ICMP | IpProto::ICMPV6 => proto,
        _ => PROTO_OTHER,
    }
}

/// Where ACL entries are found: the kernel's maps, or a test's tables.
pub trait AclTables<A: Address> {
    /// Entry for exactly this address, port (network order, zero for any) and protocol.
    fn exact(&self, addr: &A, port: [u8; 2], proto: u8) -> Option<AclValue>;
    /// Rules of the longest CIDR around the address, asked for this protocol and port.
    fn cidr(&self, addr: &A, proto: u8, port: u16) -> Option<AclValue>;
    /// Bits of [`kind`] for this family, shifted to the IPv4 positions.
    fn kinds(&self) -> u32;
}

/// What the ACL says of a peer; `None` where no entry speaks of it.
#[inline(always)]
pub fn decide<A: Address, T: AclTables<A>>(
    tables: &T,
    addr: &A,
    port: [u8; 2],
    proto: u8,
) -> Option<AclValue> {
    let (kinds, proto) = (tables.kinds(), acl_proto(proto));
    if kinds & kind::EXACT4 != 0
        && port != [0, 0]
        && let Some(value) = tables.exact(addr, port, proto)
    {
        return Some(value);
    }
    if kinds & kind::ADDR4 != 0
        && let Some(value) = tables.exact(addr, [0, 0], proto)
    {
        return Some(value);
    }
    if kinds & kind::CIDR4 != 0 {
        return tables.cidr(addr, proto, u16::from_be_bytes(port));
    }
    None
}
