//! Datagrams larger than the MTU, from real sockets.

use std::net::UdpSocket;
use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::{alone, at, drops, flows, lab, on, pattern};

/// Sends datagrams of so many bytes to an echo server, one after the other; how many came back whole.
fn echoes(lab: &Lab, to: &'static str, bytes: usize, count: u64, patience: Duration) -> usize {
    on(lab, Role::App1, move || {
        let any = if at(to).is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(at(to)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = vec![0; 65_536];
        (0..count)
            .filter(|round| {
                let data = pattern(bytes, round + 1);
                socket.send(&data).unwrap();
                socket.recv(&mut buffer).is_ok_and(|n| buffer[..n] == data)
            })
            .count()
    })
}

#[test]
fn large_datagrams_go_to_the_listener_and_back_in_fragments() {
    let _alone = alone();
    let lab = lab("frag", "");
    for to in ["20.0.0.2:7777", "[fd20::2]:7777"] {
        for bytes in [1473, 8000, 30_000] {
            let answered = echoes(&lab, to, bytes, 20, Duration::from_secs(2));
            assert_eq!(answered, 20, "{to}, {bytes} bytes");
        }
        let addr = at(to).ip().to_string();
        let rows = flows(&lab, &["--dst", &addr, "--port", "7777", "--proto", "udp"]);
        let nat: Vec<_> = rows.iter().filter(|row| row["verdict"] == "nat").collect();
        assert_eq!(
            nat.len(),
            3,
            "a flow a socket, whatever the fragments: {rows:?}"
        );
    }
    assert_eq!(drops(&lab, "fragment_orphan"), 0);
}

#[test]
fn fragments_dodge_no_port_rule() {
    let _alone = alone();
    let lab = lab("fragd", "");
    for to in ["20.0.0.2:7777", "[fd20::2]:7777"] {
        let addr = at(to).ip().to_string();
        let rule = [
            "acl", "add", &addr, "--port", "7777", "--proto", "udp", "--action", "deny",
        ];
        lab.fsm(&rule).unwrap();
        let before = drops(&lab, "acl_deny");
        assert_eq!(
            echoes(&lab, to, 8000, 3, Duration::from_millis(500)),
            0,
            "{to}"
        );
        // 8000 bytes are six fragments; each is denied for itself.
        assert!(drops(&lab, "acl_deny") - before >= 18, "{to}");
        assert_eq!(drops(&lab, "fragment_orphan"), 0, "{to}");
    }
}
