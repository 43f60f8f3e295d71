//! Which NAT entry takes a packet, and what happens where none does.

use fsm_common::{flags, nat::dir, reason::Reason};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{Frame, SYN, TCP, UDP, tcp, udp},
};

const APP: &str = "10.1.0.2";

/// Where a new flow to `dst` goes: the listener's port, or 0 where it passes untouched.
fn goes(node: &mut Node, frame: Frame) -> u16 {
    static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(20000);
    let port = PORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let frame = frame
        .clone()
        .with_tuple(&format!("{APP}:{port}"), &frame.dst.to_string());
    let seen = node.run(Hook::TcIn, LO, &frame.bytes());
    assert_eq!(seen.reasons, [Reason::FlowNew]);
    if seen.frame == seen.before {
        0
    } else {
        u16::from_be_bytes([seen.frame[36], seen.frame[37]])
    }
}

fn to(dst: &str) -> [Frame; 2] {
    [tcp("10.1.0.2:1", dst, SYN), udp("10.1.0.2:1", dst)]
}

#[test]
fn the_most_exact_entry_takes_it() {
    alone(|node| {
        for (proto, base) in [(TCP, 1000), (UDP, 2000)] {
            for (number, dst) in ["20.0.0.2:80", "20.0.0.2:0", "0.0.0.0:80", "0.0.0.0:0"]
                .iter()
                .enumerate()
            {
                node.nat(
                    dir::EGRESS,
                    proto,
                    dst,
                    &[&format!("10.0.0.1:{}", base + number)],
                );
            }
            // Entries for what apps receive are not asked.
            node.nat(dir::INGRESS, proto, "20.0.0.2:80", &["10.0.0.1:9"]);
        }
        for (dst, number) in [
            ("20.0.0.2:80", 0),
            ("20.0.0.2:81", 1),
            ("20.0.0.3:80", 2),
            ("20.0.0.3:81", 3),
        ] {
            let [tcp, udp] = to(dst);
            assert_eq!(goes(node, tcp), 1000 + number, "{dst}");
            assert_eq!(goes(node, udp), 2000 + number, "{dst}");
        }
    });
}

#[test]
fn flags_leave_kinds_of_entry_out() {
    alone(|node| {
        for (proto, base) in [(TCP, 1000), (UDP, 2000)] {
            for (number, dst) in ["20.0.0.2:80", "20.0.0.2:0", "0.0.0.0:80", "0.0.0.0:0"]
                .iter()
                .enumerate()
            {
                node.nat(
                    dir::EGRESS,
                    proto,
                    dst,
                    &[&format!("10.0.0.1:{}", base + number)],
                );
            }
        }
        let mut on = flags::DEFAULT;
        for (off_tcp, off_udp, numbers) in [
            (flags::TCP_BY_IP_PORT, flags::UDP_BY_IP_PORT, [1001, 2001]),
            (flags::TCP_BY_IP, flags::UDP_BY_IP, [1002, 2002]),
            // There is no such flag for TCP.
            (0, flags::UDP_BY_PORT, [1002, 2003]),
        ] {
            on &= !(off_tcp | off_udp);
            node.flags(on);
            let [tcp, udp] = to("20.0.0.2:80");
            assert_eq!([goes(node, tcp), goes(node, udp)], numbers);
        }
        node.flags(on | flags::TCP_ANY_OFF | flags::UDP_ANY_OFF);
        let [tcp, udp] = to("20.0.0.2:81");
        assert_eq!([goes(node, tcp), goes(node, udp)], [0, 0]);
    });
}

#[test]
fn what_no_entry_takes_is_dropped_unless_it_may_escape() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "20.0.0.2:80", &["10.0.0.1:15001"]);
        node.nat(dir::EGRESS, UDP, "20.0.0.2:53", &["10.0.0.1:15053"]);
        let [tcp, udp] = to("20.0.0.9:99");
        assert_eq!(
            [goes(node, tcp.clone()), goes(node, udp.clone())],
            [0, 0],
            "may escape by default"
        );
        node.flags(flags::DEFAULT & !flags::TCP_ESCAPE);
        node.run(Hook::TcIn, LO, &tcp.bytes())
            .dropped(Reason::NatMiss);
        assert_eq!(goes(node, udp.clone()), 0);
        node.flags(flags::DEFAULT & !flags::UDP_ESCAPE);
        node.run(Hook::TcIn, LO, &udp.bytes())
            .dropped(Reason::NatMiss);
        assert_eq!(goes(node, tcp.clone()), 0);
        // Without any entry for a protocol there is no NAT to escape from.
        node.set(|settings| settings.nat_kinds = 0);
        assert_eq!(goes(node, udp), 0);
    });
}

#[test]
fn an_entry_without_endpoints_fails_as_configured() {
    alone(|node| {
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        let (key, mut value) = node.maps.xnat.iter().next().unwrap().unwrap();
        (value.usable, value.endpoints[0].active) = (0, 0);
        node.maps.xnat.insert(key, value, 0).unwrap();
        let [syn, _] = to("20.0.0.2:80");
        let syn = syn.bytes();
        node.set(|settings| settings.fail_open = 0);
        node.run(Hook::TcIn, LO, &syn)
            .dropped(Reason::NatNoEndpoint);
        node.set(|settings| settings.fail_open = 1);
        let flow = "tcp 10.1.0.2:1 > 20.0.0.2:80";
        node.run(Hook::TcIn, LO, &syn)
            .follows(flow, &[Reason::NatNoEndpointOpen, Reason::FlowNew]);
    });
}

#[test]
fn endpoints_are_chosen_by_the_flow_and_stay() {
    alone(|node| {
        let listeners = [
            "10.0.0.1:1001",
            "10.0.0.1:1002",
            "10.0.0.1:1003",
            "10.0.0.1:1004",
        ];
        node.nat(dir::EGRESS, UDP, "0.0.0.0:0", &listeners);
        let (_, value) = node.maps.xnat.iter().next().unwrap().unwrap();
        let mut shares = [0; 4];
        for port in 0..64u16 {
            let frame = udp(&format!("10.1.0.2:{}", 30000 + port), "20.0.0.2:53").bytes();
            let first = node.raw(Hook::TcIn, LO, &frame).1;
            assert_eq!(node.raw(Hook::TcIn, LO, &frame).1, first);
            let found = usize::from(u16::from_be_bytes([first[36], first[37]]) - 1001);
            shares[found] += 1;
            // As any other node would choose.
            use fsm_common::nat::{flow_hash, slot};
            let hash = flow_hash(
                [10, 1, 0, 2],
                [20, 0, 0, 2],
                (30000 + port).to_be_bytes(),
                [0, 53],
            );
            assert_eq!(found, usize::from(value.table[slot(hash) as usize]));
        }
        assert!(shares.iter().all(|&share| share > 4), "{shares:?}");
    });
}
