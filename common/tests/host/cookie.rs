//! A SYN's options and its SYN-ACK, against etherparse.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, TcpOptionElement};
use fsm_common::{
    cookie::{
        Header, Headers, SynOptions, Terms, ipv4_header, ipv6_header, offer, options,
        seen_by_listener, syn_ack,
    },
    flow::{Address, FlowKey},
};
use proptest::prelude::*;

const EMPTY: Headers = Headers {
    options: [0; 64],
    ip: Header::EMPTY,
    tcp: Header::EMPTY,
    at: 0,
    len: 0,
    asked: SynOptions::NONE,
};

fn read(bytes: &[u8]) -> SynOptions {
    // What is behind the options must not matter.
    let mut headers = Headers {
        options: [0xa5; 64],
        ..EMPTY
    };
    headers.options[..bytes.len()].copy_from_slice(bytes);
    options(&mut headers, bytes.len())
}

const NONE: SynOptions = SynOptions::NONE;

#[test]
fn options_of_known_systems_are_read() {
    let all = SynOptions {
        mss: 1460,
        scale: 7,
        sack: 1,
        has_timestamp: 1,
        timestamp: [1, 2, 3, 4],
    };
    // Linux: MSS, SACK permitted, timestamps, NOP, window scale
    let linux = [
        2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    assert_eq!(read(&linux), all);
    // macOS: MSS, NOP, window scale, NOP, NOP, timestamps, SACK permitted, end
    let macos = [
        2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 4, 2, 0, 0,
    ];
    assert_eq!(read(&macos), all);
    // Windows: MSS, NOP, window scale, NOP, NOP, SACK permitted
    let windows = [2, 4, 5, 180, 1, 3, 3, 8, 1, 1, 4, 2];
    let expected = SynOptions {
        has_timestamp: 0,
        timestamp: [0; 4],
        scale: 8,
        ..all
    };
    assert_eq!(read(&windows), expected);
}

#[test]
fn what_is_malformed_ends_the_options() {
    assert_eq!(read(&[]), NONE);
    assert_eq!(read(&[0, 2, 4, 5]), NONE);
    assert_eq!(read(&[1; 40]), NONE);
    for bad in [
        // length 0, 1, beyond the end, cut off
        &[99, 0, 2, 4, 5, 180][..],
        &[99, 1, 2, 4, 5, 180],
        &[99, 7, 2, 4, 5, 180],
        &[1, 1, 1, 2],
    ] {
        assert_eq!(read(bad), NONE, "{bad:?}");
    }
    // A known kind of another length is passed over.
    assert_eq!(read(&[3, 4, 7, 7, 4, 2]).scale, 15);
    assert_eq!(read(&[3, 4, 7, 7, 4, 2]).sack, 1);
    // RFC 7323: a larger scale is taken for 14.
    assert_eq!(read(&[3, 3, 200, 0]).scale, 14);
}

fn key<A: Address>(saddr: A, daddr: A, ports: u32) -> FlowKey<A> {
    let [a, b, c, d] = ports.to_be_bytes();
    FlowKey {
        saddr,
        daddr,
        sport: [a, b],
        dport: [c, d],
        proto: 6,
        pad: [0; 3],
    }
}

proptest! {
    #[test]
    fn any_bytes_give_what_a_plain_reader_finds(bytes in prop::collection::vec(0u8..12, 0..=40)) {
        let mut expected = NONE;
        let mut rest = bytes.as_slice();
        while let [kind, tail @ ..] = rest {
            match (kind, tail) {
                (0, _) => break,
                (1, _) => rest = tail,
                (_, [size, ..]) if *size >= 2 && usize::from(*size) <= rest.len() => {
                    let (one, next) = rest.split_at((*size).into());
                    match one {
                        [2, 4, a, b] => expected.mss = u16::from_be_bytes([*a, *b]),
                        [3, 3, scale] => expected.scale = *scale,
                        [4, 2] => expected.sack = 1,
                        [8, 10, a, b, c, d, ..] => {
                            (expected.has_timestamp, expected.timestamp) = (1, [*a, *b, *c, *d]);
                        }
                        _ => {}
                    }
                    rest = next;
                }
                _ => break,
            }
        }
        prop_assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn an_answer_is_a_right_syn_ack(
        saddr: [u8; 4], daddr: [u8; 4], s6: [u8; 16], d6: [u8; 16], ports: u32,
        seq: u32, isn: u32, mss: u16, scale in 0u8..16, sack in 0u8..2, has_timestamp in 0u8..2,
        timestamp: [u8; 4], offer in 0u32..128, now_ms in 64u32..,
    ) {
        let asked = SynOptions { mss, scale, sack, has_timestamp, timestamp };
        let terms = Terms { mss, offer, now_ms };
        let mut tcp = Header([0xff; 40]);
        let len = syn_ack(&mut tcp, &key(saddr, daddr, ports), seq, isn, &asked, &terms);
        let header = TcpHeaderSlice::from_slice(&tcp.0).unwrap();
        prop_assert_eq!(header.slice().len(), len);
        prop_assert_eq!(header.source_port(), ports as u16);
        prop_assert_eq!(header.destination_port(), (ports >> 16) as u16);
        prop_assert_eq!(header.sequence_number(), isn);
        prop_assert_eq!(header.acknowledgment_number(), seq.wrapping_add(1));
        prop_assert!(header.syn() && header.ack() && !header.ece() && !header.rst());
        prop_assert!(tcp.0[len..].iter().all(|byte| *byte == 0));

        let mut ip = Header([0xff; 40]);
        ipv4_header(&mut ip, daddr, saddr, len);
        let ip4 = Ipv4HeaderSlice::from_slice(&ip.0[..20]).unwrap();
        prop_assert_eq!(ip4.to_header().calc_header_checksum(), ip4.header_checksum());
        prop_assert_eq!(usize::from(ip4.total_len()), 20 + len);
        prop_assert_eq!((ip4.source(), ip4.destination(), ip4.ttl()), (daddr, saddr, 64));
        let header = header.to_header();
        let sum = header.calc_checksum_ipv4(&ip4.to_header(), &[]).unwrap();
        prop_assert_eq!(header.checksum, sum);

        let elements: Vec<_> = header.options_iterator().map(Result::unwrap).collect();
        prop_assert_eq!(&elements[0], &TcpOptionElement::MaximumSegmentSize(mss));
        let with = has_timestamp == 1 && offer & offer::TIMESTAMPS != 0;
        let stamp = elements.iter().find_map(|e| match e {
            TcpOptionElement::Timestamp(value, echo) => Some((*value, *echo)),
            _ => None,
        });
        prop_assert_eq!(stamp.map(|(_, echo)| echo), with.then(|| u32::from_be_bytes(timestamp)));
        let has_sack = elements.contains(&TcpOptionElement::SelectiveAcknowledgementPermitted);
        let has_scale = elements.contains(&TcpOptionElement::WindowScale((offer & 15) as u8));
        prop_assert_eq!(has_sack, with && sack == 1 && offer & offer::SACK != 0);
        prop_assert_eq!(has_scale, with && scale != 15 && offer & offer::WSCALE != 0);
        if let Some((value, _)) = stamp {
            // What the kernel reads out of it when the client sends it back.
            prop_assert!(value <= now_ms && now_ms - value < 128);
            prop_assert_eq!(value & 0x10 != 0, has_sack);
            prop_assert_eq!(value & 0x20, 0);
            prop_assert_eq!(value & 0xf, if has_scale { scale.into() } else { 15 });
        }

        let len = syn_ack(&mut tcp, &key(s6, d6, ports), seq, isn, &asked, &terms);
        ipv6_header(&mut ip, d6, s6, len);
        let ip6 = Ipv6HeaderSlice::from_slice(&ip.0).unwrap();
        prop_assert_eq!((ip6.source(), ip6.destination(), ip6.hop_limit()), (d6, s6, 64));
        prop_assert_eq!(usize::from(ip6.payload_length()), len);
        let header = TcpHeaderSlice::from_slice(&tcp.0).unwrap().to_header();
        let sum = header.calc_checksum_ipv6(&ip6.to_header(), &[]).unwrap();
        prop_assert_eq!(header.checksum, sum);
    }

    #[test]
    fn the_listener_sees_the_syn_with_its_segment_size_alone(ports: u32, seq: [u8; 4], mss: u16) {
        let mut tcp = Header([0xff; 40]);
        seen_by_listener(&mut tcp, &key([1; 4], [2; 4], ports), seq, mss);
        let header = TcpHeaderSlice::from_slice(&tcp.0[..24]).unwrap();
        prop_assert_eq!(header.slice().len(), 24);
        prop_assert_eq!(header.source_port(), (ports >> 16) as u16);
        prop_assert_eq!(header.destination_port(), ports as u16);
        prop_assert_eq!(header.sequence_number(), u32::from_be_bytes(seq));
        prop_assert!(header.syn() && !header.ack());
        let first = header.options_iterator().next();
        let expected = (mss != 0).then_some(Ok(TcpOptionElement::MaximumSegmentSize(mss)));
        prop_assert_eq!(first, expected);
    }
}
