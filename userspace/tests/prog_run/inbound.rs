//! What the network sends to an app is taken to the gateway's inbound listener, wherever it comes by.

use fsm_common::{
    flow::nf,
    maps::{MARK_REINJECTED, skip},
    nat::dir,
    policy::acl,
    reason::Reason,
};

use crate::support::{
    Hook, Node, alone,
    frame::{ACK, SYN, TCP, tcp},
    node::mac,
    wiring::Wires,
};

const NEW: &[Reason] = &[Reason::FlowNew];
/// Client, app, listener.
const CASES: [[&str; 3]; 2] = [
    ["20.0.0.2:40000", "10.1.0.2:80", "10.0.0.1:15003"],
    ["[fd20::2]:40000", "[fd10:1::2]:80", "[fd10::1]:15003"],
];

fn taken(node: &mut Node) -> Wires {
    node.nat(dir::INGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15003"]);
    node.nat(dir::INGRESS, TCP, "[::]:0", &["[fd10::1]:15003"]);
    node.wires()
}

#[test]
fn a_clients_connection_goes_to_the_listener_and_its_answers_come_from_the_app() {
    alone(|node| {
        let wires = taken(node);
        for [client, app, gateway] in CASES {
            let (there, back) = (
                format!("tcp {client} > {app}"),
                format!("tcp {gateway} > {client}"),
            );
            let syn = tcp(client, app, SYN);
            let out = node
                .run(Hook::TcIn, wires.uplink, &syn.bytes())
                .translated(&there, NEW);
            assert_eq!(out, syn.with_tuple(client, gateway).bytes());
            let answer = tcp(gateway, client, SYN | ACK);
            let out = node
                .run(Hook::TcOut, wires.uplink, &answer.bytes())
                .translated(&back, &[]);
            assert_eq!(out, answer.with_tuple(app, client).bytes());
            let flows = node.flows();
            assert_eq!(flows[&there].nf, nf::ALLOW | nf::XNAT | nf::INBOUND);
            assert_eq!(
                flows[&back].nf,
                nf::ALLOW | nf::XNAT | nf::INBOUND | nf::REPLY
            );
        }
    });
}

#[test]
fn only_what_leads_to_an_app_of_this_node_is_taken() {
    alone(|node| {
        let wires = taken(node);
        for dst in ["20.0.0.1:80", "99.0.0.1:80", "20.0.0.7:80"] {
            let syn = tcp("20.0.0.2:40000", dst, SYN).bytes();
            node.run(Hook::TcIn, wires.uplink, &syn)
                .follows(&format!("tcp 20.0.0.2:40000 > {dst}"), NEW);
        }
    });
}

#[test]
fn an_excluded_inbound_port_is_not_taken() {
    alone(|node| {
        let wires = taken(node);
        node.skip_port(15021, skip::INBOUND);
        node.skip_port(80, skip::OUTBOUND);
        let probe = tcp("20.0.0.2:40000", "10.1.0.2:15021", SYN).bytes();
        node.run(Hook::TcIn, wires.uplink, &probe)
            .follows("tcp 20.0.0.2:40000 > 10.1.0.2:15021", NEW);
        let syn = tcp("20.0.0.2:40000", "10.1.0.2:80", SYN).bytes();
        let _ = node
            .run(Hook::TcIn, wires.uplink, &syn)
            .translated("tcp 20.0.0.2:40000 > 10.1.0.2:80", NEW);
    });
}

#[test]
fn the_gateways_own_connection_to_the_app_is_not_taken_again() {
    alone(|node| {
        let wires = taken(node);
        let syn = tcp("10.0.0.1:50000", "10.1.0.2:80", SYN).bytes();
        node.run(Hook::TcOut, wires.app1, &syn)
            .follows("tcp 10.0.0.1:50000 > 10.1.0.2:80", NEW);
        node.acl("10.0.0.1", 0, TCP, acl::TRUSTED);
        let syn = tcp("10.0.0.1:50001", "10.1.0.2:80", SYN).bytes();
        node.run(Hook::TcOut, wires.app1, &syn)
            .follows("tcp 10.0.0.1:50001 > 10.1.0.2:80", NEW);
        let answer = tcp("10.1.0.2:80", "10.0.0.1:50001", SYN | ACK).bytes();
        let back = "tcp 10.1.0.2:80 > 10.0.0.1:50001";
        node.run(Hook::TcIn, wires.app1, &answer)
            .follows(back, &[Reason::FlowRejudged]);
    });
}

#[test]
fn what_a_bridge_brings_is_judged_again_at_the_apps_device_and_sent_back() {
    alone(|node| {
        let wires = taken(node);
        // Routing knows no app's device for it: a bridge does.
        let (client, app) = ("20.0.0.2:40000", "20.0.0.9:80");
        let (there, back) = (
            format!("tcp {client} > {app}"),
            format!("tcp 10.0.0.1:15003 > {client}"),
        );
        let syn = tcp(client, app, SYN);
        node.run(Hook::TcIn, wires.uplink, &syn.bytes())
            .follows(&there, NEW);
        assert_eq!(node.flows()[&there].nf, nf::ALLOW | nf::PROVISIONAL);

        node.arrived_on = wires.uplink;
        let seen = node.run(Hook::TcOut, wires.app1, &syn.bytes());
        // The first entry is replaced in place, the answer's is new.
        assert_eq!((seen.action, seen.made, seen.gone), (7, 1, 0));
        assert_eq!(seen.reasons, [Reason::FlowNew, Reason::Reinjected]);
        assert_eq!(seen.verdict, Some(fsm_common::stats::Verdict::Nat));
        assert_eq!(
            seen.mark & MARK_REINJECTED,
            MARK_REINJECTED,
            "the mark that stops the loop"
        );
        let mut expected = syn.clone().with_tuple(client, "10.0.0.1:15003");
        expected.dmac = mac(wires.uplink);
        assert_eq!(seen.frame, expected.bytes());
        assert_eq!(node.flows()[&there].nf, nf::ALLOW | nf::XNAT | nf::INBOUND);

        // It comes back in at the uplink, once, and the mark is gone then.
        node.mark = MARK_REINJECTED | 5;
        let seen = node.run(Hook::TcIn, wires.uplink, &seen.frame);
        seen.untouched(&[]);
        assert_eq!(seen.mark, 5, "others' bits stay");
        node.mark = 0;

        let data = tcp(client, app, ACK);
        let out = node.run(Hook::TcIn, wires.uplink, &data.bytes());
        assert_eq!(
            out.frame,
            data.with_tuple(client, "10.0.0.1:15003").bytes(),
            "directly from now on"
        );
        let answer = tcp("10.0.0.1:15003", client, SYN | ACK);
        let out = node
            .run(Hook::TcOut, wires.uplink, &answer.bytes())
            .translated(&back, &[]);
        assert_eq!(out, answer.with_tuple(app, client).bytes());
    });
}

#[test]
fn a_deny_at_the_apps_device_holds_for_what_a_bridge_brings() {
    alone(|node| {
        let wires = taken(node);
        let syn = tcp("20.0.0.2:40000", "20.0.0.9:80", SYN).bytes();
        node.run(Hook::TcIn, wires.uplink, &syn)
            .follows("tcp 20.0.0.2:40000 > 20.0.0.9:80", NEW);
        node.acl("20.0.0.2", 40000, TCP, acl::DENY);
        node.arrived_on = wires.uplink;
        node.run(Hook::TcOut, wires.app1, &syn)
            .dropped(Reason::AclDeny);
    });
}

#[test]
fn what_a_bridge_brings_is_judged_again_also_where_no_route_leads_to_it() {
    alone(|node| {
        let wires = taken(node);
        let syn = tcp("20.0.0.2:40000", "10.9.0.2:80", SYN).bytes();
        node.run(Hook::TcIn, wires.uplink, &syn)
            .follows("tcp 20.0.0.2:40000 > 10.9.0.2:80", NEW);
        node.arrived_on = wires.uplink;
        let seen = node.run(Hook::TcOut, wires.app1, &syn);
        assert_eq!(seen.reasons, [Reason::FlowNew, Reason::Reinjected]);
    });
}
