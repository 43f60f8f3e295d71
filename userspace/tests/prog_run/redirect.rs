//! Trusted flows to an app of this node go past the stack, as a router would forward them.

use fsm_common::{
    flow::nf,
    maps::{iface_flag, role},
    policy::acl,
    reason::Reason,
};

use crate::support::{
    Hook, Node, alone,
    frame::{ACK, Frame, SYN, TCP, tcp, udp},
    node::mac,
    wiring::{APP1_MAC, Wires},
};

const NEW: &[Reason] = &[Reason::FlowNew];
/// A peer on the wire, an app.
const CASES: [[&str; 2]; 2] = [
    ["20.0.0.2:40000", "10.1.0.2:80"],
    ["[fd20::2]:40000", "[fd10:1::2]:80"],
];

fn trusting(node: &mut Node) -> Wires {
    for peer in ["20.0.0.2", "fd20::2"] {
        node.acl(peer, 0, TCP, acl::TRUSTED);
    }
    node.wires()
}

/// The frame as it reaches the first app.
fn forwarded(frame: &Frame, wires: Wires) -> Vec<u8> {
    let ttl = frame.ttl - 1;
    Frame {
        dmac: APP1_MAC,
        smac: mac(wires.app1),
        ttl,
        ..frame.clone()
    }
    .bytes()
}

#[test]
fn from_the_wire_to_an_app_in_xdp_and_in_tc() {
    alone(|node| {
        let wires = trusting(node);
        for [peer, app] in CASES {
            let flow = format!("tcp {peer} > {app}");
            let (syn, data) = (tcp(peer, app, SYN), tcp(peer, app, ACK).payload(b"data"));
            let out = node
                .run(Hook::Xdp, wires.uplink, &syn.bytes())
                .redirected(&flow, NEW);
            assert_eq!(out, forwarded(&syn, wires));
            for hook in [Hook::Xdp, Hook::TcIn] {
                let out = node
                    .run(hook, wires.uplink, &data.bytes())
                    .redirected(&flow, &[]);
                assert_eq!(out, forwarded(&data, wires));
            }
            let entry = &node.flows()[&flow];
            assert_eq!((entry.packets, entry.redirect), (3, (wires.app1, APP1_MAC)));
            assert_eq!(entry.nf, nf::ALLOW | nf::RDIR | nf::TRUST);
        }
    });
}

#[test]
fn a_flow_made_in_tc_is_redirected_there() {
    alone(|node| {
        let wires = trusting(node);
        for [peer, app] in CASES {
            let syn = tcp(peer, app, SYN);
            let seen = node.run(Hook::TcIn, wires.uplink, &syn.bytes());
            assert_eq!(
                seen.redirected(&format!("tcp {peer} > {app}"), NEW),
                forwarded(&syn, wires)
            );
        }
        node.device(
            wires.app1,
            role::ENDPOINT,
            iface_flag::REDIRECT | iface_flag::PEER,
        );
        let data = tcp(CASES[0][0], CASES[0][1], ACK);
        let seen = node.run(Hook::TcIn, wires.uplink, &data.bytes());
        assert_eq!(
            seen.redirected("tcp 20.0.0.2:40000 > 10.1.0.2:80", &[]),
            forwarded(&data, wires)
        );
    });
}

#[test]
fn from_app_to_app() {
    alone(|node| {
        let wires = node.wires();
        node.acl("10.1.0.2", 0, TCP, acl::TRUSTED);
        node.acl("10.2.0.2", 0, TCP, acl::TRUSTED);
        let syn = tcp("10.2.0.2:40000", "10.1.0.2:80", SYN);
        let seen = node.run(Hook::TcIn, wires.app2, &syn.bytes());
        assert_eq!(
            seen.redirected("tcp 10.2.0.2:40000 > 10.1.0.2:80", NEW),
            forwarded(&syn, wires)
        );
        // The answer gets a redirect of its own, by its first packet.
        let answer = tcp("10.1.0.2:80", "10.2.0.2:40000", SYN | ACK);
        let back = "tcp 10.1.0.2:80 > 10.2.0.2:40000";
        let out = node
            .run(Hook::TcIn, wires.app1, &answer.bytes())
            .redirected(back, &[Reason::FlowRejudged]);
        let expected = Frame {
            dmac: [2, 0xaa, 0, 0, 0, 2],
            smac: mac(wires.app2),
            ttl: 63,
            ..answer
        };
        assert_eq!(out, expected.bytes());
    });
}

#[test]
fn a_hop_limit_that_ends_here_is_left_to_the_stack() {
    alone(|node| {
        let wires = trusting(node);
        for [peer, app] in CASES {
            let flow = format!("tcp {peer} > {app}");
            let _ = node
                .run(Hook::TcIn, wires.uplink, &tcp(peer, app, SYN).bytes())
                .redirected(&flow, NEW);
            for ttl in [0, 1] {
                let frame = tcp(peer, app, ACK).ttl(ttl).bytes();
                node.run(Hook::TcIn, wires.uplink, &frame)
                    .follows(&flow, &[Reason::RedirectTtl]);
                node.run(Hook::Xdp, wires.uplink, &frame)
                    .untouched(&[Reason::RedirectTtl]);
            }
            let frame = tcp(peer, app, ACK).ttl(2);
            let out = node
                .run(Hook::Xdp, wires.uplink, &frame.bytes())
                .redirected(&flow, &[]);
            assert_eq!(out, forwarded(&frame, wires));
        }
    });
}

#[test]
fn what_is_larger_than_the_apps_mtu_is_left_to_the_stack() {
    alone(|node| {
        let wires = trusting(node);
        let [peer, app] = CASES[0];
        let flow = format!("tcp {peer} > {app}");
        let _ = node
            .run(Hook::TcIn, wires.uplink, &tcp(peer, app, SYN).bytes())
            .redirected(&flow, NEW);
        let large = tcp(peer, app, ACK).payload(&[0; 1461]).bytes();
        node.run(Hook::TcIn, wires.uplink, &large)
            .follows(&flow, &[Reason::RedirectMtu]);
        node.run(Hook::Xdp, wires.uplink, &large)
            .untouched(&[Reason::RedirectMtu]);
        let fits = tcp(peer, app, ACK).payload(&[0; 1460]);
        let out = node
            .run(Hook::Xdp, wires.uplink, &fits.bytes())
            .redirected(&flow, &[]);
        assert_eq!(out, forwarded(&fits, wires));
    });
}

#[test]
fn without_napi_at_the_far_end_xdp_leaves_it_to_tc() {
    alone(|node| {
        let wires = trusting(node);
        node.device(wires.app1, role::ENDPOINT, iface_flag::REDIRECT);
        let [peer, app] = CASES[0];
        let syn = tcp(peer, app, SYN);
        let seen = node.run(Hook::Xdp, wires.uplink, &syn.bytes());
        seen.untouched(&[Reason::RedirectNoNapi, Reason::FlowNew]);
        let out = node
            .run(Hook::TcIn, wires.uplink, &syn.bytes())
            .redirected(&format!("tcp {peer} > {app}"), &[]);
        assert_eq!(out, forwarded(&syn, wires));
    });
}

#[test]
fn where_redirects_are_off_a_trusted_flow_takes_the_stack() {
    alone(|node| {
        let wires = trusting(node);
        node.device(wires.app1, role::ENDPOINT, iface_flag::XDP_TX);
        let [peer, app] = CASES[0];
        let syn = tcp(peer, app, SYN).bytes();
        node.run(Hook::Xdp, wires.uplink, &syn).untouched(NEW);
        node.run(Hook::TcIn, wires.uplink, &syn)
            .follows(&format!("tcp {peer} > {app}"), &[]);
    });
}

#[test]
fn an_unresolved_neighbour_is_left_to_the_stack_and_tried_again() {
    alone(|node| {
        let wires = trusting(node);
        node.forget_app1();
        let [peer, app] = CASES[0];
        let (flow, syn) = (format!("tcp {peer} > {app}"), tcp(peer, app, SYN));
        let seen = node.run(Hook::TcIn, wires.uplink, &syn.bytes());
        seen.follows(&flow, &[Reason::RedirectNoNeigh, Reason::FlowNew]);
        let seen = node.run(Hook::TcIn, wires.uplink, &syn.bytes());
        seen.follows(&flow, &[Reason::RedirectNoNeigh, Reason::FlowRejudged]);
        node.learn_app1();
        let out = node
            .run(Hook::TcIn, wires.uplink, &syn.bytes())
            .redirected(&flow, &[Reason::FlowRejudged]);
        assert_eq!(out, forwarded(&syn, wires));
    });
}

#[test]
fn a_deny_ends_a_redirect_and_a_device_that_is_gone_too() {
    alone(|node| {
        let wires = trusting(node);
        let [peer, app] = CASES[0];
        let (flow, data) = (format!("tcp {peer} > {app}"), tcp(peer, app, ACK).bytes());
        let _ = node
            .run(Hook::Xdp, wires.uplink, &data)
            .redirected(&flow, NEW);
        node.acl("20.0.0.2", 40000, TCP, acl::DENY);
        node.run(Hook::Xdp, wires.uplink, &data)
            .dropped(Reason::AclDeny);
        node.run(Hook::TcIn, wires.uplink, &data)
            .dropped(Reason::AclDeny);
        node.no_acl("20.0.0.2", 40000, TCP);
        let _ = node
            .run(Hook::Xdp, wires.uplink, &data)
            .redirected(&flow, &[Reason::FlowRejudged]);
        node.maps
            .iface
            .set(wires.app1, fsm_common::maps::IfaceEntry::ZERO, 0)
            .unwrap();
        node.run(Hook::Xdp, wires.uplink, &data).untouched(&[]);
        node.run(Hook::TcIn, wires.uplink, &data)
            .follows(&flow, &[]);
    });
}

#[test]
fn tagged_frames_and_fragments_take_the_stack_in_xdp() {
    alone(|node| {
        let wires = trusting(node);
        let [peer, app] = CASES[0];
        let flow = format!("tcp {peer} > {app}");
        let _ = node
            .run(Hook::Xdp, wires.uplink, &tcp(peer, app, SYN).bytes())
            .redirected(&flow, NEW);
        let tagged = tcp(peer, app, ACK).tag(0x8100, 5).bytes();
        node.run(Hook::Xdp, wires.uplink, &tagged).untouched(&[]);
        for part in tcp(peer, app, ACK).payload(&[0; 100]).fragments(48) {
            node.run(Hook::Xdp, wires.uplink, &part).untouched(&[]);
        }
    });
}

#[test]
fn tagged_frames_take_the_stack_in_tc_too() {
    alone(|node| {
        let wires = trusting(node);
        let [peer, app] = CASES[0];
        let flow = format!("tcp {peer} > {app}");
        let _ = node
            .run(Hook::TcIn, wires.uplink, &tcp(peer, app, SYN).bytes())
            .redirected(&flow, NEW);
        let tagged = tcp(peer, app, ACK).tag(0x8100, 5).bytes();
        node.run(Hook::TcIn, wires.uplink, &tagged)
            .follows(&flow, &[]);
    });
}

#[test]
fn other_protocols_and_untrusted_peers_are_not_redirected() {
    alone(|node| {
        let wires = trusting(node);
        let frame = udp("20.0.0.2:40000", "10.1.0.2:53").bytes();
        node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
        node.run(Hook::TcIn, wires.uplink, &frame)
            .follows("udp 20.0.0.2:40000 > 10.1.0.2:53", NEW);
        let frame = tcp("20.0.0.3:40000", "10.1.0.2:80", SYN).bytes();
        node.run(Hook::Xdp, wires.uplink, &frame).untouched(&[]);
        node.run(Hook::TcIn, wires.uplink, &frame)
            .follows("tcp 20.0.0.3:40000 > 10.1.0.2:80", NEW);
    });
}
