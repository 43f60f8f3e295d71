//! Bad packets are dropped in both hooks, each with its reason; what the link needs always passes.

use fsm_common::{flags, maps::role, reason::Reason, wire::l4::tcp_flags_valid};

use crate::support::{
    Hook, LO, alone,
    frame::{ether, icmp, tcp},
    golden,
};

fn reason(name: &str) -> Option<Reason> {
    Reason::ALL
        .iter()
        .copied()
        .find(|reason| reason.name() == name)
}

#[test]
fn golden_packets_in_both_hooks() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        for packet in golden::all() {
            for hook in [Hook::Xdp, Hook::TcIn] {
                // The kernel takes no shorter skb of an IP type for a test run.
                if hook == Hook::TcIn && packet.name == "bad-ipv4-truncated" {
                    continue;
                }
                let seen = node.run(hook, LO, &packet.frame);
                println!("{}: {}", packet.name, packet.description);
                match reason(&packet.expect) {
                    Some(reason) => seen.dropped(reason),
                    None => {
                        assert_eq!(
                            (seen.action, &seen.frame),
                            (if hook == Hook::Xdp { 2 } else { -1 }, &seen.before)
                        );
                        assert!(
                            seen.reasons.iter().all(|&reason| reason == Reason::FlowNew),
                            "{:?}",
                            seen.reasons
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn tcp_flags_that_no_tcp_sends() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        for flags in 0..=u8::MAX {
            for (src, dst) in [
                ("20.0.0.2:80", "10.1.0.2:40000"),
                ("[fd20::2]:80", "[fd10:1::2]:40000"),
            ] {
                let frame = tcp(src, dst, flags).bytes();
                let expected = if tcp_flags_valid(flags) {
                    [2, -1]
                } else {
                    [1, 2]
                };
                let found = [Hook::Xdp, Hook::TcIn].map(|hook| node.raw(hook, LO, &frame).0);
                assert_eq!(found, expected, "{flags:02x}");
            }
        }
        let null = tcp("20.0.0.2:80", "10.1.0.2:40000", 0).bytes();
        node.run(Hook::Xdp, LO, &null).dropped(Reason::BadTcpFlags);
        node.run(Hook::TcIn, LO, &null).dropped(Reason::BadTcpFlags);
        node.run(Hook::TcOut, LO, &null)
            .dropped(Reason::BadTcpFlags);
    });
}

#[test]
fn arp_lldp_and_neighbour_discovery_pass_whatever_is_denied() {
    alone(|node| {
        node.flags(flags::DEFAULT | flags::DENY_ALL | flags::OTH_DENY);
        let mut frames = vec![
            ether(0x0806, &[0; 28]),
            ether(0x88cc, &[0; 40]),
            ether(0x8809, &[0; 40]),
        ];
        frames.extend((133..=137).map(|kind| icmp("fe80::1", "ff02::1", kind).ttl(255).bytes()));
        for device in [role::UPLINK, role::ENDPOINT] {
            node.device(LO, device, 0);
            for hook in [Hook::Xdp, Hook::TcIn, Hook::TcOut] {
                for frame in &frames {
                    node.run(hook, LO, frame).untouched(&[]);
                }
                // What only looks like it came through a router.
                let far = icmp("fe80::1", "ff02::1", 135).ttl(254).bytes();
                node.run(hook, LO, &far).dropped(Reason::DenyAll);
            }
        }
    });
}
