//! Packets of which the kernel has only the first bytes at hand, the rest in pages.

use std::io::Error;
use std::net::UdpSocket;
use std::time::Duration;

use fsm_fastpath::lab::Role;

use crate::traffic::{alone, at, frame, lab, on, pattern, raw, set_option};

/// `PACKET_VNET_HDR` (`linux/if_packet.h`): each frame follows a `virtio_net_hdr`.
const PACKET_VNET_HDR: i32 = 15;

#[test]
fn headers_outside_of_the_linear_part_are_read_and_translated() {
    let _alone = alone();
    let lab = lab("linear", "");
    for (host, device) in [(lab.app1(), "eth0"), (lab.node(), "veth-app1")] {
        host.cmd("ip", ["link", "set", device, "mtu", "9000"])
            .unwrap();
    }
    // From a page's size on, the kernel puts into the linear part what the header says, here 14 bytes:
    // Ethernet alone.
    let gateway = raw::mac(&lab, Role::Node, "veth-app1");
    for (src, dst) in [
        ("10.1.0.2:5555", "20.0.0.2:7777"),
        ("[fd10:1::2]:5555", "[fd20::2]:7777"),
    ] {
        let answer = on(&lab, Role::App1, move || {
            let receiver = UdpSocket::bind(at(src)).unwrap();
            receiver
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            let datagram = frame::udp(src, dst).payload(&pattern(6000, 8));
            let mut bytes = vec![0, 0, 14, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(raw::address(datagram, "eth0", gateway).bytes());
            let socket = raw::open("eth0");
            set_option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1).unwrap();
            socket
                .send(&bytes)
                .unwrap_or_else(|e: Error| panic!("{src}: {e}"));
            let mut answer = vec![0; 9000];
            receiver
                .recv_from(&mut answer)
                .map(|(length, from)| (answer[..length].to_vec(), from))
        });
        let (data, from) = answer.unwrap_or_else(|e| panic!("{src}: {e}"));
        assert_eq!(from, at(dst), "translated back");
        assert!(data == pattern(6000, 8), "{src}: other bytes");
    }
    let rows = crate::traffic::flows(&lab, &["--port", "5555"]);
    let nat: Vec<_> = rows.iter().filter(|row| row["verdict"] == "nat").collect();
    assert_eq!(nat.len(), 2, "{rows:?}");
}
