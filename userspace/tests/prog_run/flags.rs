//! Flags that decide without looking further.

use fsm_common::{
    flags::{self, ALLOW_ALL, DENY_ALL, OTH_DENY, TCP_ALLOW, TCP_DENY, UDP_ALLOW, UDP_DENY},
    nat::dir,
    policy::acl,
    reason::Reason,
};

use crate::support::{
    Hook, LO, Node, alone,
    frame::{SYN, TCP, UDP, icmp, tcp, udp},
};

/// What becomes of TCP, UDP and ICMP of a family: a drop's reason, or untouched, or judged further.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Drop(Reason),
    Untouched,
    Judged,
}

use Fate::{Drop, Judged, Untouched};

fn check(node: &mut Node, flags: u64, fates: [Fate; 3]) {
    node.flags(flags::DEFAULT | flags);
    for (app, server) in [("10.1.0.2", "20.0.0.2"), ("fd10:1::2", "fd20::2")] {
        let socket =
            |addr: &str, port| std::net::SocketAddr::new(addr.parse().unwrap(), port).to_string();
        let (src, dst) = (socket(app, 40000), socket(server, 53));
        let echo = if app.contains(':') { 128 } else { 8 };
        let frames = [
            tcp(&src, &dst, SYN),
            udp(&src, &dst),
            icmp(app, server, echo),
        ];
        for (fate, frame) in fates.into_iter().zip(frames) {
            for hook in [Hook::Xdp, Hook::TcIn, Hook::TcOut] {
                let seen = node.run(hook, LO, &frame.bytes());
                match fate {
                    Drop(reason) => seen.dropped(reason),
                    Untouched => seen.untouched(&[]),
                    // Denied by the ACL, which so was asked.
                    Judged => seen.dropped(Reason::AclDeny),
                }
            }
        }
    }
}

#[test]
fn each_flag_for_its_protocol_and_deny_before_allow() {
    alone(|node| {
        use fsm_common::policy::kind;
        // Everything that is judged is denied by the ACL.
        for (addr, echo) in [("20.0.0.2", 1), ("fd20::2", 58)] {
            for proto in [TCP, UDP, echo] {
                node.acl(addr, 0, proto, acl::DENY);
            }
        }
        for (addr, echo) in [("10.1.0.2", 1), ("fd10:1::2", 58)] {
            for proto in [TCP, UDP, echo] {
                node.acl(addr, 0, proto, acl::DENY);
            }
        }
        assert_eq!(
            node.maps.settings().unwrap().acl_kinds,
            kind::ADDR4 | kind::ADDR4 << kind::V6_SHIFT
        );
        node.nat(dir::EGRESS, TCP, "0.0.0.0:0", &["10.0.0.1:15001"]);
        let (all, proto) = (Drop(Reason::DenyAll), Drop(Reason::ProtoDeny));
        for (flags, fates) in [
            (0, [Judged; 3]),
            (DENY_ALL, [all; 3]),
            (ALLOW_ALL, [Untouched; 3]),
            (DENY_ALL | ALLOW_ALL | TCP_ALLOW, [all; 3]),
            (TCP_DENY, [proto, Judged, Judged]),
            (UDP_DENY, [Judged, proto, Judged]),
            (OTH_DENY, [Judged, Judged, proto]),
            (TCP_ALLOW, [Untouched, Judged, Judged]),
            (UDP_ALLOW, [Judged, Untouched, Judged]),
            (TCP_DENY | TCP_ALLOW, [proto, Judged, Judged]),
            (UDP_DENY | UDP_ALLOW, [Judged, proto, Judged]),
            (TCP_DENY | UDP_ALLOW | OTH_DENY, [proto, Untouched, proto]),
        ] {
            check(node, flags, fates);
        }
    });
}

#[test]
fn each_family_has_its_own() {
    alone(|node| {
        node.set(|settings| settings.ipv4 |= DENY_ALL);
        let (v4, v6) = (
            udp("10.1.0.2:1", "20.0.0.2:2").bytes(),
            udp("[fd10:1::2]:1", "[fd20::2]:2").bytes(),
        );
        node.run(Hook::TcIn, LO, &v4).dropped(Reason::DenyAll);
        node.run(Hook::TcIn, LO, &v6)
            .follows("udp [fd10:1::2]:1 > [fd20::2]:2", &[Reason::FlowNew]);
    });
}

#[test]
fn deny_all_stops_live_flows_at_once() {
    alone(|node| {
        let frame = udp("10.1.0.2:1", "20.0.0.2:2").bytes();
        let flow = "udp 10.1.0.2:1 > 20.0.0.2:2";
        node.run(Hook::TcIn, LO, &frame)
            .follows(flow, &[Reason::FlowNew]);
        node.flags(flags::DEFAULT | DENY_ALL);
        node.run(Hook::TcIn, LO, &frame).dropped(Reason::DenyAll);
        node.flags(flags::DEFAULT);
        node.run(Hook::TcIn, LO, &frame)
            .follows(flow, &[Reason::FlowRejudged]);
    });
}
