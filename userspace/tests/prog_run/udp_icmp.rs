//! Datagram flows and echoes: when they settle, and what is a flow of its own.

use fsm_common::{flow::CREATED_UNIT_NS, reason::Reason, track::State};

use crate::{
    nat::{Case, taken},
    support::{
        Hook, LO, alone,
        frame::{icmp, udp},
    },
};

const NEW: &[Reason] = &[Reason::FlowNew];

#[test]
fn a_datagram_flow_settles_after_two_units_with_answers() {
    taken(|node, case| {
        let Case {
            app,
            server,
            gateway,
            ..
        } = case;
        let there = format!("udp {app} > {server}");
        let back = format!("udp {gateway} > {app}");
        let (question, answer) = (udp(app, server).bytes(), udp(gateway, app).bytes());
        let _ = node.run(Hook::TcIn, LO, &question).translated(&there, NEW);
        assert_eq!(node.state(&there, &back), State::Unreplied);
        for _ in 0..3 {
            let _ = node.run(Hook::TcOut, LO, &answer).translated(&back, &[]);
            let _ = node.run(Hook::TcIn, LO, &question).translated(&there, &[]);
        }
        assert_eq!(node.state(&there, &back), State::Stream);
        let settled = |node: &crate::support::Node| {
            [&there, &back].map(|tuple| node.settled().contains_key(tuple))
        };
        assert_eq!(settled(node), [false; 2], "a question with a few answers");
        node.age(2 * CREATED_UNIT_NS);
        let _ = node.run(Hook::TcIn, LO, &question).translated(&there, &[]);
        assert_eq!(settled(node), [true; 2]);
        let _ = node.run(Hook::TcOut, LO, &answer).translated(&back, &[]);
    });
}

#[test]
fn a_datagram_flow_without_answers_never_settles() {
    taken(|node, case| {
        let there = format!("udp {} > {}", case.app, case.server);
        let question = udp(case.app, case.server).bytes();
        let _ = node.run(Hook::TcIn, LO, &question).translated(&there, NEW);
        for _ in 0..5 {
            node.age(CREATED_UNIT_NS);
            let _ = node.run(Hook::TcIn, LO, &question).translated(&there, &[]);
        }
        assert!(!node.settled().contains_key(&there));
        let back = format!("udp {} > {}", case.gateway, case.app);
        assert_eq!(node.state(&there, &back), State::Unreplied);
    });
}

#[test]
fn an_echo_is_a_flow_by_its_identifier() {
    alone(|node| {
        for (app, server, [ask, answer]) in [
            ("10.1.0.2", "20.0.0.2", [8, 0]),
            ("fd10:1::2", "fd20::2", [128, 129]),
        ] {
            let echo = |from: &str, to: &str, kind: u8, id: u8, number: u8| {
                icmp(from, to, kind)
                    .payload(&[0, id, 0, number, 1, 2, 3, 4])
                    .bytes()
            };
            let before = node.flows().len();
            for id in [1, 2] {
                let first = node.run(Hook::TcIn, LO, &echo(app, server, ask, id, 1));
                assert_eq!((first.reasons.as_slice(), first.made), (NEW, 2));
                let flow = first.flow.clone().unwrap();
                first.follows(&flow, NEW);
                let reply = node.run(Hook::TcOut, LO, &echo(server, app, answer, id, 1));
                let back = reply.flow.clone().unwrap();
                assert_ne!(back, flow);
                reply.follows(&back, &[]);
                node.run(Hook::TcIn, LO, &echo(app, server, ask, id, 2))
                    .follows(&flow, &[]);
            }
            assert_eq!(node.flows().len(), before + 4);
        }
        assert!(node.settled().is_empty());
    });
}
