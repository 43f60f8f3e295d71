//! Translation: right checksums, and a way back to the same bytes.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fsm_common::{
    flow::{Address, FlowKey},
    parse::{Packet, Parsed, parse},
    rewrite::Rewrite,
};
use proptest::prelude::*;

use crate::{
    any,
    frame::{ACK, Frame, L4, tcp, udp},
};

/// Verifies all checksums by etherparse's full computation.
pub fn assert_sums(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let v4 = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header"
            );
            Some(header)
        }
        _ => None,
    };
    let v6 = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv6(ip) => Some(ip.header().to_header()),
        _ => None,
    };
    let (found, expected) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (
            tcp.checksum(),
            match (&v4, &v6) {
                (Some(ip), _) => tcp
                    .to_header()
                    .calc_checksum_ipv4(ip, tcp.payload())
                    .unwrap(),
                (_, Some(ip)) => tcp
                    .to_header()
                    .calc_checksum_ipv6(ip, tcp.payload())
                    .unwrap(),
                _ => unreachable!(),
            },
        ),
        TransportSlice::Udp(udp) if udp.checksum() != 0 => (
            udp.checksum(),
            match (&v4, &v6) {
                (Some(ip), _) => udp
                    .to_header()
                    .calc_checksum_ipv4(ip, udp.payload())
                    .unwrap(),
                (_, Some(ip)) => udp
                    .to_header()
                    .calc_checksum_ipv6(ip, udp.payload())
                    .unwrap(),
                _ => unreachable!(),
            },
        ),
        _ => return,
    };
    assert_eq!(found, expected, "transport");
}

fn there_and_back<A: Address>(before: &[u8], parsed: &Parsed<A>, to: &FlowKey<A>) -> Vec<u8> {
    let plan = Rewrite::plan(&parsed.key, to);
    let mut frame = before.to_vec();
    plan.apply(&mut frame, parsed).unwrap();
    let translated = frame.clone();
    let back = Parsed {
        key: *to,
        ..*parsed
    };
    plan.inverse(&parsed.key).apply(&mut frame, &back).unwrap();
    assert_eq!(frame, before, "not undone");
    translated
}

/// Translates to another tuple, and back; gives the translated frame.
fn translate(frame: &[u8], addrs: [[u8; 16]; 2], ports: [[u8; 2]; 2]) -> Vec<u8> {
    match parse(frame).unwrap() {
        Packet::V4(parsed) => there_and_back(frame, &parsed, &to(&parsed.key, addrs, ports)),
        Packet::V6(parsed) => there_and_back(frame, &parsed, &to(&parsed.key, addrs, ports)),
        Packet::Other(_) => unreachable!(),
    }
}

fn to<A: Address>(
    from: &FlowKey<A>,
    addrs: [[u8; 16]; 2],
    [sport, dport]: [[u8; 2]; 2],
) -> FlowKey<A> {
    FlowKey {
        saddr: A::narrow(addrs[0]),
        daddr: A::narrow(addrs[1]),
        sport,
        dport,
        ..*from
    }
}

/// Some tuple to translate to.
const ADDRS: [[u8; 16]; 2] = [
    [9; 16],
    [0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
];
const PORTS: [[u8; 2]; 2] = [[0xff, 0xfe], [0x3a, 0x99]];

proptest! {
    #[test]
    fn checksums_are_right_and_the_inverse_gives_the_packet_back(
        frame in any::translatable(),
        addrs: [[u8; 16]; 2],
        ports: [[u8; 2]; 2],
    ) {
        let frame = frame.bytes();
        let translated = translate(&frame, addrs, ports);
        assert_sums(&translated);
        // Nothing else has changed: the tuple is what was asked for, the rest is parsed alike.
        match (parse(&frame[..]).unwrap(), parse(&translated[..]).unwrap()) {
            (Packet::V4(a), Packet::V4(b)) => prop_assert_eq!(Parsed { key: to(&a.key, addrs, ports), ..a }, b),
            (Packet::V6(a), Packet::V6(b)) => prop_assert_eq!(Parsed { key: to(&a.key, addrs, ports), ..a }, b),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_plan_for_another_frame_is_refused_and_changes_nothing(frame in any::translatable(), cut: proptest::sample::Index) {
        let whole = frame.bytes();
        let mut short = whole[..cut.index(whole.len())].to_vec();
        let before = short.clone();
        let applied = match parse(&whole[..]).unwrap() {
            Packet::V4(parsed) => Rewrite::plan(&parsed.key, &to(&parsed.key, ADDRS, PORTS)).apply(&mut short, &parsed),
            Packet::V6(parsed) => Rewrite::plan(&parsed.key, &to(&parsed.key, ADDRS, PORTS)).apply(&mut short, &parsed),
            Packet::Other(_) => unreachable!(),
        };
        prop_assert!(applied.is_some() || short == before);
    }
}

#[test]
fn udp_without_a_checksum_stays_so() {
    let frame = udp("10.0.0.2:40000", "20.0.0.2:53").without_sum().bytes();
    let translated = translate(&frame, ADDRS, PORTS);
    assert_eq!(translated[14 + 20 + 6..][..2], [0, 0]);
    assert_sums(&translated);
}

#[test]
fn a_computed_zero_is_sent_as_ffff_and_comes_back() {
    for (src, dst, l4) in [
        ("10.0.0.2:40000", "20.0.0.2:53", 34),
        ("[fd10::2]:40000", "[fd20::2]:53", 54),
    ] {
        let frame = udp(src, dst).payload(&[0, 0]);
        let check_after = |frame: &Frame| {
            let translated = translate(&frame.bytes(), ADDRS, PORTS);
            <[u8; 2]>::try_from(&translated[l4 + 6..l4 + 8]).unwrap()
        };
        // A payload of the checksum itself makes the sum come out as 0xffff, so its complement as zero.
        let payload = check_after(&frame);
        let frame = frame.payload(&payload);
        assert_eq!(check_after(&frame), [0xff, 0xff], "{src}");
        assert_sums(&translate(&frame.bytes(), ADDRS, PORTS));
    }
}

#[test]
fn a_sum_of_ffff_before_translation_is_undone_to_ffff() {
    let zero = udp("10.0.0.2:40000", "20.0.0.2:53").payload(&[0, 0]);
    let check = zero.bytes()[40..42].to_vec();
    let frame = zero.payload(&check).bytes();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_sums(&translate(&frame, ADDRS, PORTS));
}

#[test]
fn a_later_fragment_gets_addresses_only() {
    for (src, dst, l3) in [
        ("10.0.0.2:40000", "20.0.0.2:53", 20),
        ("[fd10::2]:40000", "[fd20::2]:53", 48),
    ] {
        let [first, later] = udp(src, dst).payload(&[0xcd; 48]).fragments(24);
        let translated = translate(&later, ADDRS, PORTS);
        assert_eq!(translated[14 + l3..], later[14 + l3..], "data changed");
        // Put together again, the datagram's checksum is right.
        let first = translate(&first, ADDRS, PORTS);
        let whole = Frame {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            ..udp(src, dst)
        };
        let data = [&first[14 + l3..], &translated[14 + l3..]].concat();
        let addr = |wide: [u8; 16]| match whole.src.ip() {
            std::net::IpAddr::V4(_) => <[u8; 4]>::narrow(wide).into(),
            std::net::IpAddr::V6(_) => std::net::IpAddr::from(wide),
        };
        let mut whole = Frame {
            l4: L4::Raw(17),
            ..whole
        };
        whole.src.set_ip(addr(ADDRS[0]));
        whole.dst.set_ip(addr(ADDRS[1]));
        assert_sums(&whole.around(0, &data));
    }
}

#[test]
fn every_other_byte_stays() {
    let frame = tcp("10.0.0.2:40000", "20.0.0.2:80", ACK)
        .payload(b"some data")
        .bytes();
    let translated = translate(&frame, ADDRS, PORTS);
    for (at, (before, after)) in frame.iter().zip(&translated).enumerate() {
        let may_change = (24..26).contains(&at) || (26..38).contains(&at) || (50..52).contains(&at);
        assert!(may_change || before == after, "byte {at}");
    }
}
