//! Live flows follow changes of policy at their next packet; a full table fails as configured.

use fsm_common::{flow::nf, maps::role, nat::dir, policy::acl, reason::Reason, stats::Verdict};

use crate::support::{
    Hook, LO, Node, alone, alone_with,
    frame::{ACK, SYN, TCP, tcp, udp},
};

const NEW: &[Reason] = &[Reason::FlowNew];
const THERE: &str = "tcp 10.1.0.2:40000 > 20.0.0.2:80";
const BACK: &str = "tcp 10.0.0.1:15001 > 10.1.0.2:40000";

fn data() -> Vec<u8> {
    tcp("10.1.0.2:40000", "20.0.0.2:80", ACK).bytes()
}

fn answer() -> Vec<u8> {
    tcp("10.0.0.1:15001", "10.1.0.2:40000", ACK).bytes()
}

/// A translated flow that both directions have used.
fn live(node: &mut Node) {
    node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
    let _ = node.run(Hook::TcIn, LO, &data()).translated(THERE, NEW);
    let _ = node.run(Hook::TcOut, LO, &answer()).translated(BACK, &[]);
}

#[test]
fn a_live_flow_is_dropped_from_a_deny_on_and_goes_on_after_it() {
    alone(|node| {
        live(node);
        node.acl("20.0.0.2", 80, TCP, acl::DENY);
        for _ in 0..2 {
            node.run(Hook::TcIn, LO, &data()).dropped(Reason::AclDeny);
            node.run(Hook::TcOut, LO, &answer())
                .dropped(Reason::AclDeny);
        }
        node.no_acl("20.0.0.2", 80, TCP);
        for reasons in [&[Reason::FlowRejudged][..], &[]] {
            let out = node.run(Hook::TcIn, LO, &data()).translated(THERE, reasons);
            assert_eq!(out, tcp("10.1.0.2:40000", "10.0.0.1:15001", ACK).bytes());
            let out = node
                .run(Hook::TcOut, LO, &answer())
                .translated(BACK, reasons);
            assert_eq!(out, tcp("20.0.0.2:80", "10.1.0.2:40000", ACK).bytes());
        }
    });
}

#[test]
fn a_change_that_does_not_touch_a_flow_costs_one_judgement() {
    alone(|node| {
        live(node);
        node.acl("99.0.0.1", 0, TCP, acl::DENY);
        let generation = node.maps.settings().unwrap().generation;
        let _ = node
            .run(Hook::TcIn, LO, &data())
            .translated(THERE, &[Reason::FlowRejudged]);
        let _ = node.run(Hook::TcIn, LO, &data()).translated(THERE, &[]);
        assert_eq!(node.flows()[THERE].generation, generation);
        assert_ne!(
            node.flows()[BACK].generation,
            generation,
            "its own packets judge it"
        );
        // Every settings change counts, also one that leaves them as they are.
        node.set(|_| ());
        let _ = node
            .run(Hook::TcIn, LO, &data())
            .translated(THERE, &[Reason::FlowRejudged]);
    });
}

#[test]
fn a_translated_flow_stays_when_its_nat_entry_goes_or_changes() {
    alone(|node| {
        live(node);
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:16001"]);
        let out = node
            .run(Hook::TcIn, LO, &data())
            .translated(THERE, &[Reason::FlowRejudged]);
        assert_eq!(out, tcp("10.1.0.2:40000", "10.0.0.1:15001", ACK).bytes());
        node.set(|settings| settings.nat_kinds = 0);
        let _ = node
            .run(Hook::TcIn, LO, &data())
            .translated(THERE, &[Reason::FlowRejudged]);
        // New ones go elsewhere.
        let other = tcp("10.1.0.2:40001", "20.0.0.2:80", SYN).bytes();
        node.run(Hook::TcIn, LO, &other)
            .follows("tcp 10.1.0.2:40001 > 20.0.0.2:80", NEW);
    });
}

#[test]
fn a_flow_is_denied_in_xdp_too_while_it_lives() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        let frame = tcp("20.0.0.2:80", "10.1.0.2:40000", ACK).bytes();
        let flow = "tcp 20.0.0.2:80 > 10.1.0.2:40000";
        node.run(Hook::Xdp, LO, &frame).untouched(&[]);
        node.run(Hook::TcIn, LO, &frame).follows(flow, NEW);
        node.run(Hook::Xdp, LO, &frame).untouched(&[]);
        node.acl("20.0.0.2", 0, TCP, acl::DENY);
        node.run(Hook::Xdp, LO, &frame).dropped(Reason::AclDeny);
        node.run(Hook::TcIn, LO, &frame).dropped(Reason::AclDeny);
        node.no_acl("20.0.0.2", 0, TCP);
        node.run(Hook::Xdp, LO, &frame).untouched(&[]);
        node.run(Hook::TcIn, LO, &frame)
            .follows(flow, &[Reason::FlowRejudged]);
    });
}

#[test]
fn trust_comes_and_goes_with_its_entry() {
    alone(|node| {
        let frame = tcp("10.1.0.2:40000", "20.0.0.2:80", ACK).bytes();
        node.run(Hook::TcIn, LO, &frame).follows(THERE, NEW);
        node.acl("20.0.0.2", 80, TCP, acl::TRUSTED);
        node.run(Hook::TcIn, LO, &frame)
            .follows(THERE, &[Reason::FlowRejudged]);
        node.no_acl("20.0.0.2", 80, TCP);
        node.run(Hook::TcIn, LO, &frame)
            .follows(THERE, &[Reason::FlowRejudged]);
        assert_eq!(node.flows()[THERE].nf & nf::TRUST, 0);
    });
}

/// A connection of the app's that both sides have spoken on.
fn settle(node: &mut Node, port: u16) -> (String, String) {
    let (there, back) = (
        format!("tcp 10.1.0.2:{port} > 20.0.0.2:80"),
        format!("tcp 10.0.0.1:15001 > 10.1.0.2:{port}"),
    );
    let _ = node
        .run(Hook::TcIn, LO, &data_of(port))
        .translated(&there, NEW);
    let _ = node
        .run(Hook::TcOut, LO, &answer_to(port))
        .translated(&back, &[]);
    (there, back)
}

fn data_of(port: u16) -> Vec<u8> {
    tcp(&format!("10.1.0.2:{port}"), "20.0.0.2:80", ACK).bytes()
}

fn answer_to(port: u16) -> Vec<u8> {
    tcp("10.0.0.1:15001", &format!("10.1.0.2:{port}"), ACK).bytes()
}

#[test]
fn when_the_table_is_full_new_flows_live_in_the_small_one_or_are_dropped() {
    alone_with(2, |node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        let (first, _) = settle(node, 1);
        settle(node, 2);
        assert_eq!(node.settled().len(), 4);
        let (third, back) = (
            "tcp 10.1.0.2:3 > 20.0.0.2:80",
            "tcp 10.0.0.1:15001 > 10.1.0.2:3",
        );
        let _ = node.run(Hook::TcIn, LO, &data_of(3)).translated(third, NEW);
        for _ in 0..2 {
            let _ = node
                .run(Hook::TcOut, LO, &answer_to(3))
                .translated(back, &[Reason::TableFullOpen]);
        }
        node.set(|settings| settings.fail_open = 0);
        // Counted in its flow, which goes on waiting.
        let dropped = node.run(Hook::TcOut, LO, &answer_to(3));
        assert_eq!(
            (dropped.verdict, dropped.reasons.as_slice()),
            (
                Some(Verdict::Drop),
                &[Reason::TableFull, Reason::FlowRejudged][..]
            )
        );
        // Those that live, live on.
        let _ = node
            .run(Hook::TcIn, LO, &data_of(1))
            .translated(&first, &[Reason::FlowRejudged]);
        assert_eq!(node.settled().len(), 4);
        // The other family has a table of its own.
        let other = udp("[fd10:1::2]:1", "[fd20::2]:53").bytes();
        node.run(Hook::TcIn, LO, &other)
            .follows("udp [fd10:1::2]:1 > [fd20::2]:53", NEW);
    });
}

#[test]
fn a_flow_that_finds_room_for_one_entry_leaves_none() {
    alone_with(2, |node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        settle(node, 1);
        settle(node, 2);
        let (key, _) = node.maps.flow4.iter().next().unwrap().unwrap();
        node.maps.flow4.remove(&key).unwrap();
        let origins = node.maps.xopt.keys().count();
        let _ = node.run(Hook::TcIn, LO, &data_of(3));
        let _ = node
            .run(Hook::TcOut, LO, &answer_to(3))
            .translated("tcp 10.0.0.1:15001 > 10.1.0.2:3", &[Reason::TableFullOpen]);
        assert_eq!(node.settled().len(), 3);
        assert_eq!(
            node.maps.xopt.keys().count(),
            origins,
            "an origin of a flow that is not"
        );
    });
}

#[test]
fn a_packet_against_a_live_flow_takes_nothing_from_it() {
    alone(|node| {
        live(node);
        // The server's own answer to what the gateway took, or one that somebody made up.
        let stray = tcp("20.0.0.2:80", "10.1.0.2:40000", ACK).bytes();
        node.run(Hook::TcOut, LO, &stray).untouched(&[]);
        let _ = node.run(Hook::TcIn, LO, &data()).translated(THERE, &[]);
    });
}
