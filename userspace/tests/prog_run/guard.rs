//! Protected destinations: what is over the rate is answered with a SYN cookie or dropped, in XDP alone.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
};

use fsm_common::{
    cookie::offer,
    guard::Bucket,
    nat::{dir, select},
    policy::acl,
    reason::Reason,
};

use crate::support::{
    Hook, Node, alone,
    frame::{ACK, Frame, L4, SYN, TCP, UDP, tcp, udp},
    wiring::Wires,
};

/// A client on the wire, an app's port, a listener of the node for what apps receive.
const CASES: [[&str; 3]; 2] = [
    ["20.0.0.2:40000", "10.1.0.2:80", "20.0.0.1:15003"],
    ["[fd20::2]:40000", "[fd10:1::2]:80", "[fd20::1]:15003"],
];
/// MSS 1460, SACK permitted, timestamp 0x01020304, window scale 7: as Linux sends them.
const OPTIONS: [u8; 20] = [
    2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
];
/// Everything that can be offered, with scale 9.
const ALL: u32 = offer::TIMESTAMPS | offer::SACK | offer::WSCALE | 9;
const NEW: &[Reason] = &[Reason::FlowNew];
const NONE: &[Reason] = &[Reason::SynCookieNone];

/// No flow is within the rate.
const OVER: Bucket = Bucket {
    interval_ns: 1_000_000_000,
    full_at_ns: u64::MAX / 2,
    ..Bucket::ZERO
};

fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
}

fn wires(node: &mut Node) -> Wires {
    let wires = node.wires();
    sysctl("tcp_syncookies", "2");
    node.set(|settings| settings.syn_cookie = ALL);
    wires
}

/// A node that steers what both apps' ports get to listeners of its own, and protects them.
fn steering(node: &mut Node) -> (Wires, Vec<TcpListener>) {
    let wires = wires(node);
    let listen = |[_, app, listener]: [&str; 3]| {
        node.nat(dir::INGRESS, TCP, app, &[listener]);
        node.protect(TCP, app, OVER);
        TcpListener::bind(listener).unwrap_or_else(|e| panic!("{listener}: {e}"))
    };
    let listeners = CASES.map(listen).into();
    (wires, listeners)
}

fn with_options(mut frame: Frame, bytes: &[u8]) -> Frame {
    if let L4::Tcp { options, .. } = &mut frame.l4 {
        *options = bytes.to_vec();
    }
    frame
}

fn syn(client: &str, app: &str) -> Frame {
    with_options(tcp(client, app, SYN), &OPTIONS)
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// The answer that `syn` must get, byte by byte, but for what only the kernel knows: the cookie and the time,
/// which are taken from `got` (untagged).
fn expected(syn: &Frame, got: &[u8], options: &[u8]) -> Vec<u8> {
    let l4 = if syn.src.is_ipv6() { 54 } else { 34 };
    let mut answer = Frame {
        dmac: syn.smac,
        smac: syn.dmac,
        src: syn.dst,
        dst: syn.src,
        ttl: 64,
        id: 0,
        options: Vec::new(),
        exts: Vec::new(),
        payload: Vec::new(),
        ..syn.clone()
    };
    answer.tags.clear();
    answer.l4 = L4::Tcp {
        flags: SYN | ACK,
        options: options.to_vec(),
    };
    let mut bytes = answer.datagram();
    bytes[4..8].copy_from_slice(&got[l4 + 4..l4 + 8]);
    bytes[8..12].copy_from_slice(&2u32.to_be_bytes());
    bytes[14..16].copy_from_slice(&14600u16.to_be_bytes());
    // The checksum is verified by itself.
    bytes[16..18].copy_from_slice(&got[l4 + 16..l4 + 18]);
    answer.around(0x4000, &bytes)
}

fn answer(node: &mut Node, uplink: u32, frame: &Frame) -> Vec<u8> {
    node.run(Hook::Xdp, uplink, &frame.bytes()).cookie()
}

#[test]
fn a_syn_over_the_rate_is_answered_and_one_within_it_passes() {
    alone(|node| {
        let (wires, _listeners) = steering(node);
        for [client, app, _] in CASES {
            node.protect(TCP, app, Bucket::new(1));
            let frame = syn(client, app);
            node.run(Hook::Xdp, wires.uplink, &frame.bytes())
                .untouched(&[]);
            node.protect(TCP, app, OVER);
            let got = answer(node, wires.uplink, &frame);
            let l4 = got.len() - 40;
            let time = be32(&got[l4 + 28..l4 + 32]);
            let mss: u16 = if client.starts_with('[') { 1440 } else { 1460 };
            let mut options = vec![2, 4];
            options.extend(mss.to_be_bytes());
            options.extend([4, 2, 8, 10]);
            options.extend(time.to_be_bytes());
            options.extend([1, 2, 3, 4, 1, 3, 3, 9]);
            assert_eq!(got, expected(&frame, &got, &options), "{client}");
            assert_eq!(time & 0x3f, 0x17, "SACK and scale 7 in the timestamp");
        }
    });
}

#[test]
fn without_timestamps_an_answer_offers_the_segment_size_alone() {
    alone(|node| {
        let (wires, _listeners) = steering(node);
        let plain = |got: &[u8]| {
            let l4 = got.len() - 24;
            assert_eq!(got[l4 + 20..l4 + 22], [2, 4]);
            got[l4 + 20..].to_vec()
        };
        for [client, app, _] in CASES {
            // The client has none.
            let frame = with_options(tcp(client, app, SYN), &[2, 4, 5, 180, 1, 3, 3, 7]);
            let got = answer(node, wires.uplink, &frame);
            assert_eq!(got, expected(&frame, &got, &plain(&got)));
            // The client has no options at all: the frame grows.
            let frame = tcp(client, app, SYN);
            let got = answer(node, wires.uplink, &frame);
            assert_eq!(got, expected(&frame, &got, &plain(&got)));
            // The kernel takes none.
            node.set(|settings| settings.syn_cookie = offer::SACK | offer::WSCALE | 9);
            let frame = syn(client, app);
            let got = answer(node, wires.uplink, &frame);
            assert_eq!(got, expected(&frame, &got, &plain(&got)));
            node.set(|settings| settings.syn_cookie = ALL);
        }
    });
}

#[test]
fn a_timestamp_alone_says_that_there_is_nothing_else() {
    alone(|node| {
        let (wires, _listeners) = steering(node);
        let [client, app, _] = CASES[0];
        let only = [1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0];
        let frame = with_options(tcp(client, app, SYN), &only);
        let got = answer(node, wires.uplink, &frame);
        assert_eq!(got.len(), 34 + 36);
        assert_eq!(got[58..62], [1, 1, 8, 10]);
        assert_eq!(be32(&got[62..66]) & 0x3f, 0xf);
        assert_eq!(got[66..70], [1, 2, 3, 4]);
    });
}

#[test]
fn tags_are_kept_and_options_extensions_and_data_are_not() {
    alone(|node| {
        let (wires, _listeners) = steering(node);
        for [client, app, _] in CASES {
            let plain = answer(node, wires.uplink, &syn(client, app));
            let same = |got: &[u8], tags: usize| {
                // Of two cookies of one minute only the timestamp and the checksum may differ.
                let l4 = plain.len() - 40;
                assert_eq!(got[..12], plain[..12]);
                assert_eq!(got[12 + tags..l4 + tags + 16], plain[12..l4 + 16]);
                assert_eq!(got.len(), plain.len() + tags);
            };
            let tagged = syn(client, app).tag(0x88a8, 7).tag(0x8100, 5);
            let got = answer(node, wires.uplink, &tagged);
            same(&got, 8);
            assert_eq!(got[12..20], [0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]);

            same(
                &answer(node, wires.uplink, &syn(client, app).payload(&[7; 1000])),
                0,
            );
            let mut long = syn(client, app);
            if long.src.is_ipv6() {
                long.exts = vec![crate::support::frame::ext(0, 8)];
            } else {
                long.options = vec![1; 20];
            }
            same(&answer(node, wires.uplink, &long), 0);
        }
    });
}

/// A node whose entry has eight listeners, of which only some are there.
fn eight_listeners(node: &mut Node, way: u8) -> (Wires, Vec<TcpListener>) {
    let wires = wires(node);
    let ports: Vec<String> = (0..8).map(|i| format!("20.0.0.1:{}", 16000 + i)).collect();
    let to: Vec<&str> = ports.iter().map(String::as_str).collect();
    node.nat(dir::INGRESS, TCP, "10.1.0.2:80", &to);
    node.select(dir::INGRESS, TCP, "10.1.0.2:80", way);
    node.protect(TCP, "10.1.0.2:80", OVER);
    let there = ports.iter().step_by(3);
    let there = there.map(|at| TcpListener::bind(at).unwrap());
    (wires, there.collect())
}

#[test]
fn the_cookie_is_the_listeners_to_which_the_clients_next_packet_is_steered() {
    for way in [select::MAGLEV, select::ROUND_ROBIN] {
        alone(move |node| {
            let (wires, listeners) = eight_listeners(node, way);
            let there: Vec<u16> = listeners
                .iter()
                .map(|l| l.local_addr().unwrap().port())
                .collect();
            let mut answered = 0;
            for port in 40000..40064 {
                let client = format!("20.0.0.2:{port}");
                let frame = syn(&client, "10.1.0.2:80").bytes();
                let seen = node.run(Hook::Xdp, wires.uplink, &frame);
                let is_answered = seen.reasons == [Reason::SynCookieSent];
                if is_answered {
                    drop(seen.cookie());
                    answered += 1;
                } else {
                    seen.untouched(NONE);
                }
                let ack = tcp(&client, "10.1.0.2:80", ACK).bytes();
                let flow = format!("tcp {client} > 10.1.0.2:80");
                let out = node
                    .run(Hook::TcIn, wires.uplink, &ack)
                    .translated(&flow, NEW);
                let listener = u16::from_be_bytes([out[36], out[37]]);
                assert_eq!(is_answered, there.contains(&listener), "{client}");
            }
            assert!((8..56).contains(&answered), "{answered} of 64");
        });
    }
}

#[test]
fn where_no_cookie_would_be_believed_the_syn_is_left_to_the_stack() {
    alone(|node| {
        let (wires, listeners) = steering(node);
        let [client, app, listener] = CASES[0];
        let frame = syn(client, app).bytes();
        // Without SYN cookies, and with a listener that has room.
        for value in ["0", "1"] {
            sysctl("tcp_syncookies", value);
            node.run(Hook::Xdp, wires.uplink, &frame).untouched(NONE);
        }
        sysctl("tcp_syncookies", "2");
        drop(node.run(Hook::Xdp, wires.uplink, &frame).cookie());
        // An excluded port goes to the app itself, even if the node happens to listen there.
        let excluded = TcpListener::bind("0.0.0.0:81").unwrap();
        node.skip_port(81, fsm_common::maps::skip::INBOUND);
        node.protect(TCP, "10.1.0.2:81", OVER);
        let to_app = syn(client, "10.1.0.2:81").bytes();
        node.run(Hook::Xdp, wires.uplink, &to_app).untouched(NONE);
        drop(excluded);
        // A listener that is elsewhere, and one that is gone.
        node.nat(dir::INGRESS, TCP, app, &["20.0.0.9:15003"]);
        node.run(Hook::Xdp, wires.uplink, &frame).untouched(NONE);
        node.nat(dir::INGRESS, TCP, app, &[listener]);
        drop(listeners);
        node.run(Hook::Xdp, wires.uplink, &frame).untouched(NONE);
        // Nowhere to answer to.
        node.run(
            Hook::Xdp,
            wires.uplink,
            &syn("224.0.0.1:40000", app).bytes(),
        )
        .untouched(NONE);
    });
}

#[test]
fn a_listener_of_the_host_itself_is_protected_without_nat() {
    alone(|node| {
        let wires = wires(node);
        for [client, _, listener] in CASES {
            let _there = TcpListener::bind(listener).unwrap();
            let at: SocketAddr = listener.parse().unwrap();
            let any_port = SocketAddr::new(at.ip(), 0).to_string();
            node.protect(TCP, &any_port, OVER);
            let frame = syn(client, listener);
            let got = answer(node, wires.uplink, &frame);
            let address = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let source = if at.is_ipv6() { 22..38 } else { 26..30 };
            assert_eq!(got[source], address(at.ip()));
        }
    });
}

#[test]
fn datagrams_over_the_rate_are_dropped_and_those_of_a_flow_never() {
    alone(|node| {
        let wires = wires(node);
        for [client, app, _] in CASES {
            let frame = udp(client, app).bytes();
            node.protect(UDP, app, Bucket::new(1));
            node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
            node.protect(UDP, app, OVER);
            node.run(Hook::Xdp, wires.uplink, &frame)
                .dropped(Reason::FloodUdp);
            // Made in TC before the flood began.
            let flow = format!("udp {client} > {app}");
            node.run(Hook::TcIn, wires.uplink, &frame)
                .follows(&flow, NEW);
            node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
        }
    });
}

#[test]
fn only_what_opens_a_flow_without_trust_is_counted() {
    alone(|node| {
        let (wires, _listeners) = steering(node);
        let [client, app, _] = CASES[0];
        for flags in [ACK, SYN | ACK] {
            let frame = tcp(client, app, flags).bytes();
            node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
        }
        for part in syn(client, app).payload(&[0; 100]).fragments(64) {
            node.run(Hook::Xdp, wires.uplink, &part).untouched(&[]);
        }
        // A retransmitted SYN of a flow that is there.
        let frame = syn(client, app).bytes();
        let flow = format!("tcp {client} > {app}");
        drop(
            node.run(Hook::TcIn, wires.uplink, &frame)
                .translated(&flow, NEW),
        );
        node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
        // What the ACL says goes first.
        for addr in ["20.0.0.3", "20.0.0.4"] {
            let verdict = if addr.ends_with('3') {
                acl::DENY
            } else {
                acl::TRUSTED
            };
            node.acl(addr, 0, TCP, verdict);
        }
        node.run(Hook::Xdp, wires.uplink, &syn("20.0.0.3:1", app).bytes())
            .dropped(Reason::AclDeny);
        drop(
            node.run(Hook::Xdp, wires.uplink, &syn("20.0.0.4:1", app).bytes())
                .redirected(&format!("tcp 20.0.0.4:1 > {app}"), NEW),
        );
    });
}

#[test]
fn the_most_exact_entry_counts_a_flow() {
    alone(|node| {
        let wires = wires(node);
        let full = Bucket::new(1000);
        for (dst, bucket) in [
            ("10.1.0.2:53", full),
            ("10.1.0.2:0", OVER),
            ("0.0.0.0:53", full),
            ("0.0.0.0:0", OVER),
        ] {
            node.protect(UDP, dst, bucket);
        }
        for (dst, passes) in [
            ("10.1.0.2:53", true),
            ("10.1.0.2:54", false),
            ("10.2.0.2:53", true),
            ("10.2.0.2:54", false),
        ] {
            let seen = node.run(Hook::Xdp, wires.uplink, &udp("20.0.0.2:1", dst).bytes());
            if passes {
                seen.untouched(&[]);
            } else {
                seen.dropped(Reason::FloodUdp);
            }
        }
        // TCP and the other family are not meant.
        node.run(
            Hook::Xdp,
            wires.uplink,
            &tcp("20.0.0.2:1", "10.1.0.2:54", SYN).bytes(),
        )
        .untouched(&[]);
        node.run(
            Hook::Xdp,
            wires.uplink,
            &udp("[fd20::2]:1", "[fd10:1::2]:54").bytes(),
        )
        .untouched(&[]);
    });
}
