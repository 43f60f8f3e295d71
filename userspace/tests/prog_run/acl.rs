//! The ACL in both hooks: what it denies is dropped and counted, what it trusts is not taken.

use fsm_common::{flags, flow::nf, maps::role, nat::dir, policy::acl, reason::Reason};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{ACK, Frame, SYN, TCP, UDP, ext, fragment_header, icmp, raw, tcp, udp},
    rules::rule,
};

const NEW: &[Reason] = &[Reason::FlowNew];
const APP: [&str; 2] = ["10.1.0.2:80", "[fd10:1::2]:80"];

/// Dropped where it comes from the network, in XDP and in TC, and where an app sends to that peer.
#[track_caller]
fn denied(node: &mut Node, from_peer: &Frame) {
    for frame in [
        from_peer.clone(),
        from_peer.clone().tag(0x8100, 5),
        from_peer.clone().tag(0x88a8, 7).tag(0x8100, 5),
    ] {
        node.device(LO, role::UPLINK, 0);
        node.run(Hook::Xdp, LO, &frame.bytes())
            .dropped(Reason::AclDeny);
        node.run(Hook::TcIn, LO, &frame.bytes())
            .dropped(Reason::AclDeny);
        let to_peer = Frame {
            src: frame.dst,
            dst: frame.src,
            ..frame
        };
        node.run(Hook::TcOut, LO, &to_peer.bytes())
            .dropped(Reason::AclDeny);
        node.device(LO, role::ENDPOINT, 0);
        node.run(Hook::TcIn, LO, &to_peer.bytes())
            .dropped(Reason::AclDeny);
        node.run(Hook::TcOut, LO, &from_peer.bytes())
            .dropped(Reason::AclDeny);
    }
}

/// Passes at the network's side; a new flow.
#[track_caller]
fn passes(node: &mut Node, flow: &str, frame: &Frame) {
    node.device(LO, role::UPLINK, 0);
    node.run(Hook::Xdp, LO, &frame.bytes()).untouched(&[]);
    node.run(Hook::TcIn, LO, &frame.bytes()).follows(flow, NEW);
}

#[test]
fn a_denied_port_of_a_peer() {
    alone(|node| {
        node.acl("20.0.0.2", 4444, TCP, acl::DENY);
        node.acl("fd20::2", 4444, TCP, acl::DENY);
        for (peer, app) in ["20.0.0.2", "[fd20::2]"].into_iter().zip(APP) {
            denied(node, &tcp(&format!("{peer}:4444"), app, ACK));
            passes(
                node,
                &format!("tcp {peer}:4445 > {app}"),
                &tcp(&format!("{peer}:4445"), app, ACK),
            );
            passes(
                node,
                &format!("udp {peer}:4444 > {app}"),
                &udp(&format!("{peer}:4444"), app),
            );
        }
    });
}

#[test]
fn a_denied_address() {
    alone(|node| {
        node.acl("20.0.0.2", 0, TCP, acl::DENY);
        node.acl("fd20::2", 0, UDP, acl::DENY);
        denied(node, &tcp("20.0.0.2:4444", APP[0], SYN));
        denied(node, &tcp("20.0.0.2:1", APP[0], ACK));
        denied(node, &udp("[fd20::2]:1", APP[1]));
        passes(
            node,
            "tcp 20.0.0.3:4444 > 10.1.0.2:80",
            &tcp("20.0.0.3:4444", APP[0], SYN),
        );
        passes(
            node,
            "tcp [fd20::2]:1 > [fd10:1::2]:80",
            &tcp("[fd20::2]:1", APP[1], SYN),
        );
    });
}

#[test]
fn a_denied_network_and_range_the_longest_prefix_decides() {
    alone(|node| {
        node.cidr(
            "20.0.0.0/8",
            &[
                rule(8000..=8999, TCP, acl::DENY),
                rule(0..=65535, 0, acl::AUDIT),
            ],
        );
        node.cidr("20.9.0.0/16", &[rule(0..=65535, 0, acl::DENY)]);
        node.cidr("fd20::/16", &[rule(0..=65535, 0, acl::DENY)]);
        for port in [8000, 8080, 8999] {
            denied(node, &tcp(&format!("20.0.0.2:{port}"), APP[0], ACK));
        }
        for port in [7999, 9000] {
            let peer = format!("20.0.0.2:{port}");
            passes(
                node,
                &format!("tcp {peer} > {}", APP[0]),
                &tcp(&peer, APP[0], ACK),
            );
        }
        denied(node, &udp("20.9.1.1:1", APP[0]));
        denied(node, &raw("20.9.1.1", "10.1.0.2", 47));
        denied(node, &icmp("20.9.1.1", "10.1.0.2", 8));
        denied(node, &tcp("[fd20:9::1]:1", APP[1], SYN));
        denied(node, &icmp("fd20::9", "fd10:1::2", 128));
        passes(
            node,
            "tcp 21.0.0.1:1 > 10.1.0.2:80",
            &tcp("21.0.0.1:1", APP[0], SYN),
        );
    });
}

#[test]
fn an_exact_entry_comes_before_an_address_and_that_before_a_network() {
    alone(|node| {
        node.cidr("20.0.0.0/8", &[rule(0..=65535, 0, acl::DENY)]);
        node.acl("20.0.0.2", 0, TCP, acl::AUDIT);
        node.acl("20.0.0.2", 22, TCP, acl::DENY);
        passes(
            node,
            "tcp 20.0.0.2:80 > 10.1.0.2:80",
            &tcp("20.0.0.2:80", APP[0], ACK),
        );
        denied(node, &tcp("20.0.0.2:22", APP[0], ACK));
        denied(node, &tcp("20.0.0.3:80", APP[0], ACK));
    });
}

#[test]
fn icmp_errors_are_denied_as_everything_else() {
    alone(|node| {
        node.cidr("20.0.0.0/8", &[rule(0..=65535, 0, acl::DENY)]);
        node.cidr("fd20::/16", &[rule(0..=65535, 0, acl::DENY)]);
        for kind in [3, 11] {
            denied(node, &icmp("20.0.0.2", "10.1.0.2", kind));
        }
        for kind in [1, 2] {
            denied(node, &icmp("fd20::2", "fd10:1::2", kind));
        }
    });
}

#[test]
fn extension_headers_are_no_way_around() {
    alone(|node| {
        node.acl("fd20::2", 4444, TCP, acl::DENY);
        let frame = || tcp("[fd20::2]:4444", APP[1], SYN);
        for exts in [
            vec![ext(0, 8)],
            vec![ext(60, 8)],
            vec![ext(43, 24)],
            vec![ext(51, 24)],
            vec![fragment_header(1, 0, false)],
            vec![
                ext(0, 8),
                ext(60, 16),
                ext(43, 8),
                fragment_header(1, 0, false),
                ext(51, 16),
                ext(60, 8),
            ],
        ] {
            denied(node, &Frame { exts, ..frame() });
        }
        // More than are followed: dropped for that.
        let long = (0..7).fold(frame(), |frame, _| frame.ext(ext(60, 8)));
        node.run(Hook::TcIn, LO, &long.bytes())
            .dropped(Reason::BadIpv6Ext);
        node.run(Hook::Xdp, LO, &long.bytes())
            .dropped(Reason::BadIpv6Ext);
    });
}

#[test]
fn a_third_tag_is_no_way_around() {
    alone(|node| {
        node.acl("20.0.0.2", 0, TCP, acl::DENY);
        let frame = tcp("20.0.0.2:1", APP[0], SYN)
            .tag(0x88a8, 1)
            .tag(0x8100, 2)
            .tag(0x8100, 3)
            .bytes();
        node.run(Hook::Xdp, LO, &frame).dropped(Reason::BadVlan);
        node.run(Hook::TcIn, LO, &frame).dropped(Reason::BadVlan);
    });
}

#[test]
fn a_trusted_peer_is_not_taken() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.acl("20.0.0.2", 0, TCP, acl::TRUSTED);
        let flow = "tcp 10.1.0.2:40000 > 20.0.0.2:80";
        let syn = tcp("10.1.0.2:40000", "20.0.0.2:80", SYN).bytes();
        node.run(Hook::TcIn, LO, &syn).follows(flow, NEW);
        node.run(Hook::TcIn, LO, &syn).follows(flow, &[]);
        assert_eq!(node.flows()[flow].nf, nf::ALLOW | nf::TRUST);
        let answer = tcp("20.0.0.2:80", "10.1.0.2:40000", SYN | ACK).bytes();
        let back = "tcp 20.0.0.2:80 > 10.1.0.2:40000";
        node.run(Hook::TcOut, LO, &answer)
            .follows(back, &[Reason::FlowRejudged]);
        node.run(Hook::TcOut, LO, &answer).follows(back, &[]);
    });
}

#[test]
fn an_audited_port_of_a_trusted_address_is_taken() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.acl("20.0.0.2", 0, TCP, acl::TRUSTED);
        node.acl("20.0.0.2", 80, TCP, acl::AUDIT);
        let syn = tcp("10.1.0.2:40000", "20.0.0.2:80", SYN);
        let out = node
            .run(Hook::TcIn, LO, &syn.bytes())
            .translated("tcp 10.1.0.2:40000 > 20.0.0.2:80", NEW);
        assert_eq!(
            out,
            syn.with_tuple("10.1.0.2:40000", "10.0.0.1:15001").bytes()
        );
        let other = tcp("10.1.0.2:40000", "20.0.0.2:81", SYN);
        node.run(Hook::TcIn, LO, &other.bytes())
            .follows("tcp 10.1.0.2:40000 > 20.0.0.2:81", NEW);
    });
}

#[test]
fn answers_of_a_trusted_gateway_are_translated_back_by_their_audited_port() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.acl("10.0.0.1", 0, TCP, acl::TRUSTED);
        node.acl("10.0.0.1", 15001, TCP, acl::AUDIT);
        let _ = node.run(
            Hook::TcIn,
            LO,
            &tcp("10.1.0.2:40000", "20.0.0.2:80", SYN).bytes(),
        );
        let answer = tcp("10.0.0.1:15001", "10.1.0.2:40000", SYN | ACK);
        let seen = node.run(Hook::TcOut, LO, &answer.bytes());
        let out = seen.translated("tcp 10.0.0.1:15001 > 10.1.0.2:40000", &[]);
        assert_eq!(
            out,
            answer.with_tuple("20.0.0.2:80", "10.1.0.2:40000").bytes()
        );
    });
}

#[test]
fn without_its_flag_the_acl_is_not_asked() {
    alone(|node| {
        node.acl("20.0.0.2", 0, TCP, acl::DENY);
        node.flags(flags::DEFAULT & !flags::ACL_ON);
        passes(
            node,
            "tcp 20.0.0.2:1 > 10.1.0.2:80",
            &tcp("20.0.0.2:1", APP[0], SYN),
        );
    });
}
