//! Good packets: parsing agrees with etherparse and with what the frame was made of.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fsm_common::{
    flow::{Address, FlowKey},
    parse::{Fragment, Packet, Parsed, link, parse},
    view::PacketView,
    wire::l4::tcp_flags_valid,
};
use proptest::prelude::*;

use crate::{
    any,
    frame::{ACK, FIN, Frame, L4, RST, SYN, ext, fragment_header, icmp, raw, tcp, udp},
};

const SRC: &str = "10.0.0.2:40000";
const DST: &str = "20.0.0.2:80";
const SRC6: &str = "[fd10::2]:40000";
const DST6: &str = "[fd20::2]:80";

/// Tuple, flags or ICMP type, fragment state and offset of the transport header.
type Facts = (Vec<u8>, Vec<u8>, u16, u16, u8, u8, Fragment, usize);

fn facts<A: Address>(parsed: &Parsed<A>) -> Facts {
    let FlowKey {
        saddr,
        daddr,
        sport,
        dport,
        proto,
        pad,
    } = parsed.key;
    assert_eq!(pad, [0; 3]);
    assert_eq!(
        (parsed.l3_at(), parsed.l4_at()),
        (parsed.l3.into(), parsed.l4.into()),
        "the masks lose bits"
    );
    let addr = |addr: A| addr.widen()[..size_of::<A>()].to_vec();
    let port = u16::from_be_bytes;
    (
        addr(saddr),
        addr(daddr),
        port(sport),
        port(dport),
        proto,
        parsed.tcp_flags,
        parsed.fragment,
        parsed.l4_at(),
    )
}

fn of(frame: &[u8]) -> Facts {
    match parse(frame).unwrap_or_else(|reason| panic!("{} for {frame:02x?}", reason.name())) {
        Packet::V4(parsed) => facts(&parsed),
        Packet::V6(parsed) => facts(&parsed),
        Packet::Other(ethertype) => panic!("{ethertype:?}"),
    }
}

fn by_etherparse(frame: &[u8]) -> Facts {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap_or_else(|e| panic!("{e}: {frame:02x?}"));
    let at = |part: &[u8]| part.as_ptr() as usize - frame.as_ptr() as usize;
    let (src, dst, payload) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => (
            ip.header().source().to_vec(),
            ip.header().destination().to_vec(),
            ip.payload(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source().to_vec(),
            ip.header().destination().to_vec(),
            ip.payload(),
        ),
        other => panic!("{other:?}"),
    };
    let (sport, dport, flags) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port(), tcp.slice()[13]),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port(), 0),
        TransportSlice::Icmpv4(icmp) => (0, 0, icmp.type_u8()),
        TransportSlice::Icmpv6(icmp) => (0, 0, icmp.type_u8()),
    };
    (
        src,
        dst,
        sport,
        dport,
        payload.ip_number.0,
        flags,
        Fragment::Whole,
        at(payload.payload),
    )
}

proptest! {
    #[test]
    fn agrees_with_etherparse(frame in any::frame()) {
        let bytes = frame.bytes();
        prop_assert_eq!(of(&bytes), by_etherparse(&bytes));
    }

    #[test]
    fn the_frame_builder_agrees_with_etherparse(frame in any::frame()) {
        // So that tests which only use the builder stand on something.
        let frame = Frame { tags: Vec::new(), exts: Vec::new(), ..frame };
        let bytes = frame.bytes();
        prop_assert_eq!(crate::frame::check_sums(&bytes), Ok(()));
        crate::rewrite::assert_sums(&bytes);
    }

    #[test]
    fn padding_changes_nothing(frame in any::frame(), padding in 0usize..60) {
        let bytes = frame.bytes();
        prop_assert_eq!(of(&[&bytes[..], &vec![0xee; padding]].concat()), of(&bytes));
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes[..]);
    }

    #[test]
    fn mutated_frames_never_panic_and_what_is_read_lies_in_the_frame(bytes in any::mutated()) {
        let (l4, needed) = match parse(&bytes[..]) {
            Ok(Packet::V4(parsed)) => (parsed.l4_at(), need(&parsed)),
            Ok(Packet::V6(parsed)) => (parsed.l4_at(), need(&parsed)),
            _ => (0, 0),
        };
        prop_assert!(l4 + needed <= bytes.len(), "{} + {} of {}", l4, needed, bytes.len());
    }
}

/// Bytes of transport header that later steps may rely on.
fn need<A: Address>(parsed: &Parsed<A>) -> usize {
    match parsed.key.proto {
        _ if !parsed.has_ports() => 0,
        6 => 20,
        _ => 8,
    }
}

#[test]
fn none_one_or_two_tags_of_either_kind() {
    let plain = of(&tcp(SRC, DST, SYN).bytes());
    for tags in [
        vec![],
        vec![0x8100],
        vec![0x88a8],
        vec![0x88a8, 0x8100],
        vec![0x8100, 0x8100],
        vec![0x88a8, 0x88a8],
    ] {
        let frame = tags
            .iter()
            .fold(tcp(SRC, DST, SYN), |frame, &tpid| frame.tag(tpid, 5));
        let mut expected = plain.clone();
        expected.7 += 4 * tags.len();
        assert_eq!(of(&frame.bytes()), expected, "{tags:04x?}");
        assert_eq!(
            usize::from(link(&frame.bytes()[..]).unwrap().l3),
            14 + 4 * tags.len()
        );
    }
}

#[test]
fn extension_headers_in_every_order_lead_to_the_ports() {
    let kinds = [0u8, 43, 44, 51, 60];
    let header = |kind| match kind {
        44 => fragment_header(9, 0, false),
        51 => ext(51, 24),
        kind => ext(kind, 16),
    };
    let plain = of(&tcp(SRC6, DST6, SYN).bytes());
    let mut orders = 0;
    permutations(&kinds, &mut Vec::new(), &mut |order| {
        for count in 1..=order.len() {
            let frame = order[..count]
                .iter()
                .fold(tcp(SRC6, DST6, SYN), |frame, &kind| frame.ext(header(kind)));
            let mut expected = plain.clone();
            expected.7 += frame
                .exts
                .iter()
                .map(|(_, bytes)| bytes.len())
                .sum::<usize>();
            assert_eq!(of(&frame.bytes()), expected, "{:?}", &order[..count]);
            orders += 1;
        }
    });
    assert_eq!(orders, 600);
}

fn permutations(rest: &[u8], chosen: &mut Vec<u8>, visit: &mut impl FnMut(&[u8])) {
    if rest.is_empty() {
        return visit(chosen);
    }
    for (i, &kind) in rest.iter().enumerate() {
        let others: Vec<u8> = rest[..i].iter().chain(&rest[i + 1..]).copied().collect();
        chosen.push(kind);
        permutations(&others, chosen, visit);
        chosen.pop();
    }
}

#[test]
fn fragments_keep_their_identification_and_later_ones_have_no_ports() {
    for (src, dst) in [(SRC, DST), (SRC6, DST6)] {
        let frame = udp(src, dst).payload(&[0xab; 64]);
        let [first, later] = frame.fragments(24);
        let (first, later) = (parse(&first[..]).unwrap(), parse(&later[..]).unwrap());
        let pair = match (first, later) {
            (Packet::V4(a), Packet::V4(b)) => {
                assert_eq!(a.fragment_id, u32::from(0x1234u16.to_be()));
                (facts(&a), a.fragment_id, facts(&b), b.fragment_id)
            }
            (Packet::V6(a), Packet::V6(b)) => {
                assert_eq!(a.fragment_id, 0x1234u32.to_be());
                (facts(&a), a.fragment_id, facts(&b), b.fragment_id)
            }
            other => panic!("{other:?}"),
        };
        let (a, a_id, b, b_id) = pair;
        assert_eq!(a_id, b_id);
        assert_eq!((a.2, a.3, a.4, a.6), (40000, 80, 17, Fragment::First));
        assert_eq!((b.2, b.3, b.4, b.6), (0, 0, 17, Fragment::Later));
    }
}

#[test]
fn an_atomic_fragment_is_whole() {
    let frame = udp(SRC6, DST6).ext(fragment_header(7, 0, false));
    assert_eq!(of(&frame.bytes()).6, Fragment::Whole);
}

#[test]
fn every_combination_of_tcp_flags_as_netfilter_has_it() {
    for flags in 0..=u8::MAX {
        // nf_conntrack_proto_tcp.c: tcp_valid_flags, without PSH, ECE and CWR
        let expected = match (
            flags & SYN != 0,
            flags & FIN != 0,
            flags & RST != 0,
            flags & ACK != 0,
            flags & 0x20 != 0,
        ) {
            (true, false, false, ack, urg) => !(ack && urg),
            (false, true, false, ack, _) => ack,
            (false, false, true, _, urg) => !urg,
            (false, false, false, ack, _) => ack,
            _ => false,
        };
        assert_eq!(tcp_flags_valid(flags), expected, "{flags:02x}");
        assert_eq!(
            parse(&tcp(SRC, DST, flags).bytes()[..]).is_ok(),
            expected,
            "{flags:02x}"
        );
        assert_eq!(
            parse(&tcp(SRC6, DST6, flags).bytes()[..]).is_ok(),
            expected,
            "{flags:02x}"
        );
    }
}

#[test]
fn icmp_has_its_type_and_other_protocols_nothing() {
    assert_eq!(of(&icmp("10.0.0.2", "20.0.0.2", 8).bytes()).5, 8);
    assert_eq!(of(&icmp("fd10::2", "fd20::2", 128).bytes()).5, 128);
    let gre = of(&raw("10.0.0.2", "20.0.0.2", 47).bytes());
    assert_eq!((gre.2, gre.3, gre.4, gre.5), (0, 0, 47, 0));
}

#[test]
fn neighbour_discovery_only_with_hop_limit_255() {
    let is_nd = |kind: u8, hop_limit: u8| match parse(
        &icmp("fe80::1", "fe80::2", kind).ttl(hop_limit).bytes()[..],
    ) {
        Ok(Packet::V6(parsed)) => parsed.is_neighbour_discovery(),
        other => panic!("{other:?}"),
    };
    for kind in 0..=u8::MAX {
        assert_eq!(is_nd(kind, 255), (133..=137).contains(&kind), "{kind}");
        assert!(!is_nd(kind, 254), "{kind}: it came from behind a router");
    }
}

#[test]
fn tcp_fast_open_is_a_syn_with_data() {
    let options = vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
    let frame = Frame {
        l4: L4::Tcp {
            flags: SYN,
            options,
        },
        ..tcp(SRC, DST, SYN)
    };
    assert_eq!(of(&frame.payload(b"GET /").bytes()).5, SYN);
}

#[test]
fn a_view_reads_what_there_is_and_nothing_more() {
    let bytes: &[u8] = &[1, 2, 3];
    assert_eq!(
        (
            bytes.read::<2>(1),
            bytes.read::<2>(2),
            bytes.read::<2>(usize::MAX)
        ),
        (Some([2, 3]), None, None)
    );
    assert_eq!(bytes.frame_len(), 3);
}
