//! Any frame: no panic, offsets within it, what follows the packet means nothing, and etherparse reads the
//! same packet where it reads one.

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TransportSlice};
use fsm_common::{
    flow::Address,
    parse::{Fragment, Packet, Parsed, has_ports, parse, window_scale},
    view::PacketView,
    wire::{
        l2::EtherType,
        l3::{MAX_EXT_BYTES, MAX_EXT_HEADERS},
        l4::tcp_flags_valid,
    },
};

/// Reads as the kernel's views do: never a single byte (see [`PacketView::read`]).
struct Strict<'a>(&'a [u8]);

impl PacketView for Strict<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        assert!(N >= 2, "a read of {N} bytes");
        // 574 is the largest offset of a transport header, 60 the largest such.
        assert!(offset <= 574 + 60, "a read at {offset}");
        self.0.read(offset)
    }

    fn frame_len(&self) -> usize {
        self.0.len()
    }
}

pub fn check(data: &[u8]) {
    let found = parse(&Strict(data));
    match found {
        Ok(Packet::V4(parsed)) => within(&parsed, data),
        Ok(Packet::V6(parsed)) => within(&parsed, data),
        Ok(Packet::Other(_)) | Err(_) => {}
    }
    if found.is_ok() && data.len() < 0xff00 {
        let padded = [data, &[0xa5; 46]].concat();
        assert_eq!(parse(&padded[..]), found, "padding is no part of a packet");
    }
    by_etherparse(data, &found);
}

fn within<A: Address>(parsed: &Parsed<A>, frame: &[u8]) {
    let (l3, l4) = (parsed.l3_at(), parsed.l4_at());
    assert_eq!((l3, l4), (parsed.l3.into(), parsed.l4.into()), "masks");
    assert!((14..=22).contains(&l3) && l3 + 20 <= l4 && l4 <= frame.len());
    assert_eq!(parsed.key.pad, [0; 3]);
    if parsed.has_ports() {
        assert_eq!(
            frame[l4..l4 + 4],
            [parsed.key.sport, parsed.key.dport].concat()
        );
    } else if !parsed.is_echo() {
        assert_eq!((parsed.key.sport, parsed.key.dport), ([0; 2], [0; 2]));
    }
    if parsed.is_tcp() && parsed.fragment != Fragment::Later {
        let header = usize::from(frame[l4 + 12] >> 4) * 4;
        assert!(l4 + header + parsed.payload as usize <= frame.len());
        assert!(tcp_flags_valid(parsed.tcp_flags));
        let segment = parsed.segment();
        let length =
            u32::from(segment.flags & 1) + u32::from(segment.flags >> 1 & 1) + parsed.payload;
        assert_eq!(segment.end().wrapping_sub(segment.seq), length);
        let _ = window_scale(&Strict(frame), l4);
    }
}

fn by_etherparse(data: &[u8], found: &Result<Packet, fsm_common::Reason>) {
    // MACsec, and the tag of before 802.1ad: other protocols here.
    if let Ok(Packet::Other(EtherType(0x88e5 | 0x9100))) = found {
        return;
    }
    let Ok(sliced) = SlicedPacket::from_ethernet(data) else {
        return;
    };
    let (src, dst, proto, is_part, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (src, dst) = (header.source().to_vec(), header.destination().to_vec());
            (
                src,
                dst,
                ip.payload().ip_number.0,
                ip.payload().fragmented,
                ip.payload().payload,
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (src, dst) = (header.source().to_vec(), header.destination().to_vec());
            // Zero: etherparse takes whatever there is, for jumbograms.
            if header.payload_length() == 0 || beyond_ours(data, header.slice()) {
                return;
            }
            (
                src,
                dst,
                ip.payload().ip_number.0,
                ip.payload().fragmented,
                ip.payload().payload,
            )
        }
        _ => return,
    };
    // A fourth tag and more; ours ends at two.
    if sliced.link_exts.len() > 2 {
        return;
    }
    let (Some(transport), false) = (&sliced.transport, is_part) else {
        return;
    };
    let l4 = payload.as_ptr() as usize - data.as_ptr() as usize;
    let facts =
        |ports: Option<(u16, u16)>, kind: u8| (src.clone(), dst.clone(), proto, ports, kind, l4);
    let theirs = match transport {
        TransportSlice::Tcp(tcp) => {
            let flags = tcp.slice()[13];
            if !tcp_flags_valid(flags) {
                assert_eq!(*found, Err(fsm_common::Reason::BadTcpFlags), "{data:02x?}");
                return;
            }
            scale(data, l4, tcp);
            facts(Some((tcp.source_port(), tcp.destination_port())), flags)
        }
        // Zero: likewise.
        TransportSlice::Udp(udp) if udp.length() == 0 => return,
        TransportSlice::Udp(udp) => facts(Some((udp.source_port(), udp.destination_port())), 0),
        TransportSlice::Icmpv4(icmp) => facts(None, icmp.type_u8()),
        TransportSlice::Icmpv6(icmp) => facts(None, icmp.type_u8()),
    };
    let ours = match found {
        Ok(Packet::V4(parsed)) => ours(parsed),
        Ok(Packet::V6(parsed)) => ours(parsed),
        other => panic!("{other:?} where etherparse reads {theirs:?} in {data:02x?}"),
    };
    assert_eq!(ours, theirs, "{data:02x?}");
}

type Facts = (Vec<u8>, Vec<u8>, u8, Option<(u16, u16)>, u8, usize);

fn ours<A: Address>(parsed: &Parsed<A>) -> Facts {
    let addr = |addr: A| addr.widen()[..size_of::<A>()].to_vec();
    let (key, port) = (parsed.key, u16::from_be_bytes);
    let ports = has_ports(key.proto).then(|| (port(key.sport), port(key.dport)));
    (
        addr(key.saddr),
        addr(key.daddr),
        key.proto,
        ports,
        parsed.tcp_flags,
        parsed.l4_at(),
    )
}

/// More extension headers than are followed here, or a part of a datagram.
fn beyond_ours(frame: &[u8], header: &[u8]) -> bool {
    let start = header.as_ptr() as usize - frame.as_ptr() as usize + 40;
    let (mut next, mut at) = (header[6], start);
    for count in 0.. {
        if ![0, 43, 44, 51, 60, 135, 139, 140].contains(&next) {
            return false;
        }
        let Some(&[following, len, offset, more]) = frame.get(at..at + 4) else {
            return true;
        };
        // etherparse 0.19 masks the wrong three bits (`Ipv6FragmentHeaderSlice::is_fragmenting_payload`).
        if next == 44 && (offset, more & 0xf9) != (0, 0) {
            return true;
        }
        at += match next {
            44 => 8,
            51 => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        // Mobility, HIP and Shim6 are protocols here, not extensions.
        if next > 60 || count >= MAX_EXT_HEADERS || at - start > MAX_EXT_BYTES {
            return true;
        }
        next = following;
    }
    unreachable!()
}

fn scale(frame: &[u8], l4: usize, tcp: &etherparse::TcpSlice<'_>) {
    let mut first = None;
    for (number, option) in tcp.options_iterator().enumerate() {
        let Ok(option) = option else {
            return;
        };
        if let TcpOptionElement::WindowScale(scale) = option
            && first.is_none()
        {
            first = Some(scale);
        }
        if number >= 15 {
            return;
        }
    }
    assert_eq!(
        window_scale(frame, l4),
        first.unwrap_or(0),
        "{:02x?}",
        tcp.slice()
    );
}
