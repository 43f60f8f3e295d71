//! Packets quoted by ICMP errors.

use fsm_common::{
    flow::FlowKey,
    parse::{Packet, parse, quoted4, quoted6},
};
use proptest::prelude::*;

use crate::{
    any,
    frame::{ACK, Frame, fragment_header, icmp, raw, tcp, udp},
};

proptest! {
    #[test]
    fn a_quote_is_read_as_the_packet_was(frame in any::translatable(), cut in 0usize..40) {
        let bytes = Frame { exts: Vec::new(), ..frame }.bytes();
        // Eight bytes of transport at least (RFC 792), of whatever length the packet was.
        let end = |l4: usize| bytes.len().min(l4 + 8 + cut);
        match parse(&bytes[..]).unwrap() {
            Packet::V4(parsed) => {
                let quoted = quoted4(&bytes[..end(parsed.l4_at())], parsed.l3_at()).unwrap();
                prop_assert_eq!((quoted.key, quoted.l4), (parsed.key, parsed.l4));
            }
            Packet::V6(parsed) => {
                let quoted = quoted6(&bytes[..end(parsed.l4_at())], parsed.l3_at()).unwrap();
                prop_assert_eq!((quoted.key, quoted.l4), (parsed.key, parsed.l4));
            }
            Packet::Other(_) => unreachable!(),
        }
    }

    #[test]
    fn any_quote_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120), at in 0usize..130) {
        let _ = (quoted4(&bytes[..], at), quoted6(&bytes[..], at));
    }
}

const V4: [&str; 2] = ["10.0.0.2:40000", "20.0.0.2:80"];
const V6: [&str; 2] = ["[fd10::2]:40000", "[fd20::2]:80"];

fn key4(frame: &[u8]) -> Option<FlowKey<[u8; 4]>> {
    quoted4(frame, 14).map(|quoted| quoted.key)
}

#[test]
fn what_has_no_ports_is_no_flow() {
    let [first, later] = udp(V4[0], V4[1]).payload(&[0; 64]).fragments(24);
    assert_eq!(key4(&later), None);
    assert!(key4(&first).is_some());
    assert_eq!(key4(&icmp("10.0.0.2", "20.0.0.2", 8).bytes()), None);
    assert_eq!(key4(&raw("10.0.0.2", "20.0.0.2", 47).bytes()), None);
    // Extension headers in a quote are not followed.
    let atomic = tcp(V6[0], V6[1], ACK)
        .ext(fragment_header(1, 0, false))
        .bytes();
    assert_eq!(quoted6(&atomic[..], 14), None);
}

#[test]
fn a_quote_of_the_other_family_or_cut_short_is_none() {
    let (v4, v6) = (
        tcp(V4[0], V4[1], ACK).bytes(),
        tcp(V6[0], V6[1], ACK).bytes(),
    );
    assert_eq!((quoted4(&v6[..], 14), quoted6(&v4[..], 14)), (None, None));
    for len in 0..14 + 20 + 4 {
        assert_eq!(key4(&v4[..len]), None, "{len}");
    }
    for len in 0..14 + 40 + 4 {
        assert_eq!(quoted6(&v6[..len], 14), None, "{len}");
    }
}

#[test]
fn errors_quote_and_questions_do_not() {
    let is_error = |frame: Frame| match parse(&frame.bytes()[..]).unwrap() {
        Packet::V4(parsed) => parsed.is_icmp_error(),
        Packet::V6(parsed) => parsed.is_icmp_error(),
        Packet::Other(_) => unreachable!(),
    };
    for kind in 0..=u8::MAX {
        // RFC 792; RFC 4443 §2.1
        let error = is_error(icmp("10.0.0.2", "20.0.0.2", kind));
        assert_eq!(error, [3, 4, 5, 11, 12].contains(&kind), "{kind}");
        let error = is_error(icmp("fd10::2", "fd20::2", kind));
        assert_eq!(error, (1..=4).contains(&kind), "{kind}");
    }
    // TCP flags are no ICMP type.
    assert!(!is_error(tcp(V4[0], V4[1], 4)));
}
