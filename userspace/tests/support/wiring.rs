//! Devices and routes in a test's own network namespace: an uplink and two apps.

use std::{fs, process::Command};

use aya::programs::xdp::XdpMode;
use fsm_common::maps::{iface_flag, role};
use fsm_fastpath::loader::objects::program;

use super::Node;

/// Device numbers, and the addresses behind them: the uplink leads to 20.0.0.0/24 and fd20::/64, the apps
/// are 10.1.0.2 and fd10:1::2, 10.2.0.2 and fd10:2::2.
#[derive(Clone, Copy, Debug)]
pub struct Wires {
    pub uplink: u32,
    pub app1: u32,
    pub app2: u32,
}

/// The apps' MACs.
pub const APP_MACS: [&str; 2] = ["02:aa:00:00:00:01", "02:aa:00:00:00:02"];
/// The first app's.
pub const APP1_MAC: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];

fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap_or_else(|e| panic!("ip (package iproute2) is needed: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {said}");
}

fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a string that ends with zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

impl Node {
    /// Makes the devices, with routes and neighbours; all are known to the programs, apps with `REDIRECT`
    /// and `XDP_TX`.
    pub fn wires(&mut self) -> Wires {
        ip("link set lo up");
        for (file, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            let path = format!("/proc/sys/net/{file}");
            fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        for (name, v4, v6) in [
            ("up0", "20.0.0.1/24", "fd20::1/64"),
            ("app1", "10.1.0.1/24", "fd10:1::1/64"),
            ("app2", "10.2.0.1/24", "fd10:2::1/64"),
        ] {
            ip(&format!("link add {name} type veth peer name {name}p"));
            // The far end must not send anything by itself: the program on the device would count it.
            let quiet = format!("/proc/sys/net/ipv6/conf/{name}p/disable_ipv6");
            fs::write(&quiet, "1").unwrap_or_else(|e| panic!("{quiet}: {e}"));
            ip(&format!("link set {name}p up"));
            ip(&format!("link set {name} up"));
            ip(&format!("addr add {v4} dev {name}"));
            ip(&format!("addr add {v6} dev {name} nodad"));
        }
        for (number, lladdr) in [1, 2].into_iter().zip(APP_MACS) {
            for addr in [format!("10.{number}.0.2"), format!("fd10:{number}::2")] {
                ip(&format!(
                    "neigh replace {addr} lladdr {lladdr} dev app{number} nud permanent"
                ));
            }
        }
        // A veth takes frames as XDP from a test run only with a program on it.
        self.objects
            .xdp(program::XDP)
            .attach("up0", XdpMode::Driver)
            .unwrap_or_else(|e| panic!("up0: {e}"));
        let wires = Wires {
            uplink: index("up0"),
            app1: index("app1"),
            app2: index("app2"),
        };
        self.device(wires.uplink, role::UPLINK, 0);
        for app in [wires.app1, wires.app2] {
            self.device(
                app,
                role::ENDPOINT,
                iface_flag::REDIRECT | iface_flag::XDP_TX,
            );
        }
        wires
    }

    /// Neighbours on the uplink with their MACs, for good; its own is made that of its entry.
    pub fn neighbours(&self, list: &[(&str, &str)]) {
        // First: a change forgets the neighbours.
        let [a, b, c, d, e, f] = super::node::mac(index("up0"));
        ip(&format!(
            "link set up0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
        ));
        for (addr, mac) in list {
            ip(&format!(
                "neigh replace {addr} lladdr {mac} dev up0 nud permanent"
            ));
        }
    }

    /// Removes the devices of a test before.
    pub fn no_wires(&self) {
        for name in ["up0", "app1", "app2"] {
            if index(name) != 0 {
                ip(&format!("link del {name}"));
            }
        }
    }

    /// Forgets the first app's MAC.
    pub fn forget_app1(&self) {
        ip("neigh del 10.1.0.2 dev app1");
    }

    /// Learns it again.
    pub fn learn_app1(&self) {
        ip(&format!(
            "neigh replace 10.1.0.2 lladdr {} dev app1 nud permanent",
            APP_MACS[0]
        ));
    }
}
