//! Frame → addresses, ports and offsets, or the reason why not. Bounded: at most two VLAN tags, six
//! extension headers and 512 bytes of them; every length is checked against the frame.

use crate::{
    flow::{FlowKey, V4, V6},
    reason::Reason,
    track::{MAX_SCALE, Segment},
    view::PacketView,
    wire::{
        l2::{ETH_LEN, EtherType, MAX_VLANS, VLAN_LEN},
        l3::{IPV4_LEN, IPV6_LEN, IpProto, MAX_EXT_BYTES, MAX_EXT_HEADERS, is_neighbour_discovery},
        l4::{
            ICMP_LEN, TCP_LEN, UDP_LEN, icmp_is_echo, icmp_is_error, icmpv6_is_echo,
            icmpv6_is_error, tcp_flag, tcp_flags_valid,
        },
    },
};

/// [`Parsed::tcp_flags`] of an ICMP message too short to have a type (unassigned in both registries).
const NO_ICMP_TYPE: u8 = 0xfe;

/// What the link layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Type of the payload.
    pub ethertype: EtherType,
    /// Offset of the payload.
    pub l3: u16,
}

/// Which part of a datagram this is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first part, which carries the ports.
    First,
    /// A later part: `key`'s ports are zero.
    Later,
}

/// One packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<A> {
    /// Tuple as it arrived; ports zero for what has none.
    pub key: FlowKey<A>,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the TCP, UDP or ICMP header, or of a later fragment's data.
    pub l4: u16,
    /// TCP flags byte; the ICMP type for ICMP and ICMPv6; else zero.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Fragment state.
    pub fragment: Fragment,
    /// Window field of TCP, host order.
    pub window: u16,
    /// Fragment identification (network byte order in IPv6, zero-extended in IPv4).
    pub fragment_id: u32,
    /// Sequence number of TCP, host order.
    pub seq: u32,
    /// Acknowledgement number of TCP, host order.
    pub ack: u32,
    /// Bytes of TCP's payload.
    pub payload: u32,
}

/// IPv4 packet.
pub type Parsed4 = Parsed<<V4 as crate::flow::Family>::Addr>;
/// IPv6 packet.
pub type Parsed6 = Parsed<<V6 as crate::flow::Family>::Addr>;

impl<A> Parsed<A> {
    /// Offset of the IP header. Masked (it is at most 22), for the verifier forgets the bounds of what was
    /// on the stack.
    #[inline(always)]
    pub fn l3_at(&self) -> usize {
        usize::from(self.l3 & 0x1f)
    }

    /// Offset of the transport header; masked likewise (it is at most 574).
    #[inline(always)]
    pub fn l4_at(&self) -> usize {
        usize::from(self.l4 & 0x3ff)
    }

    /// TCP or UDP with its header in this packet.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        has_ports(self.key.proto) && self.fragment as u8 != Fragment::Later as u8
    }

    /// TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.key.proto == IpProto::TCP.0
    }

    /// TCP with SYN, FIN or RST.
    #[inline(always)]
    pub fn is_tcp_event(&self) -> bool {
        self.is_tcp() && self.tcp_flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0
    }

    /// What tracking needs of a TCP segment; the scale option is not read here.
    #[inline(always)]
    pub fn segment(&self) -> Segment {
        Segment {
            seq: self.seq,
            ack: self.ack,
            len: self.payload,
            window: self.window,
            flags: self.tcp_flags,
            scale: 0,
        }
    }

    /// A packet that belongs to a flow: TCP, UDP, ICMP and ICMPv6 echo.
    #[inline(always)]
    pub fn is_flow(&self) -> bool {
        has_ports(self.key.proto) || self.is_echo()
    }

    /// ICMP or ICMPv6 echo, request or reply, in one piece; its identifier stands in place of both ports.
    #[inline(always)]
    pub fn is_echo(&self) -> bool {
        if self.fragment as u8 != Fragment::Whole as u8 {
            return false;
        }
        match IpProto(self.key.proto) {
            IpProto::ICMP => icmp_is_echo(self.tcp_flags),
            IpProto::ICMPV6 => icmpv6_is_echo(self.tcp_flags),
            _ => false,
        }
    }

    /// An ICMP or ICMPv6 error, which quotes another packet.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        match IpProto(self.key.proto) {
            IpProto::ICMP => icmp_is_error(self.tcp_flags),
            IpProto::ICMPV6 => icmpv6_is_error(self.tcp_flags),
            _ => false,
        }
    }

    /// RFC 4861 message; always let through.
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        self.key.proto == IpProto::ICMPV6.0
            && is_neighbour_discovery(self.tcp_flags, self.hop_limit)
    }
}

/// A packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// IPv4.
    V4(Parsed4),
    /// IPv6.
    V6(Parsed6),
    /// ARP, LLDP and the like.
    Other(EtherType),
}

/// Parses a whole frame; the hooks call the steps themselves, to keep one family's code together.
///
/// # Errors
/// The reason for which the hooks would drop it.
pub fn parse<P: PacketView + ?Sized>(packet: &P) -> Result<Packet, Reason> {
    let link = link(packet)?;
    Ok(match link.ethertype {
        EtherType::IPV4 => Packet::V4(ipv4(packet, link.l3)?),
        EtherType::IPV6 => Packet::V6(ipv6(packet, link.l3)?),
        other => Packet::Other(other),
    })
}

/// Ethernet and VLAN tags.
#[inline(always)]
pub fn link<P: PacketView + ?Sized>(packet: &P) -> Result<Link, Reason> {
    let mut ethertype = ethertype(packet, 12)?;
    let mut l3 = ETH_LEN;
    for _ in 0..MAX_VLANS {
        if !ethertype.is_vlan() {
            break;
        }
        ethertype = self::ethertype(packet, l3 + 2)?;
        l3 += VLAN_LEN;
    }
    if ethertype.is_vlan() {
        return Err(Reason::BadVlan);
    }
    Ok(Link {
        ethertype,
        l3: l3 as u16,
    })
}

#[inline(always)]
fn ethertype<P: PacketView + ?Sized>(packet: &P, offset: usize) -> Result<EtherType, Reason> {
    let bytes = packet.read::<2>(offset).ok_or(Reason::Truncated)?;
    Ok(EtherType(u16::from_be_bytes(bytes)))
}

/// IPv4 (RFC 791) and what it carries.
#[inline(always)]
pub fn ipv4<P: PacketView + ?Sized>(packet: &P, l3: u16) -> Result<Parsed4, Reason> {
    let at = usize::from(l3);
    let ip = packet.read::<IPV4_LEN>(at).ok_or(Reason::Truncated)?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    let room = packet.frame_len().wrapping_sub(at);
    let total = match usize::from(u16::from_be_bytes([ip[2], ip[3]])) {
        // BIG TCP: a GSO frame of over 64 KiB says zero
        0 if room > 0xffff => room,
        total => total,
    };
    if ip[0] >> 4 != 4 || header < IPV4_LEN || total < header || total > room {
        return Err(Reason::BadIpv4);
    }
    let frag = u16::from_be_bytes([ip[6], ip[7]]);
    let fragment = match (frag & 0x1fff, frag & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let mut parsed = Parsed {
        key: FlowKey {
            saddr: [ip[12], ip[13], ip[14], ip[15]],
            daddr: [ip[16], ip[17], ip[18], ip[19]],
            sport: [0; 2],
            dport: [0; 2],
            proto: ip[9],
            pad: [0; 3],
        },
        l3,
        l4: l3 + header as u16,
        tcp_flags: 0,
        hop_limit: ip[8],
        fragment,
        window: 0,
        fragment_id: u32::from(u16::from_ne_bytes([ip[4], ip[5]])),
        seq: 0,
        ack: 0,
        payload: 0,
    };
    transport(packet, &mut parsed, total - header)?;
    Ok(parsed)
}

/// IPv6 (RFC 8200), its extension headers and what it carries.
#[inline(always)]
pub fn ipv6<P: PacketView + ?Sized>(packet: &P, l3: u16) -> Result<Parsed6, Reason> {
    let at = usize::from(l3);
    let ip = packet.read::<IPV6_LEN>(at).ok_or(Reason::Truncated)?;
    let room = packet.frame_len().wrapping_sub(at + IPV6_LEN);
    let payload = match usize::from(u16::from_be_bytes([ip[4], ip[5]])) {
        0 if room > 0xffff => room,
        payload => payload,
    };
    if ip[0] >> 4 != 6 || payload > room {
        return Err(Reason::BadIpv6);
    }
    let mut parsed = Parsed {
        key: FlowKey {
            saddr: *ip[8..24].first_chunk::<16>().ok_or(Reason::BadIpv6)?,
            daddr: *ip[24..40].first_chunk::<16>().ok_or(Reason::BadIpv6)?,
            sport: [0; 2],
            dport: [0; 2],
            proto: ip[6],
            pad: [0; 3],
        },
        l3,
        l4: l3 + IPV6_LEN as u16,
        tcp_flags: 0,
        hop_limit: ip[7],
        fragment: Fragment::Whole,
        window: 0,
        fragment_id: 0,
        seq: 0,
        ack: 0,
        payload: 0,
    };
    let skipped = if is_extension(parsed.key.proto) {
        extensions(packet, &mut parsed)?
    } else {
        0
    };
    if skipped > payload {
        return Err(Reason::BadIpv6Ext);
    }
    transport(packet, &mut parsed, payload - skipped)?;
    Ok(parsed)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        IpProto(next),
        IpProto::HOP_BY_HOP
            | IpProto::ROUTING
            | IpProto::FRAGMENT
            | IpProto::AH
            | IpProto::DEST_OPTS
    )
}

/// Follows the chain (RFC 8200 §4); gives the bytes skipped. A later fragment's chain ends at its header.
#[inline(always)]
fn extensions<P: PacketView + ?Sized>(packet: &P, parsed: &mut Parsed6) -> Result<usize, Reason> {
    let start = usize::from(parsed.l4);
    let mut skipped = 0usize;
    for _ in 0..MAX_EXT_HEADERS {
        let head = packet.read::<8>(start + skipped).ok_or(Reason::Truncated)?;
        let len = match IpProto(parsed.key.proto) {
            IpProto::FRAGMENT => {
                let field = u16::from_be_bytes([head[2], head[3]]);
                parsed.fragment = match (field & 0xfff8, field & 1) {
                    // RFC 6946: an atomic fragment is whole
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                parsed.fragment_id = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
                8
            }
            // RFC 4302 §2.2 counts in 4-byte units, and two less
            IpProto::AH => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        skipped += len;
        if skipped > MAX_EXT_BYTES {
            return Err(Reason::BadIpv6Ext);
        }
        parsed.key.proto = head[0];
        if parsed.fragment as u8 == Fragment::Later as u8 || !is_extension(head[0]) {
            parsed.l4 = (start + skipped) as u16;
            return Ok(skipped);
        }
    }
    Err(Reason::BadIpv6Ext)
}

/// Ports and flags; `payload` is what the IP header says is left for the transport.
#[inline(always)]
fn transport<A, P: PacketView + ?Sized>(
    packet: &P,
    parsed: &mut Parsed<A>,
    payload: usize,
) -> Result<(), Reason> {
    if parsed.fragment as u8 == Fragment::Later as u8 {
        return Ok(());
    }
    let at = usize::from(parsed.l4);
    // RFC 1858: a first fragment too short for its header hides it from every rule
    let short = |reason| {
        if parsed.fragment as u8 == Fragment::First as u8 {
            Reason::FragmentTiny
        } else {
            reason
        }
    };
    match IpProto(parsed.key.proto) {
        IpProto::TCP => {
            if payload < TCP_LEN {
                return Err(short(Reason::BadTcp));
            }
            let tcp = packet.read::<16>(at).ok_or(Reason::Truncated)?;
            let header = usize::from(tcp[12] >> 4) * 4;
            if header < TCP_LEN || header > payload {
                return Err(short(Reason::BadTcp));
            }
            if !tcp_flags_valid(tcp[13]) {
                return Err(Reason::BadTcpFlags);
            }
            parsed.tcp_flags = tcp[13];
            parsed.seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            parsed.ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
            parsed.window = u16::from_be_bytes([tcp[14], tcp[15]]);
            parsed.payload = (payload - header) as u32;
            parsed.key.sport = [tcp[0], tcp[1]];
            parsed.key.dport = [tcp[2], tcp[3]];
        }
        IpProto::UDP => {
            if payload < UDP_LEN {
                return Err(short(Reason::BadUdp));
            }
            let udp = packet.read::<6>(at).ok_or(Reason::Truncated)?;
            let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            let whole = parsed.fragment as u8 == Fragment::Whole as u8;
            // RFC 2675: zero with a jumbo payload
            if whole && (len < UDP_LEN || len > payload) && !(len == 0 && payload > 0xffff) {
                return Err(Reason::BadUdp);
            }
            parsed.key.sport = [udp[0], udp[1]];
            parsed.key.dport = [udp[2], udp[3]];
        }
        IpProto::ICMP | IpProto::ICMPV6 if payload >= ICMP_LEN => {
            let icmp = packet.read::<6>(at).ok_or(Reason::Truncated)?;
            parsed.tcp_flags = icmp[0];
            if parsed.is_echo() {
                parsed.key.sport = [icmp[4], icmp[5]];
                parsed.key.dport = [icmp[4], icmp[5]];
            }
        }
        // No type at all: 0 would be an echo reply.
        IpProto::ICMP | IpProto::ICMPV6 => parsed.tcp_flags = NO_ICMP_TYPE,
        _ => {}
    }
    Ok(())
}

/// The window scale option of the TCP header at `l4` (RFC 7323 §2.2), 0 where there is none. A header with
/// more options before it than any TCP sends counts as the largest.
#[inline(always)]
pub fn window_scale<P: PacketView + ?Sized>(packet: &P, l4: usize) -> u8 {
    const OPTIONS: usize = 16;
    let Some([offset, _]) = packet.read::<2>(l4 + 12) else {
        return 0;
    };
    let end = usize::from(offset >> 4) * 4;
    let mut at = TCP_LEN;
    for _ in 0..OPTIONS {
        if at + 3 > end {
            return 0;
        }
        let Some([kind, len, value]) = packet.read::<3>(l4 + (at & 0x3f)) else {
            return 0;
        };
        at += match (kind, len) {
            (0, _) => return 0,
            (1, _) => 1,
            (3, 3) => return value,
            (_, 0 | 1) => return 0,
            (_, len) => usize::from(len),
        };
    }
    MAX_SCALE
}

/// A packet quoted by an ICMP error: its tuple and where its transport header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Tuple as the reporter saw it.
    pub key: FlowKey<A>,
    /// Offset of its first port.
    pub l4: u16,
}

/// The IPv4 packet quoted at `l3`; `None` where it has no ports or too little of it is quoted (RFC 792: the
/// header and eight bytes).
#[inline(always)]
pub fn quoted4<P: PacketView + ?Sized>(packet: &P, l3: usize) -> Option<Quoted<[u8; 4]>> {
    let ip = packet.read::<IPV4_LEN>(l3)?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    let is_first = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff == 0;
    if ip[0] >> 4 != 4 || header < IPV4_LEN || !is_first || !has_ports(ip[9]) {
        return None;
    }
    let ports = packet.read::<4>(l3 + header)?;
    let key = FlowKey {
        saddr: [ip[12], ip[13], ip[14], ip[15]],
        daddr: [ip[16], ip[17], ip[18], ip[19]],
        sport: [ports[0], ports[1]],
        dport: [ports[2], ports[3]],
        proto: ip[9],
        pad: [0; 3],
    };
    Some(Quoted {
        key,
        l4: (l3 + header) as u16,
    })
}

/// The IPv6 packet quoted at `l3`, if its ports follow the header at once.
#[inline(always)]
pub fn quoted6<P: PacketView + ?Sized>(packet: &P, l3: usize) -> Option<Quoted<[u8; 16]>> {
    let ip = packet.read::<IPV6_LEN>(l3)?;
    if ip[0] >> 4 != 6 || !has_ports(ip[6]) {
        return None;
    }
    let ports = packet.read::<4>(l3 + IPV6_LEN)?;
    let key = FlowKey {
        saddr: *ip[8..24].first_chunk::<16>()?,
        daddr: *ip[24..40].first_chunk::<16>()?,
        sport: [ports[0], ports[1]],
        dport: [ports[2], ports[3]],
        proto: ip[6],
        pad: [0; 3],
    };
    Some(Quoted {
        key,
        l4: (l3 + IPV6_LEN) as u16,
    })
}

/// TCP or UDP.
#[inline(always)]
pub const fn has_ports(proto: u8) -> bool {
    proto == IpProto::TCP.0 || proto == IpProto::UDP.0
}
