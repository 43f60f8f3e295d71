//! An app's packets are taken to the gateway's listener, and answers come back.

use fsm_common::{flow::nf, maps::sys, nat::dir, reason::Reason};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{ACK, FIN, SYN, TCP, UDP, tcp, udp},
    rules::wide,
};

const NEW: &[Reason] = &[Reason::FlowNew];
const ANY: [&str; 2] = ["0.0.0.0:0", "[::]:0"];

/// App, server, and the listener, of either family.
pub struct Case {
    pub app: &'static str,
    pub server: &'static str,
    pub other_server: &'static str,
    pub gateway: &'static str,
}

const CASES: [Case; 2] = [
    Case {
        app: "10.1.0.2:40000",
        server: "20.0.0.2:80",
        other_server: "20.0.0.3:80",
        gateway: "10.0.0.1:15001",
    },
    Case {
        app: "[fd10:1::2]:40000",
        server: "[fd20::2]:80",
        other_server: "[fd20::3]:80",
        gateway: "[fd10::1]:15001",
    },
];

/// A node with the loopback as an app's device, everything taken to the listeners.
pub fn taken(test: impl Fn(&mut Node, &Case) + Send + 'static) {
    alone(move |node| {
        for (case, any) in CASES.iter().zip(ANY) {
            for proto in [TCP, UDP] {
                node.nat(dir::EGRESS, proto, any, &[case.gateway]);
            }
        }
        for case in &CASES {
            test(node, case);
        }
    });
}

#[test]
fn a_connection_goes_to_the_listener_and_answers_come_from_the_server() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let there = format!("tcp {app} > {server}");
        let back = format!("tcp {gateway} > {app}");
        let syn = tcp(app, server, SYN);
        let out = node
            .run(Hook::TcIn, LO, &syn.bytes())
            .translated(&there, NEW);
        assert_eq!(out, syn.with_tuple(app, gateway).bytes());

        let answer = tcp(gateway, app, SYN | ACK);
        let out = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .translated(&back, &[]);
        assert_eq!(out, answer.with_tuple(server, app).bytes());

        let data = tcp(app, server, ACK).payload(b"GET / HTTP/1.1");
        let out = node
            .run(Hook::TcIn, LO, &data.bytes())
            .translated(&there, &[]);
        assert_eq!(out, data.with_tuple(app, gateway).bytes());

        let end = tcp(gateway, app, FIN | ACK);
        let out = node
            .run(Hook::TcOut, LO, &end.bytes())
            .translated(&back, &[]);
        assert_eq!(out, end.with_tuple(server, app).bytes());

        let flows = node.flows();
        let (forward, reply) = (&flows[&there], &flows[&back]);
        assert_eq!((forward.packets, forward.tcp), (2, SYN | ACK));
        assert_eq!((reply.packets, reply.tcp), (2, SYN | ACK | FIN));
        assert_eq!(
            (&forward.to, &forward.pair),
            (&format!("tcp {app} > {gateway}"), &back)
        );
        assert_eq!(
            (&reply.to, &reply.pair),
            (&format!("tcp {server} > {app}"), &there)
        );
        assert_eq!(
            (forward.nf, reply.nf),
            (nf::ALLOW | nf::XNAT, nf::ALLOW | nf::XNAT | nf::REPLY)
        );
        assert_eq!((forward.ifindex, reply.ifindex), (LO, LO));
    });
}

#[test]
fn a_datagram_goes_to_the_listener_and_back() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let query = udp(app, server);
        let out = node
            .run(Hook::TcIn, LO, &query.bytes())
            .translated(&format!("udp {app} > {server}"), NEW);
        assert_eq!(out, query.with_tuple(app, gateway).bytes());
        let answer = udp(gateway, app);
        let out = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .translated(&format!("udp {gateway} > {app}"), &[]);
        assert_eq!(out, answer.with_tuple(server, app).bytes());
    });
}

#[test]
fn dns_goes_to_the_listener_for_dns() {
    alone(|node| {
        node.nat(dir::EGRESS, UDP, "0.0.0.0:53", &["10.0.0.1:15053"]);
        let query = udp("10.1.0.2:40000", "10.96.0.10:53");
        let out = node
            .run(Hook::TcIn, LO, &query.bytes())
            .translated("udp 10.1.0.2:40000 > 10.96.0.10:53", NEW);
        assert_eq!(
            out,
            query.with_tuple("10.1.0.2:40000", "10.0.0.1:15053").bytes()
        );
    });
}

#[test]
fn the_origin_map_tells_what_the_gateway_will_be_asked_for() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        for (proto, frame) in [(TCP, tcp(app, server, SYN)), (UDP, udp(app, server))] {
            let _ = node.run(Hook::TcIn, LO, &frame.bytes());
            if proto == TCP {
                let answer = tcp(gateway, app, SYN | ACK).bytes();
                let _ = node.run(Hook::TcOut, LO, &answer);
                let of_family =
                    |key: &fsm_common::maps::OriginKey| (key.v6 == 1) == frame.src.is_ipv6();
                let early = node.maps.xopt.keys().map(Result::unwrap).filter(of_family);
                assert_eq!(early.count(), 0, "before it is settled");
                let _ = node.run(Hook::TcIn, LO, &tcp(app, server, ACK).bytes());
            }
            let origins = if proto == TCP {
                &node.maps.xopt
            } else {
                &node.maps.xopt_half
            };
            let seen = |key: &fsm_common::maps::OriginKey| {
                key.proto == proto && (key.v6 == 1) == frame.src.is_ipv6()
            };
            let entries: Vec<_> = origins
                .iter()
                .map(Result::unwrap)
                .filter(|(key, _)| seen(key))
                .collect();
            let [(key, origin)] = entries.as_slice() else {
                panic!("{entries:?}")
            };
            let listener: std::net::SocketAddr = gateway.parse().unwrap();
            assert_eq!(
                (key.laddr, key.lport),
                (wide(listener.ip()), listener.port().to_be_bytes())
            );
            assert_eq!(
                (key.raddr, key.rport),
                (wide(frame.src.ip()), frame.src.port().to_be_bytes())
            );
            assert_eq!((key.sys, key.pad), (sys::MESH, 0));
            assert_eq!(
                (origin.daddr, origin.dport),
                (wide(frame.dst.ip()), frame.dst.port().to_be_bytes())
            );
            assert_eq!(
                (origin.saddr, origin.sport),
                (wide(frame.src.ip()), frame.src.port().to_be_bytes())
            );
            assert_eq!(
                (origin.proto, origin.v6, origin.pad),
                (proto, key.v6, [0; 2])
            );
        }
    });
}

#[test]
fn a_second_connection_from_the_same_port_gets_a_port_of_its_own() {
    taken(|node, case| {
        let Case {
            app,
            server,
            other_server,
            gateway,
        } = case;
        let _ = node
            .run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes())
            .translated(&format!("tcp {app} > {server}"), NEW);
        let second = tcp(app, other_server, SYN);
        let there = format!("tcp {app} > {other_server}");
        let out = node
            .run(Hook::TcIn, LO, &second.bytes())
            .translated(&there, &[Reason::NatPortMoved, Reason::FlowNew]);
        let mut moved = second.src;
        let port_at = if moved.is_ipv4() { 34 } else { 54 };
        moved.set_port(u16::from_be_bytes([out[port_at], out[port_at + 1]]));
        assert!(moved != second.src && moved.port() >= 1024, "{moved}");
        assert_eq!(out, second.with_tuple(&moved.to_string(), gateway).bytes());

        // The same again: the flow keeps its port.
        let again = tcp(app, other_server, ACK);
        let out = node
            .run(Hook::TcIn, LO, &again.bytes())
            .translated(&there, &[]);
        assert_eq!(out, again.with_tuple(&moved.to_string(), gateway).bytes());

        // Answers do not cross.
        let moved = moved.to_string();
        let first = tcp(gateway, app, SYN | ACK);
        let out = node
            .run(Hook::TcOut, LO, &first.bytes())
            .translated(&format!("tcp {gateway} > {app}"), &[]);
        assert_eq!(out, first.with_tuple(server, app).bytes());
        let second = tcp(gateway, &moved, SYN | ACK);
        let out = node
            .run(Hook::TcOut, LO, &second.bytes())
            .translated(&format!("tcp {gateway} > {moved}"), &[]);
        assert_eq!(out, second.with_tuple(other_server, app).bytes());
    });
}

#[test]
fn a_repeated_syn_keeps_its_flow() {
    taken(|node, case| {
        let there = format!("tcp {} > {}", case.app, case.server);
        let syn = tcp(case.app, case.server, SYN).bytes();
        let _ = node.run(Hook::TcIn, LO, &syn).translated(&there, NEW);
        let _ = node.run(Hook::TcIn, LO, &syn).translated(&there, &[]);
    });
}
