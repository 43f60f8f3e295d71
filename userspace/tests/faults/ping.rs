//! ICMP and ICMPv6 echo, small and in fragments.

use std::net::UdpSocket;
use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::http::socket;
use crate::traffic::{alone, at, drops, flows, lab, on, pattern};

/// Sends one echo request with so much payload; the answer's payload, or what went wrong.
pub fn ping(lab: &Lab, role: Role, to: &'static str, bytes: usize) -> Result<(), String> {
    let range = "net.ipv4.ping_group_range=0 2147483647";
    lab.host(role).cmd("sysctl", ["-qw", range]).unwrap();
    on(lab, role, move || {
        let to = at(&if to.contains(':') {
            format!("[{to}]:0")
        } else {
            format!("{to}:0")
        });
        let (protocol, request) = if to.is_ipv4() {
            (libc::IPPROTO_ICMP, 8)
        } else {
            (libc::IPPROTO_ICMPV6, 128)
        };
        // The kernel fills in identifier and checksum, and gives answers to this identifier alone.
        let socket = UdpSocket::from(socket(to, libc::SOCK_DGRAM, protocol).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut message = vec![request, 0, 0, 0, 0, 0, 0, 7];
        message.extend(pattern(bytes, 5));
        socket.send_to(&message, to).map_err(|e| e.to_string())?;
        let mut answer = vec![0; bytes + 100];
        let length = socket.recv(&mut answer).map_err(|e| e.to_string())?;
        match answer[..length].get(8..) == message.get(8..) {
            true => Ok(()),
            false => Err(format!("another payload, {length} bytes")),
        }
    })
}

#[test]
fn an_echo_is_answered_whatever_its_size_and_is_a_flow() {
    let _alone = alone();
    let lab = lab("ping", "");
    for (role, to) in [
        (Role::App1, "20.0.0.2"),
        (Role::App1, "fd20::2"),
        (Role::Client, "10.1.0.2"),
        (Role::Client, "fd10:1::2"),
        (Role::App2, "10.1.0.2"),
        (Role::App2, "fd10:1::2"),
    ] {
        for bytes in [56, 1400, 3000, 20_000] {
            for round in 0..3 {
                let answered = ping(&lab, role, to, bytes);
                assert_eq!(
                    answered,
                    Ok(()),
                    "{role} to {to}, {bytes} bytes, round {round}"
                );
            }
        }
        let rows = flows(&lab, &["--dst", to]);
        let echoes = rows.iter().filter(|row| row["state"] == "ICMP");
        assert!(echoes.count() >= 6, "{to}: {rows:?}");
    }
    assert_eq!(drops(&lab, "fragment_orphan"), 0);
}

#[test]
fn an_echo_in_fragments_is_denied_like_a_whole_one() {
    let _alone = alone();
    let lab = lab("pingd", "");
    lab.fsm(&["acl", "add", "20.0.0.2", "--action", "deny"])
        .unwrap();
    for bytes in [56, 3000] {
        let before = drops(&lab, "acl_deny");
        assert!(ping(&lab, Role::App1, "20.0.0.2", bytes).is_err());
        assert!(drops(&lab, "acl_deny") > before);
    }
}
