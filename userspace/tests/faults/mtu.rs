//! Path MTU through NAT: a router with a narrow hop behind the node. Its ICMP errors are about translated
//! packets, and reach who has sent them as if about their own.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::Duration;

use fsm_fastpath::lab::{Lab, Role};

use crate::traffic::http::{connect, serve};
use crate::traffic::{
    alone, at, done, lab, notes, on, option, pattern, set_option, spawn_inside, wait_for,
};

/// MTU of the narrow hop, the least that IPv6 may have.
const NARROW: i32 = 1280;
const BYTES: usize = 3_000_000;

/// Hosts that the lab does not have; removed in the end.
struct More {
    router: String,
    far: String,
}

impl More {
    /// A router and a host behind it: `router` has `near` devices already made by `cable`.
    fn new(lab: &Lab) -> More {
        let name = &lab.plan().name;
        let more = More {
            router: format!("{name}-router"),
            far: format!("{name}-far"),
        };
        let (router, far) = (&more.router, &more.far);
        sh(&format!(
            "for n in {router} {far}; do
                 ip netns add $n; ip -n $n link set lo up
                 nsenter --net=/run/netns/$n sysctl -qw net.ipv6.conf.default.accept_dad=0
                 nsenter --net=/run/netns/$n sysctl -qw net.ipv6.conf.all.accept_dad=0
             done
             nsenter --net=/run/netns/{router} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip -n {router} link add narrow type veth peer name eth0 netns {far}
             ip -n {router} addr add 30.0.0.1/24 dev narrow; ip -n {router} addr add fd30::1/64 dev narrow nodad
             ip -n {far} addr add 30.0.0.2/24 dev eth0; ip -n {far} addr add fd30::2/64 dev eth0 nodad
             ip -n {router} link set narrow up; ip -n {far} link set eth0 up
             ip -n {router} link set narrow mtu {NARROW}
             ip -n {far} route add default via 30.0.0.1; ip -n {far} -6 route add default via fd30::1"
        ));
        more
    }

    fn far(&self) -> PathBuf {
        format!("/run/netns/{}", self.far).into()
    }
}

impl Drop for More {
    fn drop(&mut self) {
        for name in [&self.router, &self.far] {
            let _ = std::process::Command::new("ip")
                .args(["netns", "del", name])
                .output();
        }
    }
}

fn sh(script: &str) {
    let output = std::process::Command::new("sh")
        .args(["-ec", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {text}");
}

/// Puts the narrow hop between the node and a listener of its own, which is in a namespace there: what an
/// app sends to the listener is too large for the router behind the node.
fn behind_node(lab: &Lab) -> More {
    let more = More::new(lab);
    let (router, node) = (&more.router, lab.plan().netns(Role::Node));
    sh(&format!(
        "ip -n {node} link add gw0 type veth peer name wide netns {router}
         ip -n {node} addr add 31.0.0.1/24 dev gw0; ip -n {node} addr add fd31::1/64 dev gw0 nodad
         ip -n {router} addr add 31.0.0.2/24 dev wide; ip -n {router} addr add fd31::2/64 dev wide nodad
         ip -n {node} link set gw0 up; ip -n {router} link set wide up
         ip -n {router} route add default via 31.0.0.1; ip -n {router} -6 route add default via fd31::1
         ip -n {node} route add 30.0.0.0/24 via 31.0.0.2; ip -n {node} -6 route add fd30::/64 via fd31::2"
    ));
    more
}

fn ip_mtu(socket: &impl std::os::fd::AsRawFd, v6: bool) -> i32 {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    option(socket, level, name).unwrap()
}

#[test]
fn an_app_learns_the_mtu_of_the_way_to_its_gateway() {
    let _alone = alone();
    let lab = lab("pmtu", "");
    let more = behind_node(&lab);
    for (proto, server, endpoint) in [
        ("tcp", "20.0.0.2:7000", "30.0.0.2:7001"),
        ("tcp", "[fd20::2]:7000", "[fd30::2]:7001"),
        ("udp", "20.0.0.2:7000", "30.0.0.2:7001"),
        ("udp", "[fd20::2]:7000", "[fd30::2]:7001"),
    ] {
        let entry = [
            "nat",
            "add",
            "--direction",
            "egress",
            "--proto",
            proto,
            "--to",
            server,
        ];
        lab.fsm(&[entry.as_slice(), &["--endpoint", endpoint]].concat())
            .unwrap();
    }
    for (server, listener) in [
        ("20.0.0.2:7000", "30.0.0.2:7001"),
        ("[fd20::2]:7000", "[fd30::2]:7001"),
    ] {
        let v6 = at(server).is_ipv6();
        let before = notes(&lab, "icmp_translated");
        done(spawn_inside(&more.far(), move || {
            serve(at(listener), |mut stream| {
                let mut data = Vec::new();
                stream.read_to_end(&mut data).unwrap();
                let whole = u8::from(data == pattern(BYTES, 4));
                stream.write_all(&[whole]).unwrap();
            });
        }));
        let (answer, mtu) = on(&lab, Role::App1, move || {
            let mut stream = connect(at(server)).unwrap();
            assert_eq!(ip_mtu(&stream, v6), 1500, "{server}: before");
            stream.write_all(&pattern(BYTES, 4)).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            (answer, ip_mtu(&stream, v6))
        });
        assert_eq!(answer, [1], "{server}: all bytes arrive");
        assert_eq!(mtu, NARROW, "{server}");
        assert!(notes(&lab, "icmp_translated") > before, "{server}");

        // A datagram that must not be cut: refused once the way is known. A new cache for it: another host.
        let mtu = on(&lab, Role::App1, move || {
            let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            let (level, name, value) = if v6 {
                (
                    libc::IPPROTO_IPV6,
                    libc::IPV6_MTU_DISCOVER,
                    libc::IPV6_PMTUDISC_DO,
                )
            } else {
                (
                    libc::IPPROTO_IP,
                    libc::IP_MTU_DISCOVER,
                    libc::IP_PMTUDISC_DO,
                )
            };
            set_option(&socket, level, name, value).unwrap();
            socket.connect(at(server)).unwrap();
            wait_for("EMSGSIZE", Duration::from_secs(3), || {
                let sent = socket.send(&[0; 1400]);
                sent.is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE))
            });
            ip_mtu(&socket, v6)
        });
        assert_eq!(mtu, NARROW, "{server}: UDP");
    }
}

#[test]
fn the_gateway_learns_the_mtu_of_the_way_to_its_client() {
    let _alone = alone();
    let lab = lab("pmtuin", "");
    let more = More::new(&lab);
    // The router is one of the hosts at the wire.
    let (router, wire) = (&more.router, lab.plan().netns(Role::Wire));
    let node = lab.plan().netns(Role::Node);
    sh(&format!(
        "ip -n {wire} link add w-router type veth peer name wide netns {router}
         ip -n {wire} link set w-router master br0; ip -n {wire} link set w-router up
         ip -n {router} addr add 20.0.0.77/24 dev wide; ip -n {router} addr add fd20::77/64 dev wide nodad
         ip -n {router} link set wide up
         nsenter --net=/run/netns/{router} ethtool -K wide tx off tso off gso off
         ip -n {router} route add default via 20.0.0.1; ip -n {router} -6 route add default via fd20::1
         ip -n {node} route add 30.0.0.0/24 via 20.0.0.77; ip -n {node} -6 route add fd30::/64 via fd20::77"
    ));
    let sum = lab.blob_sum().unwrap();
    let before = notes(&lab, "icmp_translated");
    for (client, url) in [
        ("30.0.0.2", "http://10.1.0.2:80/blob"),
        ("fd30::2", "http://[fd10:1::2]:80/blob"),
    ] {
        // Through the gateway, whose socket sends from a translated address.
        let script = format!(
            "nsenter --net={} curl -gsS --max-time 60 {url} | sha256sum",
            more.far().display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(got.split_whitespace().next(), Some(sum.as_str()), "{url}");
        let route = lab.node().cmd("ip", ["route", "get", client]).unwrap();
        assert!(
            route.contains(&format!("mtu {NARROW}")),
            "{client}: {route}"
        );
    }
    assert!(notes(&lab, "icmp_translated") > before);
    // Excluded from steering: the app's own socket.
    for (client, url) in [
        ("30.0.0.2", "http://10.1.0.2:9998/blob"),
        ("fd30::2", "http://[fd10:1::2]:9998/blob"),
    ] {
        let script = format!(
            "nsenter --net={} curl -gsS --max-time 60 {url} | sha256sum",
            more.far().display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(got.split_whitespace().next(), Some(sum.as_str()), "{url}");
        let route = lab.app1().cmd("ip", ["route", "get", client]).unwrap();
        assert!(
            route.contains(&format!("mtu {NARROW}")),
            "{client}: {route}"
        );
    }
}
