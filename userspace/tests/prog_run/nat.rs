//! An app's packets are taken to the gateway's listener, and answers come back.

use fsm_common::{nat::dir, reason::Reason};

use crate::support::{
    Hook, LO, alone,
    frame::{ACK, SYN, TCP, UDP, tcp, udp},
};

const NEW: &[Reason] = &[Reason::FlowNew];

#[test]
fn syn_of_an_app_goes_to_the_listener_and_the_answer_comes_back() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        let syn = tcp("10.1.0.2:40000", "20.0.0.2:80", SYN);
        let out = node
            .run(Hook::TcIn, LO, &syn.bytes())
            .translated("tcp 10.1.0.2:40000 > 20.0.0.2:80", NEW);
        assert_eq!(
            out,
            syn.clone()
                .with_tuple("10.1.0.2:40000", "10.0.0.1:15001")
                .bytes()
        );
        let answer = tcp("10.0.0.1:15001", "10.1.0.2:40000", SYN | ACK);
        let out = node
            .run(Hook::TcOut, LO, &answer.bytes())
            .translated("tcp 10.0.0.1:15001 > 10.1.0.2:40000", &[]);
        assert_eq!(
            out,
            answer.with_tuple("20.0.0.2:80", "10.1.0.2:40000").bytes()
        );
        let _ = (udp("1.1.1.1:1", "1.1.1.1:1"), UDP);
    });
}
