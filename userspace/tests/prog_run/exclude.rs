//! What the configuration excludes is not taken, whatever NAT entries say.

use fsm_common::{maps::skip, nat::dir, reason::Reason};

use crate::support::{
    Hook, LO, alone,
    frame::{SYN, TCP, UDP, tcp, udp},
};

const NEW: &[Reason] = &[Reason::FlowNew];

#[test]
fn an_excluded_port_passes_untouched() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.nat(dir::EGRESS, UDP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.nat(dir::EGRESS, TCP, "[::]:0", &["[fd10::1]:15001"]);
        node.skip_port(443, skip::OUTBOUND);
        node.skip_port(444, skip::INBOUND);
        for (app, server) in [
            ("10.1.0.2:40000", "20.0.0.2:443"),
            ("[fd10:1::2]:40000", "[fd20::2]:443"),
        ] {
            let flow = format!("tcp {app} > {server}");
            node.run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes())
                .follows(&flow, NEW);
            node.run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes())
                .follows(&flow, &[]);
        }
        let frame = udp("10.1.0.2:40000", "20.0.0.2:443");
        node.run(Hook::TcIn, LO, &frame.bytes())
            .follows("udp 10.1.0.2:40000 > 20.0.0.2:443", NEW);
        let frame = tcp("10.1.0.2:40000", "20.0.0.2:444", SYN);
        let _ = node
            .run(Hook::TcIn, LO, &frame.bytes())
            .translated("tcp 10.1.0.2:40000 > 20.0.0.2:444", NEW);
    });
}

#[test]
fn an_excluded_network_passes_untouched_and_the_longest_decides() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.nat(dir::EGRESS, TCP, "[::]:0", &["[fd10::1]:15001"]);
        node.skip_cidr("20.0.0.0/8", skip::OUTBOUND);
        node.skip_cidr("20.9.0.0/16", skip::INBOUND);
        node.skip_cidr("fd20::/16", skip::OUTBOUND);
        for (app, server) in [
            ("10.1.0.2:40000", "20.0.0.2:80"),
            ("[fd10:1::2]:40000", "[fd20::2]:80"),
        ] {
            let flow = format!("tcp {app} > {server}");
            node.run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes())
                .follows(&flow, NEW);
        }
        for (app, server) in [
            ("10.1.0.2:40001", "20.9.0.2:80"),
            ("10.1.0.2:40001", "21.0.0.2:80"),
            ("[fd10:1::2]:40001", "[fd21::2]:80"),
        ] {
            let seen = node.run(Hook::TcIn, LO, &tcp(app, server, SYN).bytes());
            assert_ne!(seen.frame, seen.before, "{server} is not excluded");
        }
    });
}

#[test]
fn loopback_link_local_and_multicast_are_never_taken() {
    alone(|node| {
        node.nat(dir::EGRESS, UDP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        node.nat(dir::EGRESS, UDP, "[::]:0", &["[fd10::1]:15001"]);
        for (src, dst) in [
            ("10.1.0.2:5353", "224.0.0.251:5353"),
            ("10.1.0.2:68", "255.255.255.255:67"),
            ("0.0.0.0:68", "255.255.255.255:67"),
            ("169.254.1.1:1", "20.0.0.2:53"),
            ("127.0.0.6:1", "127.0.0.1:53"),
            ("[fe80::1]:546", "[ff02::1:2]:547"),
            ("[fe80::1]:546", "[fd20::2]:53"),
        ] {
            node.run(Hook::TcIn, LO, &udp(src, dst).bytes())
                .untouched(&[]);
        }
    });
}
