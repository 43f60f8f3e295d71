//! The golden packets, parsed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fsm_common::{
    flow::Address,
    parse::{Fragment, Packet, Parsed, parse},
};

use crate::{frame::check_sums, golden};

/// A parse in the words of `packets/README`.
fn describe(frame: &[u8]) -> String {
    match parse(frame) {
        Ok(Packet::V4(parsed)) => packet(
            &parsed,
            Ipv4Addr::from(parsed.key.saddr),
            Ipv4Addr::from(parsed.key.daddr),
        ),
        Ok(Packet::V6(parsed)) => packet(
            &parsed,
            Ipv6Addr::from(parsed.key.saddr),
            Ipv6Addr::from(parsed.key.daddr),
        ),
        Ok(Packet::Other(ethertype)) => format!("other {:04x}", ethertype.0),
        Err(reason) => reason.name().into(),
    }
}

fn packet<A: Address>(
    parsed: &Parsed<A>,
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
) -> String {
    let (src, dst) = (src.into(), dst.into());
    let fragment = match parsed.fragment {
        Fragment::Whole => "",
        Fragment::First => " first",
        Fragment::Later => " later",
    };
    let port = |port: [u8; 2]| u16::from_be_bytes(port);
    let (sport, dport) = (port(parsed.key.sport), port(parsed.key.dport));
    match parsed.key.proto {
        6 if parsed.fragment == Fragment::Whole => {
            format!(
                "tcp {src}:{sport} > {dst}:{dport} flags {:02x}",
                parsed.tcp_flags
            )
        }
        6 => format!("tcp {src}:{sport} > {dst}:{dport}{fragment}"),
        17 => format!("udp {src}:{sport} > {dst}:{dport}{fragment}"),
        proto @ (1 | 58) => format!("proto {proto} {src} > {dst} type {}", parsed.tcp_flags),
        proto => format!("proto {proto} {src} > {dst}{fragment}"),
    }
}

#[test]
fn golden_packets_are_parsed_as_they_say() {
    let wrong: Vec<String> = golden::all()
        .into_iter()
        .filter(|packet| describe(&packet.frame) != packet.expect)
        .map(|packet| {
            format!(
                "{} ({}): {} instead of {}",
                packet.name,
                packet.description,
                describe(&packet.frame),
                packet.expect
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn golden_packets_that_are_good_have_right_checksums() {
    for packet in golden::all() {
        if packet.expect.contains('>')
            && packet.frame[12] != 0x81
            && packet.frame[12..14] != [0x88, 0xa8]
        {
            check_sums(&packet.frame).unwrap_or_else(|wrong| panic!("{}: {wrong}", packet.name));
        }
    }
}

#[test]
fn golden_packets_cut_anywhere_do_not_panic_and_never_read_as_another_flow() {
    for packet in golden::all() {
        let whole = parse(&packet.frame[..]);
        for len in 0..packet.frame.len() {
            let (Ok(cut), Ok(whole)) = (parse(&packet.frame[..len]), whole) else {
                continue;
            };
            // What is cut off may only be padding.
            assert_eq!(cut, whole, "{} cut to {len}", packet.name);
        }
    }
}
