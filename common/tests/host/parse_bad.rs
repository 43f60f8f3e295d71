//! Bad packets: each has its reason.

use fsm_common::{Reason, parse::parse};

use crate::frame::{ACK, Frame, L4, SYN, ext, fragment_header, icmp, raw, tcp, udp};

const SRC: &str = "10.0.0.2:40000";
const DST: &str = "20.0.0.2:80";
const SRC6: &str = "[fd10::2]:40000";
const DST6: &str = "[fd20::2]:80";

fn reason(frame: &[u8]) -> Option<Reason> {
    parse(frame).err()
}

/// `frame` with some bytes overwritten, seen from the IP header.
fn with(frame: &Frame, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.bytes();
    frame[14 + at..14 + at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_third_tag_is_refused_wherever_it_comes() {
    for tpids in [
        [0x8100, 0x8100, 0x8100],
        [0x88a8, 0x8100, 0x8100],
        [0x88a8, 0x88a8, 0x88a8],
    ] {
        let frame = tpids
            .iter()
            .fold(tcp(SRC, DST, SYN), |frame, &tpid| frame.tag(tpid, 5));
        assert_eq!(reason(&frame.bytes()), Some(Reason::BadVlan));
    }
}

#[test]
fn frames_that_end_too_early() {
    let frame = tcp(SRC, DST, SYN).tag(0x8100, 5).bytes();
    for len in [0, 13, 14, 17, 18, 37] {
        assert_eq!(reason(&frame[..len]), Some(Reason::Truncated), "{len}");
    }
    let frame = tcp(SRC6, DST6, SYN).bytes();
    for len in [14, 53] {
        assert_eq!(reason(&frame[..len]), Some(Reason::Truncated), "{len}");
    }
}

#[test]
fn ipv4_lengths_that_lie() {
    let frame = tcp(SRC, DST, ACK).payload(b"data");
    let total = 44u16;
    let bad = Some(Reason::BadIpv4);
    for version in [0u8, 3, 5, 6, 15] {
        assert_eq!(
            reason(&with(&frame, 0, &[version << 4 | 5])),
            bad,
            "version {version}"
        );
    }
    for words in 0..5 {
        assert_eq!(
            reason(&with(&frame, 0, &[0x40 | words])),
            bad,
            "header of {words} words"
        );
    }
    assert_eq!(
        reason(&with(&frame, 0, &[0x4c])),
        bad,
        "header longer than the packet"
    );
    for wrong in [0, 1, 19, total + 1, u16::MAX] {
        assert_eq!(
            reason(&with(&frame, 2, &wrong.to_be_bytes())),
            bad,
            "total length {wrong}"
        );
    }
    assert_eq!(
        reason(&with(&frame, 2, &(total - 4).to_be_bytes())),
        None,
        "padding is none of our business"
    );
    assert_eq!(
        reason(&with(&frame, 2, &39u16.to_be_bytes())),
        Some(Reason::BadTcp)
    );
}

#[test]
fn ipv6_lengths_that_lie() {
    let frame = tcp(SRC6, DST6, ACK).payload(b"data");
    for version in [0u8, 4, 5, 7] {
        assert_eq!(
            reason(&with(&frame, 0, &[version << 4])),
            Some(Reason::BadIpv6),
            "version {version}"
        );
    }
    for wrong in [25, u16::MAX] {
        assert_eq!(
            reason(&with(&frame, 4, &wrong.to_be_bytes())),
            Some(Reason::BadIpv6),
            "{wrong}"
        );
    }
    for short in [0, 1, 19] {
        assert_eq!(
            reason(&with(&frame, 4, &u16::to_be_bytes(short))),
            Some(Reason::BadTcp),
            "{short}"
        );
    }
}

#[test]
fn extension_headers_that_lie() {
    let chain = |count| (0..count).fold(tcp(SRC6, DST6, SYN), |frame, _| frame.ext(ext(60, 8)));
    assert_eq!(reason(&chain(6).bytes()), None);
    assert_eq!(reason(&chain(7).bytes()), Some(Reason::BadIpv6Ext));

    let sizes = |a, b| tcp(SRC6, DST6, SYN).ext(ext(60, a)).ext(ext(43, b));
    assert_eq!(reason(&sizes(256, 256).bytes()), None);
    assert_eq!(reason(&sizes(256, 264).bytes()), Some(Reason::BadIpv6Ext));

    // The header says that it is longer than everything that follows.
    let frame = tcp(SRC6, DST6, SYN).ext(ext(60, 8));
    for units in [3u8, 20, 63, 255] {
        assert_eq!(
            reason(&with(&frame, 41, &[units])),
            Some(Reason::BadIpv6Ext),
            "{units}"
        );
    }
    // The payload length ends within the chain.
    assert_eq!(reason(&with(&frame, 4, &[0, 7])), Some(Reason::BadIpv6Ext));
    // A header announced, and the frame ends.
    let cut = &frame.bytes()[..14 + 40];
    assert_eq!(
        reason(&[&cut[..18], &[0, 0], &cut[20..]].concat()),
        Some(Reason::Truncated)
    );
}

#[test]
fn tcp_headers_that_lie() {
    for (frame, l4) in [(tcp(SRC, DST, SYN), 20), (tcp(SRC6, DST6, SYN), 40)] {
        for words in (0..5).chain([6, 15]) {
            assert_eq!(
                reason(&with(&frame, l4 + 12, &[words << 4])),
                Some(Reason::BadTcp),
                "{words} words"
            );
        }
        let options = Frame {
            l4: L4::Tcp {
                flags: SYN,
                options: vec![1; 40],
            },
            ..frame
        };
        assert_eq!(reason(&options.bytes()), None);
    }
}

#[test]
fn udp_lengths_that_lie() {
    for (frame, l4) in [(udp(SRC, DST), 20), (udp(SRC6, DST6), 40)] {
        for len in [0u16, 7, 14, u16::MAX] {
            assert_eq!(
                reason(&with(&frame, l4 + 4, &len.to_be_bytes())),
                Some(Reason::BadUdp),
                "{len}"
            );
        }
        assert_eq!(
            reason(&with(&frame, l4 + 4, &[0, 8])),
            None,
            "less than the packet holds is allowed"
        );
    }
}

#[test]
fn transport_headers_that_do_not_fit() {
    for (src, dst) in [("10.0.0.2", "20.0.0.2"), ("fd10::2", "fd20::2")] {
        for (proto, len, expected) in [(6, 19, Reason::BadTcp), (17, 7, Reason::BadUdp)] {
            for len in 0..=len {
                let frame = raw(src, dst, proto).payload(&vec![0; len]);
                assert_eq!(
                    reason(&frame.bytes()),
                    Some(expected),
                    "{proto}: {len} bytes"
                );
            }
        }
    }
    assert_eq!(
        reason(&icmp("10.0.0.2", "20.0.0.2", 8).payload(&[]).bytes()),
        None
    );
}

#[test]
fn a_first_fragment_that_hides_its_header_is_refused() {
    for (src, dst) in [(SRC, DST), (SRC6, DST6)] {
        let options = Frame {
            l4: L4::Tcp {
                flags: SYN,
                options: vec![1; 12],
            },
            ..tcp(src, dst, SYN)
        };
        for (frame, at, expected) in [
            (
                tcp(src, dst, SYN).payload(&[0; 40]),
                8,
                Some(Reason::FragmentTiny),
            ),
            (
                tcp(src, dst, SYN).payload(&[0; 40]),
                16,
                Some(Reason::FragmentTiny),
            ),
            (tcp(src, dst, SYN).payload(&[0; 40]), 24, None),
            (options.clone(), 24, Some(Reason::FragmentTiny)),
            (options.payload(&[0; 8]), 32, None),
            (udp(src, dst).payload(&[0; 40]), 8, None),
        ] {
            assert_eq!(
                reason(&frame.fragments(at)[0]),
                expected,
                "{src} cut at {at}"
            );
        }
    }
    // Flags are judged in a first fragment too.
    let bad = tcp(SRC, DST, 0).payload(&[0; 40]);
    assert_eq!(reason(&bad.fragments(24)[0]), Some(Reason::BadTcpFlags));
}

#[test]
fn a_later_fragment_is_not_judged_by_bytes_that_are_no_header() {
    let later = tcp(SRC6, DST6, 0).ext(fragment_header(1, 1, true));
    assert_eq!(reason(&later.bytes()), None);
    let frame = tcp(SRC, DST, 0);
    assert_eq!(reason(&frame.around(1, &[0xff; 3])), None);
}
