//! Protocols are known by what is said, however it is cut.

use fsm_fastpath::{
    config::DpiMode,
    dpi::{Engine as _, Meta, Verdict},
};
use proptest::prelude::*;

use crate::{
    frame::{ACK, tcp, udp},
    talk::{C, CLIENT6, D, META, SERVER6, Talk},
};

pub const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: example.org\r\nUser-Agent: t/1\r\n\r\n";
pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x07example\x03org\0\0\x01\0\x01\
    \xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01";
// Taken from openssl s_client and s_server 3.0.
const HELLO13: [&[u8]; 2] = [
    include_bytes!("tls13-client.bin"),
    include_bytes!("tls13-server.bin"),
];
const HELLO12: [&[u8]; 2] = [
    include_bytes!("tls12-client.bin"),
    include_bytes!("tls12-server.bin"),
];

struct Case {
    says: [Vec<u8>; 2],
    app: &'static str,
    info: &'static str,
}

fn cases() -> Vec<Case> {
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
    let case = |says: [&[u8]; 2], app, info| Case {
        says: says.map(<[u8]>::to_vec),
        app,
        info,
    };
    vec![
        case(
            [GET, OK],
            "http",
            "method=GET host=example.org path=/a user_agent=t/1 version=1.1 status=200",
        ),
        case(
            HELLO13,
            "tls",
            "sni=www.example.org alpn=h2,http/1.1 client_version=TLS 1.3 version=TLS 1.3",
        ),
        case(
            HELLO12,
            "tls",
            "sni=old.example.org alpn=http/1.1 client_version=TLS 1.2 alpn_selected=http/1.1 version=TLS 1.2",
        ),
        case(
            [b"SSH-2.0-a\r\nrest", b"SSH-2.0-b\r\nrest"],
            "ssh",
            "client_version=2.0 client_software=a version=2.0 software=b",
        ),
        case(
            [&framed(QUERY), &framed(ANSWER)],
            "dns",
            "query=example.org type=A answers=1 rcode=NOERROR",
        ),
    ]
}

fn known(talk: &Talk, case: &Case) {
    assert_eq!(talk.apps(), [(case.app, case.info.to_owned())]);
    assert_eq!(talk.engine.buffered(), 0);
    assert!(talk.threats().is_empty() && talk.violations().is_empty());
}

#[test]
fn in_one_piece_or_byte_by_byte_in_both_families() {
    for case in cases() {
        for most in [1, 7, 1448] {
            for ends in [None, Some([CLIENT6, SERVER6])] {
                let mut talk = Talk::new(DpiMode::Monitor, "");
                talk.ends = ends.unwrap_or(talk.ends);
                assert_eq!(talk.open(), Verdict::Pass);
                let mut last = Verdict::Pass;
                for side in [C, D] {
                    for part in case.says[side].chunks(most) {
                        last = talk.say(side, part);
                    }
                }
                assert_eq!(last, Verdict::Allow, "{} in {most}", case.app);
                known(&talk, &case);
                assert_eq!(talk.sessions(), 1);
            }
        }
    }
}

proptest! {
    /// Cut anywhere, with segments sent twice, cut otherwise the second time, and a few out of order.
    #[test]
    fn any_cuts_any_repeats(
        which in 0usize..5,
        cuts in prop::collection::vec((1usize..60, 0u8..8, 0usize..40), 1..40),
    ) {
        let case = &cases()[which];
        let mut talk = Talk::new(DpiMode::Monitor, "");
        talk.open();
        for side in [C, D] {
            let (all, start) = (&case.says[side], talk.next[side]);
            let mut at = 0;
            let mut turn = cuts.iter().cycle();
            while at < all.len() {
                let (len, how, back) = turn.next().unwrap();
                let end = (at + len).min(all.len());
                let mut send = |from: usize, to: usize| {
                    talk.segment(side, ACK, start.wrapping_add(from as u32), &all[from..to]);
                };
                match how {
                    0 => {
                        send(at, end);
                        send(at, end);
                    }
                    1 => send(at.saturating_sub(*back), end),
                    2 | 3 => {
                        let later = (end + len).min(all.len());
                        if later > end {
                            send(end, later);
                        }
                        send(at, end);
                        at = later;
                        continue;
                    }
                    _ => send(at, end),
                }
                at = end;
            }
            talk.next[side] = start.wrapping_add(all.len() as u32);
        }
        known(&talk, case);
    }
}

#[test]
fn both_hellos_and_both_heads_are_waited_for() {
    for case in cases() {
        let mut talk = Talk::new(DpiMode::Protect, "");
        talk.open();
        assert_eq!(talk.say(C, &case.says[C]), Verdict::Pass, "{}", case.app);
        assert!(talk.apps().is_empty());
        let view = &talk.engine.sessions(talk.now, 1)[0];
        assert_eq!((view.app, view.packets), (Some(case.app), [3, 1]));
        assert_eq!(talk.say(D, &case.says[D]), Verdict::Allow);
        assert_eq!(talk.say(C, b"more"), Verdict::Allow);
        known(&talk, &case);
    }
}

#[test]
fn dns_over_udp_is_known_and_passes() {
    let mut talk = Talk::new(DpiMode::Protect, "");
    for _ in 0..3 {
        assert_eq!(talk.datagram(C, QUERY), Verdict::Pass);
        assert_eq!(talk.datagram(D, ANSWER), Verdict::Pass);
    }
    let info = "query=example.org type=A answers=1 rcode=NOERROR";
    assert_eq!(talk.apps(), [("dns", info.to_owned())]);
    talk.tick(31);
    assert_eq!(talk.ended(), [[3, 3]]);
}

#[test]
fn what_is_said_in_the_middle_counts_where_it_begins_a_message() {
    // No handshake was seen; the first packet is the server's.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    let reply = Meta {
        is_reply: true,
        ..META
    };
    let frame = tcp(talk.ends[D], talk.ends[C], ACK)
        .at(5, 9)
        .payload(OK)
        .bytes();
    assert_eq!(talk.judge_as(&reply, &frame), Verdict::Pass);
    let frame = tcp(talk.ends[C], talk.ends[D], ACK)
        .at(9, 50)
        .payload(GET)
        .bytes();
    assert_eq!(talk.judge(&frame), Verdict::Allow);
    assert_eq!(talk.apps().len(), 1);
}

#[test]
fn what_nobody_knows_is_left_to_the_kernel_in_time() {
    // Both sides have said something else: at once.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    assert_eq!(talk.say(C, b"\0\0\0\0hello"), Verdict::Pass);
    assert_eq!(talk.say(D, b"\0\0\0\0hello"), Verdict::Allow);
    // One side alone: after 16 packets.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    let said: Vec<_> = (0..16).map(|_| talk.say(C, b"\0\0\0\0hello")).collect();
    assert_eq!(said[14..], [Verdict::Pass, Verdict::Allow]);
    // What could still become something: when no more is kept.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    talk.say(D, b"\0\0\0\0hello");
    let mut said = vec![talk.say(C, b"GET ")];
    said.extend((0..2044).map(|_| talk.say(C, b"a")));
    assert_eq!(said.iter().position(|v| *v == Verdict::Allow), Some(2044));
    assert!(talk.apps().is_empty());
    assert_eq!(talk.engine.buffered(), 0);
    // Datagrams.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    let said: Vec<_> = (0..4)
        .flat_map(|_| [C, D].map(|side| talk.datagram(side, b"hello")))
        .collect();
    assert_eq!(said.iter().position(|v| *v == Verdict::Allow), Some(7));
}

#[test]
fn a_hole_that_is_never_filled_ends_that_sides_inspection() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    talk.say(D, b"\0\0\0\0hello");
    talk.next[C] = talk.next[C].wrapping_add(100);
    let said: Vec<_> = (0..9).map(|_| talk.say(C, GET)).collect();
    assert_eq!(said[7..], [Verdict::Pass, Verdict::Allow]);
    assert_eq!(talk.engine.buffered(), 0);
    // The protocol that is known stays so.
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    talk.say(C, GET);
    talk.next[D] = talk.next[D].wrapping_add(100);
    let said: Vec<_> = (0..9).map(|_| talk.say(D, OK)).collect();
    assert_eq!(said[7..], [Verdict::Pass, Verdict::Allow]);
    assert_eq!(talk.apps()[0].0, "http");
}

#[test]
fn depth_ends_it_whatever_is_known() {
    let mut talk = Talk::new(DpiMode::Monitor, "");
    talk.open();
    assert_eq!(talk.say(C, GET), Verdict::Pass);
    let block = [b'x'; 1400];
    // A server that never answers, and a client that goes on.
    let first = (0..1000).find(|_| talk.say(C, &block) == Verdict::Allow);
    assert_eq!(first, Some((1 << 20) / 1400));
    assert_eq!(talk.apps().len(), 1);
}

#[test]
fn wrong_checksums_and_flags_are_threats_and_open_nothing() {
    for (mode, want) in [
        (DpiMode::Monitor, Verdict::Pass),
        (DpiMode::Protect, Verdict::Drop),
    ] {
        let mut talk = Talk::new(mode, "");
        let [client, server] = talk.ends;
        for mut frame in [
            tcp(client, server, ACK).payload(GET).bytes(),
            udp(client, server).bytes(),
        ] {
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(talk.judge(&frame), Verdict::Pass);
        }
        // none, U, F, P, PF, PU, SF, PUF, UAPSF, all six
        for flags in [0, 0x20, 1, 8, 9, 0x28, 3, 0x29, 0x3b, 0x3f] {
            assert_eq!(
                talk.judge(&tcp(client, server, flags).bytes()),
                want,
                "{flags:#x}"
            );
        }
        let threats = talk.threats();
        assert_eq!(threats[..2], ["bad_checksum"; 2]);
        assert_eq!(threats[2..], ["tcp_bad_flags"; 10]);
        assert_eq!(talk.sessions(), 0);
    }
}
