//! Fragments follow their flow; they are never matched by ports that they do not carry, and dodge no rule.

use fsm_common::{maps::role, nat::dir, policy::acl, reason::Reason};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{Frame, L4, TCP, UDP, check_sums, tcp, udp},
};

const NEW: &[Reason] = &[Reason::FlowNew];
/// App, server, listener, and where the IP payload of a fragment begins.
const CASES: [(&str, &str, &str, usize); 2] = [
    ("10.1.0.2:40000", "20.0.0.2:53", "10.0.0.1:15053", 34),
    ("[fd10:1::2]:40000", "[fd20::2]:53", "[fd10::1]:15053", 62),
];

fn taken(node: &mut Node) {
    node.nat(dir::EGRESS, UDP, "0.0.0.0:0", &["10.0.0.1:15053"]);
    node.nat(dir::EGRESS, UDP, "[::]:0", &["[fd10::1]:15053"]);
}

#[test]
fn a_fragmented_datagram_is_translated_whole() {
    alone(|node| {
        taken(node);
        for (app, server, gateway, data) in CASES {
            let flow = format!("udp {app} > {server}");
            let query = udp(app, server).payload(&[0xab; 100]);
            let [first, later] = query.fragments(48);
            let a = node.run(Hook::TcIn, LO, &first).translated(&flow, NEW);
            let b = node.run(Hook::TcIn, LO, &later).translated(&flow, &[]);
            let expected = query.with_tuple(app, gateway);
            assert_eq!([a.clone(), b.clone()], expected.fragments(48), "{app}");
            assert_eq!(
                b[data..],
                later[data..],
                "a later fragment's data is no header"
            );
            // Put together, the checksum is that of the translated datagram.
            let whole = Frame {
                l4: L4::Raw(17),
                ..expected
            };
            let whole = whole.around(0, &[&a[data..], &b[data..]].concat());
            assert_eq!(check_sums(&whole), Ok(()));
        }
    });
}

#[test]
fn a_reply_in_fragments_is_translated_back() {
    alone(|node| {
        taken(node);
        for (app, server, gateway, _) in CASES {
            let _ = node.run(Hook::TcIn, LO, &udp(app, server).bytes());
            let answer = udp(gateway, app).payload(&[0xcd; 100]);
            let flow = format!("udp {gateway} > {app}");
            let [first, later] = answer.fragments(48);
            let a = node.run(Hook::TcOut, LO, &first).translated(&flow, &[]);
            let b = node.run(Hook::TcOut, LO, &later).translated(&flow, &[]);
            assert_eq!([a, b], answer.with_tuple(server, app).fragments(48));
        }
    });
}

#[test]
fn an_orphan_is_dropped_and_counted() {
    alone(|node| {
        taken(node);
        for (app, server, _, _) in CASES {
            let query = udp(app, server).payload(&[0xab; 100]);
            let [first, later] = query.fragments(48);
            node.run(Hook::TcIn, LO, &later)
                .dropped(Reason::FragmentOrphan);
            let _ = node.run(Hook::TcIn, LO, &first);
            // Another datagram's, another protocol's.
            let other = Frame {
                id: 0x4321,
                ..query.clone()
            };
            node.run(Hook::TcIn, LO, &other.fragments(48)[1])
                .dropped(Reason::FragmentOrphan);
            let other = tcp(app, server, 0).payload(&[0; 100]);
            node.run(Hook::TcIn, LO, &other.fragments(48)[1])
                .dropped(Reason::FragmentOrphan);
        }
    });
}

#[test]
fn a_denied_port_is_denied_in_every_fragment() {
    alone(|node| {
        node.acl("20.0.0.2", 53, UDP, acl::DENY);
        node.acl("fd20::2", 53, UDP, acl::DENY);
        for (app, server, _, _) in CASES {
            for part in udp(app, server).payload(&[0; 100]).fragments(48) {
                node.run(Hook::TcIn, LO, &part).dropped(Reason::AclDeny);
            }
        }
    });
}

#[test]
fn data_that_looks_like_a_denied_port_is_no_port() {
    alone(|node| {
        node.acl("20.0.0.2", 666, UDP, acl::DENY);
        let mut payload = [0; 100];
        for at in (0..payload.len()).step_by(2) {
            payload[at..at + 2].copy_from_slice(&666u16.to_be_bytes());
        }
        let flow = "udp 10.1.0.2:40000 > 20.0.0.2:53";
        let [first, later] = udp("10.1.0.2:40000", "20.0.0.2:53")
            .payload(&payload)
            .fragments(48);
        node.run(Hook::TcIn, LO, &first).follows(flow, NEW);
        node.run(Hook::TcIn, LO, &later).follows(flow, &[]);
    });
}

#[test]
fn a_denied_address_is_denied_to_fragments_in_xdp_too() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        node.acl("20.0.0.2", 0, UDP, acl::DENY);
        node.acl("20.0.0.3", 80, TCP, acl::DENY);
        for part in udp("20.0.0.2:53", "10.1.0.2:40000")
            .payload(&[0; 100])
            .fragments(48)
        {
            node.run(Hook::Xdp, LO, &part).dropped(Reason::AclDeny);
        }
        let [first, later] = tcp("20.0.0.3:80", "10.1.0.2:40000", 0x10)
            .payload(&[0; 100])
            .fragments(48);
        node.run(Hook::Xdp, LO, &first).dropped(Reason::AclDeny);
        // Has no port: TC, which sees no first fragment then, drops it.
        node.run(Hook::Xdp, LO, &later).untouched(&[]);
        node.run(Hook::TcIn, LO, &later)
            .dropped(Reason::FragmentOrphan);
    });
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    alone(|node| {
        taken(node);
        let (app, server, gateway, _) = CASES[1];
        let query = udp(app, server).ext(crate::support::frame::fragment_header(5, 0, false));
        let out = node
            .run(Hook::TcIn, LO, &query.bytes())
            .translated(&format!("udp {app} > {server}"), NEW);
        assert_eq!(out, query.with_tuple(app, gateway).bytes());
    });
}
