//! A load balancer on the uplink: both its ways, answers, and what becomes of flows whose endpoint is gone.

use fsm_common::{
    flow::nf,
    maps::{MARK_REINJECTED, sys},
    nat::{NatKey, dir, option},
    policy::acl,
    reason::Reason,
};

use crate::support::{
    Hook, Node, alone,
    frame::{ACK, FIN, Frame, RST, SYN, TCP, UDP, icmp, tcp, udp},
    node::mac,
    rules::wide,
    wiring::Wires,
};

const NEW: &[Reason] = &[Reason::FlowNew];

/// Of either family: a client and another one on the uplink, the virtual address, an app of this node, a host on
/// the uplink.
struct Case {
    client: &'static str,
    other: &'static str,
    vip: &'static str,
    app: &'static str,
    host: &'static str,
}

const CASES: [Case; 2] = [
    Case {
        client: "20.0.0.2:40000",
        other: "20.0.0.3:40000",
        vip: "20.0.0.9:80",
        app: "10.1.0.2:8080",
        host: "20.0.0.50:8080",
    },
    Case {
        client: "[fd20::2]:40000",
        other: "[fd20::3]:40000",
        vip: "[fd20::9]:80",
        app: "[fd10:1::2]:8080",
        host: "[fd20::50]:8080",
    },
];

const CLIENT_MAC: [u8; 6] = [2, 0xcc, 0, 0, 0, 2];
const HOST_MAC: [u8; 6] = [2, 0xcc, 0, 0, 0, 0x50];

type Packet = fn(&str, &str) -> Frame;
/// A first packet, a later one, an answer.
const PROTOS: [(&str, u8, [Packet; 3]); 2] = [
    (
        "tcp",
        TCP,
        [
            |s, d| tcp(s, d, SYN),
            |s, d| tcp(s, d, ACK).payload(b"GET /"),
            |s, d| tcp(s, d, SYN | ACK),
        ],
    ),
    (
        "udp",
        UDP,
        [
            udp,
            |s, d| udp(s, d).payload(b"query"),
            |s, d| udp(s, d).payload(b"answer"),
        ],
    ),
];

fn wires(node: &mut Node) -> Wires {
    let wires = node.wires();
    node.neighbours(&[
        ("20.0.0.2", "02:cc:00:00:00:02"),
        ("fd20::2", "02:cc:00:00:00:02"),
        ("20.0.0.3", "02:cc:00:00:00:02"),
        ("fd20::3", "02:cc:00:00:00:02"),
        ("20.0.0.50", "02:cc:00:00:00:50"),
        ("fd20::50", "02:cc:00:00:00:50"),
    ]);
    wires
}

fn balanced(
    endpoint: fn(&Case) -> &'static str,
    options: u64,
    test: impl Fn(&mut Node, Wires, &Case) + Send + 'static,
) {
    alone(move |node| {
        let wires = wires(node);
        for case in &CASES {
            for (_, proto, _) in PROTOS {
                node.e4lb(proto, case.vip, &[endpoint(case)], options);
            }
        }
        for case in &CASES {
            test(node, wires, case);
        }
    });
}

/// The frame as the uplink sends it to a neighbour.
fn forwarded(frame: &Frame, wires: Wires, dmac: [u8; 6]) -> Vec<u8> {
    Frame {
        dmac,
        smac: mac(wires.uplink),
        ttl: frame.ttl - 1,
        ..frame.clone()
    }
    .bytes()
}

/// The port that a frame was sent from.
fn sport(frame: &[u8]) -> u16 {
    let at = if frame[12] == 0x08 { 34 } else { 54 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn an_app_of_this_node_sees_the_client_and_the_client_the_virtual_address() {
    balanced(
        |case| case.app,
        0,
        |node, wires, case| {
            let Case {
                client, vip, app, ..
            } = case;
            for (name, _, [first, later, answer]) in PROTOS {
                let (there, back) = (
                    format!("{name} {client} > {vip}"),
                    format!("{name} {app} > {client}"),
                );
                for (packet, reasons) in [(first, NEW), (later, &[])] {
                    let frame = packet(client, vip);
                    let seen = node.run(Hook::TcIn, wires.uplink, &frame.bytes());
                    let out = seen.translated(&there, reasons);
                    assert_eq!(out, frame.with_tuple(client, app).bytes());
                    // The stack forwards it with this mark, and where it leaves nothing more is done.
                    assert_eq!(seen.mark, MARK_REINJECTED);
                    (node.mark, node.arrived_on) = (seen.mark, wires.uplink);
                    let seen = node.run(Hook::TcOut, wires.app1, &out);
                    seen.untouched(&[]);
                    assert_eq!(seen.mark, 0);
                    node.mark = 0;
                }
                // The answer's source would be the host's own on arrival, so it is changed where it leaves.
                let frame = answer(app, client);
                node.run(Hook::TcIn, wires.app1, &frame.bytes())
                    .follows(&back, &[]);
                node.arrived_on = wires.app1;
                let (_, out, _) = node.raw(Hook::TcOut, wires.uplink, &frame.bytes());
                assert_eq!(out, frame.with_tuple(vip, client).bytes());
                assert_eq!(
                    node.flows()[&back].packets,
                    1,
                    "counted once, where it arrived"
                );
            }
        },
    );
}

#[test]
fn a_host_behind_the_same_uplink_sees_the_virtual_address_and_a_port_of_its_own() {
    balanced(
        |case| case.host,
        0,
        |node, wires, case| {
            let Case {
                client, vip, host, ..
            } = case;
            for (name, _, [first, later, answer]) in PROTOS {
                let there = format!("{name} {client} > {vip}");
                let frame = first(client, vip);
                let seen = node.run(Hook::TcIn, wires.uplink, &frame.bytes());
                let out = seen.sent_on(&there, NEW);
                let mut source: std::net::SocketAddr = vip.parse().unwrap();
                source.set_port(sport(&out));
                assert!(source.port() >= 1024);
                let source = source.to_string();
                assert_eq!(
                    out,
                    forwarded(&frame.with_tuple(&source, host), wires, HOST_MAC)
                );
                (node.mark, node.arrived_on) = (seen.mark, wires.uplink);
                let left = node.run(Hook::TcOut, wires.uplink, &out);
                left.untouched(&[]);
                assert_eq!(left.mark, 0);
                node.mark = 0;

                let frame = later(client, vip);
                let out = node
                    .run(Hook::TcIn, wires.uplink, &frame.bytes())
                    .sent_on(&there, &[]);
                assert_eq!(
                    out,
                    forwarded(&frame.with_tuple(&source, host), wires, HOST_MAC)
                );

                let frame = answer(host, &source);
                let back = format!("{name} {host} > {source}");
                let out = node
                    .run(Hook::TcIn, wires.uplink, &frame.bytes())
                    .sent_on(&back, &[]);
                assert_eq!(
                    out,
                    forwarded(&frame.with_tuple(vip, client), wires, CLIENT_MAC)
                );
                let flows = node.flows();
                assert_eq!(
                    (flows[&there].packets, flows[&back].packets),
                    (2, 1),
                    "{name}"
                );
                assert_eq!(
                    flows[&there].nf,
                    nf::ALLOW | nf::XNAT | nf::INBOUND,
                    "{name}"
                );
            }
        },
    );
}

#[test]
fn two_clients_never_get_one_source_port() {
    balanced(
        |case| case.host,
        0,
        |node, wires, case| {
            let mut ports = std::collections::BTreeSet::new();
            let clients: Vec<String> = (0..300)
                .map(|i| {
                    let base = if i % 2 == 0 { case.client } else { case.other };
                    base.replace("40000", &(40_000 + i).to_string())
                })
                .collect();
            for client in &clients {
                let syn = tcp(client, case.vip, SYN).bytes();
                let (_, out, _) = node.raw(Hook::TcIn, wires.uplink, &syn);
                assert!(ports.insert(sport(&out)), "{client} shares a port");
            }
        },
    );
}

#[test]
fn the_source_can_be_the_clients_or_the_virtual_address_always() {
    balanced(
        |case| case.host,
        option::SOURCE_CLIENT,
        |node, wires, case| {
            let frame = tcp(case.client, case.vip, SYN);
            let out = node
                .run(Hook::TcIn, wires.uplink, &frame.bytes())
                .translated(&format!("tcp {} > {}", case.client, case.vip), NEW);
            assert_eq!(out, frame.with_tuple(case.client, case.host).bytes());
        },
    );
    balanced(
        |case| case.app,
        option::SOURCE_VIP,
        |node, wires, case| {
            let frame = tcp(case.client, case.vip, SYN);
            let out = node
                .run(Hook::TcIn, wires.uplink, &frame.bytes())
                .sent_on(&format!("tcp {} > {}", case.client, case.vip), NEW);
            let mut source: std::net::SocketAddr = case.vip.parse().unwrap();
            source.set_port(sport(&out));
            let back = tcp(case.app, &source.to_string(), SYN | ACK);
            let flow = format!("tcp {} > {source}", case.app);
            let out = node
                .run(Hook::TcIn, wires.app1, &back.bytes())
                .sent_on(&flow, &[]);
            let expected = forwarded(&back.with_tuple(case.vip, case.client), wires, CLIENT_MAC);
            assert_eq!(out, expected);
        },
    );
}

#[test]
fn a_trusted_client_is_balanced_too_and_a_denied_one_is_not() {
    balanced(
        |case| case.app,
        0,
        |node, wires, case| {
            let addr = |text: &str| {
                text.parse::<std::net::SocketAddr>()
                    .unwrap()
                    .ip()
                    .to_string()
            };
            node.acl(&addr(case.client), 0, TCP, acl::TRUSTED);
            node.acl(&addr(case.other), 0, TCP, acl::DENY);
            let frame = tcp(case.client, case.vip, SYN);
            node.run(Hook::Xdp, wires.uplink, &frame.bytes())
                .untouched(&[]);
            let out = node
                .run(Hook::TcIn, wires.uplink, &frame.bytes())
                .translated(&format!("tcp {} > {}", case.client, case.vip), NEW);
            assert_eq!(out, frame.with_tuple(case.client, case.app).bytes());
            for hook in [Hook::Xdp, Hook::TcIn] {
                let frame = tcp(case.other, case.vip, SYN).bytes();
                node.run(hook, wires.uplink, &frame)
                    .dropped(Reason::AclDeny);
            }
        },
    );
}

#[test]
fn other_ports_and_protocols_of_the_address_and_what_apps_send_are_left_alone() {
    balanced(
        |case| case.app,
        0,
        |node, wires, case| {
            let closed = case.vip.replace(":80", ":81");
            let frame = tcp(case.client, &closed, SYN);
            node.run(Hook::TcIn, wires.uplink, &frame.bytes())
                .follows(&format!("tcp {} > {closed}", case.client), NEW);
            let kind = if frame.src.is_ipv4() { 8 } else { 128 };
            let ip = |text: &str| {
                text.parse::<std::net::SocketAddr>()
                    .unwrap()
                    .ip()
                    .to_string()
            };
            let ping = icmp(&ip(case.client), &ip(case.vip), kind);
            let seen = node.run(Hook::TcIn, wires.uplink, &ping.bytes());
            assert_eq!(
                (&seen.frame, seen.verdict),
                (&ping.bytes(), Some(fsm_common::stats::Verdict::Pass)),
                "an echo is this host's own to answer"
            );
            let sent = tcp(case.app, case.vip, SYN);
            node.run(Hook::TcIn, wires.app1, &sent.bytes())
                .follows(&format!("tcp {} > {}", case.app, case.vip), NEW);
        },
    );
}

#[test]
fn a_hop_limit_that_ends_here_goes_no_further() {
    balanced(
        |case| case.host,
        0,
        |node, wires, case| {
            let frame = udp(case.client, case.vip).ttl(1).bytes();
            let seen = node.run(Hook::TcIn, wires.uplink, &frame);
            assert_eq!(seen.reasons, [Reason::HopLimit, Reason::FlowNew]);
            assert_eq!((seen.action, &seen.frame), (2, &frame));
        },
    );
}

#[test]
fn without_an_active_endpoint_fail_decides() {
    balanced(
        |case| case.app,
        0,
        |node, wires, case| {
            node.e4lb(TCP, case.vip, &[], 0);
            let frame = tcp(case.client, case.vip, SYN).bytes();
            let flow = format!("tcp {} > {}", case.client, case.vip);
            node.run(Hook::TcIn, wires.uplink, &frame)
                .follows(&flow, &[Reason::NatNoEndpointOpen, Reason::FlowNew]);
            node.set(|settings| settings.fail_open = 0);
            let frame = tcp(case.other, case.vip, SYN).bytes();
            node.run(Hook::TcIn, wires.uplink, &frame)
                .dropped(Reason::NatNoEndpoint);
            node.set(|settings| settings.fail_open = 1);
        },
    );
}

/// The frame of a bare RST that answers `frame`, a segment that acknowledges `ack`.
fn reset_of(frame: &[u8], ack: [u8; 4]) -> Vec<u8> {
    let v4 = frame[12] == 0x08;
    let (l4, addrs) = if v4 { (34, 26..34) } else { (54, 22..54) };
    let mut out = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    let half = addrs.len() / 2;
    let swapped = [
        &frame[addrs.start + half..addrs.end],
        &frame[addrs.start..addrs.start + half],
    ]
    .concat();
    if v4 {
        out.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    } else {
        out.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    }
    out.extend(swapped);
    out.extend([frame[l4 + 2], frame[l4 + 3], frame[l4], frame[l4 + 1]]);
    out.extend(ack);
    out.extend([0, 0, 0, 0, 0x50, RST, 0, 0, 0, 0, 0, 0]);
    out
}

/// Without checksums, which are compared otherwise.
fn without_sums(mut frame: Vec<u8>) -> Vec<u8> {
    let v4 = frame[12] == 0x08;
    if v4 {
        frame[24..26].fill(0);
    }
    let at = if v4 { 50 } else { 70 };
    frame[at..at + 2].fill(0);
    frame
}

#[test]
fn a_flow_whose_endpoint_is_gone_drains_or_is_reset() {
    balanced(
        |case| case.host,
        0,
        |node, wires, case| {
            let flow = format!("tcp {} > {}", case.client, case.vip);
            let syn = tcp(case.client, case.vip, SYN).bytes();
            let data = tcp(case.client, case.vip, ACK).payload(b"a request that is long");
            let _ = node.run(Hook::TcIn, wires.uplink, &syn).sent_on(&flow, NEW);
            node.e4lb(TCP, case.vip, &[case.app], 0);
            let _ = node
                .run(Hook::TcIn, wires.uplink, &data.bytes())
                .sent_on(&flow, &[Reason::FlowRejudged]);
        },
    );
    balanced(
        |case| case.host,
        option::RESET,
        |node, wires, case| {
            let flow = format!("tcp {} > {}", case.client, case.vip);
            let syn = tcp(case.client, case.vip, SYN).bytes();
            let data = tcp(case.client, case.vip, ACK).payload(b"a request that is long");
            let _ = node.run(Hook::TcIn, wires.uplink, &syn).sent_on(&flow, NEW);
            // Another change leaves it alone, and one that keeps its endpoint too.
            node.e4lb(TCP, case.vip, &[case.app, case.host], option::RESET);
            node.run(Hook::Xdp, wires.uplink, &data.bytes())
                .untouched(&[]);
            let _ = node
                .run(Hook::TcIn, wires.uplink, &data.bytes())
                .sent_on(&flow, &[Reason::FlowRejudged]);
            node.e4lb(TCP, case.vip, &[case.app], option::RESET);
            node.run(Hook::Xdp, wires.uplink, &data.bytes())
                .untouched(&[]);
            let bytes = data.bytes();
            let out = node
                .run(Hook::TcIn, wires.uplink, &bytes)
                .answered(Reason::NatTargetGone);
            let l4 = if bytes[12] == 0x08 { 34 } else { 54 };
            let ack = [8, 9, 10, 11].map(|i| bytes[l4 + i]);
            assert_eq!(without_sums(out), reset_of(&bytes, ack));
            // A new connection on the old ports finds the other endpoint.
            let out = node
                .run(Hook::TcIn, wires.uplink, &syn)
                .translated(&flow, NEW);
            assert_eq!(out, tcp(case.client, case.app, SYN).bytes());
        },
    );
}

#[test]
fn a_connection_on_old_ports_and_a_datagram_find_another_endpoint_at_once() {
    balanced(
        |case| case.host,
        option::RESET,
        |node, wires, case| {
            for (name, proto, [first, ..]) in PROTOS {
                let flow = format!("{name} {} > {}", case.client, case.vip);
                let frame = first(case.client, case.vip);
                let _ = node
                    .run(Hook::TcIn, wires.uplink, &frame.bytes())
                    .sent_on(&flow, NEW);
                node.e4lb(proto, case.vip, &[case.app], option::RESET);
                let seen = node.run(Hook::TcIn, wires.uplink, &frame.bytes());
                // Of the four entries one has the old one's key.
                assert_eq!((seen.made, seen.gone, seen.reasons), (1, 1, NEW.to_vec()));
                assert_eq!(seen.frame, frame.with_tuple(case.client, case.app).bytes());
            }
        },
    );
}

#[test]
fn an_entry_that_is_gone_resets_its_flows_and_an_answer_is_reset_too() {
    alone(|node| {
        let wires = wires(node);
        for case in &CASES {
            let any = if case.client.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            node.nat_with(dir::EGRESS, TCP, any, &[case.host], option::RESET);
            let (app, server) = (case.app, case.client);
            let flow = format!("tcp {app} > {server}");
            let _ = node
                .run(Hook::TcIn, wires.app1, &tcp(app, server, SYN).bytes())
                .translated(&flow, NEW);
            let key = NatKey {
                proto: TCP,
                dir: dir::EGRESS,
                v6: any.starts_with('[').into(),
                sys: sys::MESH,
                daddr: wide(any.parse::<std::net::SocketAddr>().unwrap().ip()),
                ..NatKey::ZERO
            };
            node.maps.xnat.remove(&key).unwrap();
            node.set(|_| ());
            let answer = tcp(case.host, app, FIN | ACK).bytes();
            node.arrived_on = wires.uplink;
            let seen = node.run(Hook::TcOut, wires.app1, &answer);
            assert_eq!(seen.reasons, [Reason::NatTargetGone]);
            assert_eq!(
                (seen.action, seen.gone),
                (2, 2),
                "nobody to answer to there"
            );
        }
    });
}
