//! IPv4 (RFC 791) and IPv6 (RFC 8200) facts.

/// An IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct IpProto(pub u8);

impl IpProto {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// IPv6 routing header.
    pub const ROUTING: Self = Self(43);
    /// IPv6 fragment header.
    pub const FRAGMENT: Self = Self(44);
    /// Authentication header.
    pub const AH: Self = Self(51);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// IPv6 destination options.
    pub const DEST_OPTS: Self = Self(60);
}

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Extension headers that are followed; one more is [`crate::Reason::BadIpv6Ext`].
pub const MAX_EXT_HEADERS: usize = 6;
/// Bytes of extension headers that are followed.
pub const MAX_EXT_BYTES: usize = 512;

/// RFC 4861 §6–7: neighbour discovery is ICMPv6 133 to 137 and only valid with hop limit 255.
#[inline(always)]
pub const fn is_neighbour_discovery(icmp_type: u8, hop_limit: u8) -> bool {
    icmp_type >= 133 && icmp_type <= 137 && hop_limit == 255
}
