//! Frame → tuple, transport header and payload, borrowed. The headers are read by [`fsm_common::parse`], as the hooks
//! read them; here are added the payload's bounds (by the IP length: Ethernet padding is no payload) and the checksum.
//! No reassembly of fragments: a first one has its ports and no payload, a later one has neither.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fsm_common::{
    Reason,
    parse::{self, Fragment, Packet, Parsed, quoted4, quoted6},
    wire::{
        l2::EtherType,
        l3::IpProto,
        l4::{TCP_LEN, UDP_LEN},
    },
};

/// Both ends of a packet, IPv4 addresses in the first four bytes of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source address.
    pub saddr: [u8; 16],
    /// Destination address.
    pub daddr: [u8; 16],
    /// Source port, or an ICMP echo's identifier.
    pub sport: u16,
    /// Destination port, likewise.
    pub dport: u16,
    /// Family.
    pub is_v6: bool,
}

impl Ends {
    fn new<A: AsRef<[u8]>>(saddr: A, daddr: A, sport: [u8; 2], dport: [u8; 2]) -> Self {
        let wide = |addr: &[u8]| {
            let mut bytes = [0; 16];
            bytes[..addr.len()].copy_from_slice(addr);
            bytes
        };
        Self {
            saddr: wide(saddr.as_ref()),
            daddr: wide(daddr.as_ref()),
            sport: u16::from_be_bytes(sport),
            dport: u16::from_be_bytes(dport),
            is_v6: size_of::<A>() == 16,
        }
    }

    /// Source.
    pub fn src(&self) -> SocketAddr {
        SocketAddr::new(address(self.saddr, self.is_v6), self.sport)
    }

    /// Destination.
    pub fn dst(&self) -> SocketAddr {
        SocketAddr::new(address(self.daddr, self.is_v6), self.dport)
    }
}

/// The address in [`Ends`]' 16 bytes.
pub fn address(bytes: [u8; 16], is_v6: bool) -> IpAddr {
    match (is_v6, bytes) {
        (true, _) => Ipv6Addr::from(bytes).into(),
        (false, [a, b, c, d, ..]) => Ipv4Addr::new(a, b, c, d).into(),
    }
}

/// Numbers of a TCP header, host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags byte.
    pub flags: u8,
    /// Window field, unscaled.
    pub window: u16,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Addresses and ports.
    pub ends: Ends,
    /// IP protocol number, behind any extension headers.
    pub proto: u8,
    /// TCP's numbers; zeros for others.
    pub tcp: Tcp,
    /// What the transport carries; empty for what is not whole TCP or UDP.
    pub payload: &'a [u8],
    /// Fragment state.
    pub fragment: Fragment,
    /// False where TCP's or UDP's checksum is wrong. A fragment's cannot be known, nor that of UDP without one: true.
    pub is_sum_good: bool,
    /// Neighbour discovery (RFC 4861), without which IPv6 stands still.
    pub is_neighbour_discovery: bool,
}

/// Why there is no [`Datagram`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecoded {
    /// ARP, LLDP and the like.
    NotIp,
    /// TCP flags that no TCP sends, and between whom, where that can still be read.
    BadTcpFlags(Option<Ends>),
    /// A malformed or cut packet.
    Bad(Reason),
}

/// Reads a frame, Ethernet header first.
///
/// # Errors
/// See [`Undecoded`].
pub fn decode(frame: &[u8]) -> Result<Datagram<'_>, Undecoded> {
    match parse::parse(frame) {
        Ok(Packet::V4(parsed)) => transport(frame, &parsed),
        Ok(Packet::V6(parsed)) => transport(frame, &parsed),
        Ok(Packet::Other(_)) => Err(Undecoded::NotIp),
        Err(Reason::BadTcpFlags) => Err(Undecoded::BadTcpFlags(ends_of_bad(frame))),
        Err(reason) => Err(Undecoded::Bad(reason)),
    }
}

/// The ends of a packet that [`parse::parse`] refuses; without ports where they do not follow the header at once.
fn ends_of_bad(frame: &[u8]) -> Option<Ends> {
    let link = parse::link(frame).ok()?;
    let l3 = usize::from(link.l3);
    match link.ethertype {
        EtherType::IPV4 => {
            let key = quoted4(frame, l3)?.key;
            Some(Ends::new(key.saddr, key.daddr, key.sport, key.dport))
        }
        _ => match quoted6(frame, l3).map(|quoted| quoted.key) {
            Some(key) => Some(Ends::new(key.saddr, key.daddr, key.sport, key.dport)),
            None => {
                let addr = |at| frame.get(l3 + at..)?.first_chunk::<16>();
                Some(Ends::new(*addr(8)?, *addr(24)?, [0; 2], [0; 2]))
            }
        },
    }
}

fn transport<'a, A: AsRef<[u8]> + Copy>(
    frame: &'a [u8],
    parsed: &Parsed<A>,
) -> Result<Datagram<'a>, Undecoded> {
    let key = &parsed.key;
    let mut datagram = Datagram {
        ends: Ends::new(key.saddr, key.daddr, key.sport, key.dport),
        proto: key.proto,
        tcp: Tcp::default(),
        payload: &[],
        fragment: parsed.fragment,
        is_sum_good: true,
        is_neighbour_discovery: parsed.is_neighbour_discovery(),
    };
    let is_whole = parsed.fragment == Fragment::Whole;
    let l4 = frame
        .get(usize::from(parsed.l4)..)
        .ok_or(Undecoded::Bad(Reason::Truncated))?;
    match IpProto(key.proto) {
        IpProto::TCP if parsed.fragment != Fragment::Later => {
            datagram.tcp = Tcp {
                seq: parsed.seq,
                ack: parsed.ack,
                flags: parsed.tcp_flags,
                window: parsed.window,
            };
            let head = l4
                .get(12)
                .map_or(TCP_LEN, |offset| usize::from(offset >> 4) * 4);
            let end = head + parsed.payload as usize;
            let segment = l4.get(..end).ok_or(Undecoded::Bad(Reason::Truncated))?;
            if is_whole {
                datagram.payload = segment.get(head..).unwrap_or_default();
                datagram.is_sum_good = is_sum_good(key, segment);
            }
        }
        IpProto::UDP if is_whole => {
            let len = match l4 {
                [_, _, _, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                _ => 0,
            };
            // A jumbo datagram (RFC 2675) says 0: nothing of it is looked at.
            if len >= UDP_LEN {
                let whole = l4.get(..len).ok_or(Undecoded::Bad(Reason::Truncated))?;
                let has_sum = whole.get(6..8) != Some(&[0, 0]);
                datagram.payload = whole.get(UDP_LEN..).unwrap_or_default();
                datagram.is_sum_good = !has_sum || is_sum_good(key, whole);
            }
        }
        _ => {}
    }
    Ok(datagram)
}

/// Whether header, payload and pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) add up.
fn is_sum_good<A: AsRef<[u8]>>(key: &fsm_common::flow::FlowKey<A>, l4: &[u8]) -> bool {
    let pseudo = u64::from(u16::from(key.proto).to_be())
        + u64::from((l4.len() as u32).to_be() >> 16)
        + u64::from((l4.len() as u32).to_be() & 0xffff);
    let mut sum = pseudo + words(key.saddr.as_ref()) + words(key.daddr.as_ref()) + words(l4);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// Sum of 32-bit words in memory order (RFC 1071 §2: any width, any byte order), not folded; the lanes are apart so
/// that the compiler can add several at once.
fn words(bytes: &[u8]) -> u64 {
    const LANES: usize = 8;
    let mut lanes = [0u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<{ LANES * 4 }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<4>();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    sum + lanes.iter().sum::<u64>() + u64::from(u32::from_ne_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::*;

    const A: &str = "10.0.0.1:1000";
    const B: &str = "20.0.0.2:80";
    const A6: &str = "[fd00::1]:1000";
    const B6: &str = "[fd00::2]:80";

    #[test]
    fn payload_ends_where_ip_says() {
        for (src, dst) in [(A, B), (A6, B6)] {
            let mut tcp = tcp(src, dst, ACK).at(7, 9).payload(b"x").bytes();
            tcp.extend([0xee; 20]);
            let got = decode(&tcp).unwrap();
            assert_eq!((got.payload, got.is_sum_good), (&b"x"[..], true));
            assert_eq!((got.tcp.seq, got.tcp.ack, got.tcp.flags), (7, 9, ACK));
            assert_eq!(
                (got.ends.src(), got.ends.dst()),
                (src.parse().unwrap(), dst.parse().unwrap())
            );
            let mut udp = udp(src, dst).tag(0x88a8, 1).tag(0x8100, 2).bytes();
            udp.extend([0xee; 20]);
            let got = decode(&udp).unwrap();
            assert_eq!((got.payload, got.is_sum_good), (&b"hello"[..], true));
        }
    }

    #[test]
    fn every_changed_byte_is_seen_by_the_checksum() {
        for len in 0..70 {
            let payload: Vec<u8> = (0..len).collect();
            for frame in [tcp(A, B, ACK), tcp(A6, B6, ACK), udp(A, B), udp(A6, B6)] {
                let l4 = if frame.src.is_ipv6() { 54 } else { 34 };
                let bytes = frame.payload(&payload).bytes();
                assert!(decode(&bytes).unwrap().is_sum_good, "{len} bytes");
                for at in (l4..bytes.len()).filter(|at| *at >= l4 + 20) {
                    let mut bad = bytes.clone();
                    bad[at] ^= 0x10;
                    assert!(!decode(&bad).unwrap().is_sum_good, "{len} bytes, {at}");
                }
            }
        }
        let none = udp(A, B).without_sum().bytes();
        assert!(decode(&none).unwrap().is_sum_good);
    }

    #[test]
    fn fragments_have_no_payload() {
        for (src, dst) in [(A, B), (A6, B6)] {
            let [first, later] = udp(src, dst).payload(&[7; 64]).fragments(24);
            let first = decode(&first).unwrap();
            assert_eq!((first.fragment, first.payload), (Fragment::First, &[][..]));
            assert_eq!(first.ends.sport, 1000);
            let later = decode(&later).unwrap();
            assert_eq!((later.fragment, later.ends.sport), (Fragment::Later, 0));
        }
    }

    #[test]
    fn bad_flags_say_between_whom() {
        for (src, dst) in [(A, B), (A6, B6)] {
            let frame = tcp(src, dst, SYN | FIN).bytes();
            let Err(Undecoded::BadTcpFlags(Some(ends))) = decode(&frame) else {
                panic!("{:?}", decode(&frame));
            };
            assert_eq!(
                (ends.src(), ends.dst()),
                (src.parse().unwrap(), dst.parse().unwrap())
            );
        }
        assert_eq!(decode(&ether(0x0806, &[0; 28])), Err(Undecoded::NotIp));
        assert_eq!(decode(&[]), Err(Undecoded::Bad(Reason::Truncated)));
    }
}
