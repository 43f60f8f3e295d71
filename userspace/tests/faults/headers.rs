//! VLAN tags and IPv6 extension headers around real packets: nothing behind them is let through that would
//! not be without, and nothing harmed.

use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::frame::{self, Frame};
use crate::traffic::{alone, drops, lab, on, raw};

/// Sends frames from the client's device to the node; gives the first frame that comes back within a second
/// and `is_answer`.
fn exchange(lab: &Lab, frames: Vec<Frame>, is_answer: fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let node = raw::mac(lab, Role::Node, "up0");
    on(lab, Role::Client, move || {
        let socket = raw::open("eth0");
        for one in frames {
            socket
                .send(&raw::address(one, "eth0", node).bytes())
                .unwrap();
        }
        raw::listen(&socket, Duration::from_secs(1), is_answer).unwrap()
    })
}

/// Sends frames and says how many were counted as dropped for this reason.
fn dropped(lab: &Lab, reason: &str, frames: Vec<Frame>) -> u64 {
    let before = drops(lab, reason);
    exchange(lab, frames, |_| false);
    drops(lab, reason) - before
}

fn is_echo_reply6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
        && frame.get(20) == Some(&58)
        && frame.get(54) == Some(&129)
}

#[test]
fn ipv6_packets_with_extension_headers_arrive_and_are_answered() {
    let _alone = alone();
    let lab = lab("ext", "");
    // The app has to know the client's MAC by way of the node, and the node the app's.
    assert_eq!(
        crate::ping::ping(&lab, Role::Client, "fd10:1::2", 8),
        Ok(())
    );
    let echo = || frame::icmp("fd20::10", "fd10:1::2", 128);
    for (what, packet) in [
        ("hop-by-hop", echo().ext(frame::ext(0, 8))),
        ("destination options", echo().ext(frame::ext(60, 8))),
        ("both", echo().ext(frame::ext(0, 8)).ext(frame::ext(60, 8))),
        (
            "atomic fragment",
            echo().ext(frame::fragment_header(9, 0, false)),
        ),
    ] {
        // Options of all zeroes are Pad1 (RFC 8200 §4.2), of which Linux takes up to seven.
        let answer = exchange(&lab, vec![packet], is_echo_reply6);
        assert!(answer.is_some(), "{what}: no answer");
    }
}

#[test]
fn extension_headers_and_tags_dodge_no_rule() {
    let _alone = alone();
    let lab = lab("dodge", "");
    let syn6 = || frame::tcp("[fd20::99]:4000", "[fd10:1::2]:80", frame::SYN);
    let syn4 = || frame::tcp("20.0.0.99:4000", "10.1.0.2:80", frame::SYN);
    let many = (0..6).fold(syn6(), |f, _| f.ext(frame::ext(60, 8)));
    let denied = vec![
        syn6(),
        syn6().ext(frame::ext(0, 8)),
        syn6().ext(frame::ext(0, 8)).ext(frame::ext(60, 8)),
        syn6().ext(frame::ext(60, 256)),
        many,
        syn4(),
        syn4().tag(0x8100, 5),
        syn6().tag(0x8100, 5),
        syn4().tag(0x88a8, 7).tag(0x8100, 5),
        syn6().tag(0x88a8, 7).tag(0x8100, 5),
    ];
    let count = denied.len() as u64;
    assert_eq!(dropped(&lab, "acl_deny", denied), count);
    let too_many = (0..7).fold(syn6(), |f, _| f.ext(frame::ext(60, 8)));
    assert_eq!(dropped(&lab, "bad_ipv6_ext", vec![too_many]), 1);
    let too_deep = syn4().tag(0x88a8, 7).tag(0x8100, 5).tag(0x8100, 6);
    assert_eq!(dropped(&lab, "bad_vlan", vec![too_deep]), 1);
}

#[test]
fn neighbour_discovery_works_whatever_is_denied() {
    let _alone = alone();
    let lab = lab("nd", "");
    for flag in ["deny_all", "oth_proto_deny_all"] {
        lab.fsm(&["cfg", "set", "ipv6", flag, "on"]).unwrap();
    }
    for host in [lab.client(), lab.node(), lab.app1()] {
        host.cmd("ip", ["-6", "neigh", "flush", "all"]).unwrap();
    }
    assert!(crate::ping::ping(&lab, Role::Client, "fd20::1", 8).is_err());
    assert!(crate::ping::ping(&lab, Role::App1, "fd10:1::1", 8).is_err());
    for (host, address) in [(lab.client(), "fd20::1"), (lab.app1(), "fd10:1::1")] {
        let found = host.cmd("ip", ["-6", "neigh", "show", address]).unwrap();
        assert!(found.contains("lladdr"), "{address}: {found}");
    }
    for flag in ["deny_all", "oth_proto_deny_all"] {
        lab.fsm(&["cfg", "set", "ipv6", flag, "off"]).unwrap();
    }
    assert_eq!(
        crate::ping::ping(&lab, Role::Client, "fd10:1::2", 8),
        Ok(())
    );
}
