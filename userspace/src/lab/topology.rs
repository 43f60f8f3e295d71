//! The lab's hosts and cables: namespaces, veths, a bridge, addresses, routes.
//!
//! ```text
//!  client ─┐                            ┌─ veth-app1 ── app1 10.1.0.2  fd10:1::2
//!  outside ┴─ wire (bridge) ── up0 node ┤  lo 192.168.226.22  fd22::22
//!  20.0.0.0/24  fd20::/64               └─ veth-app2 ── app2 10.2.0.2  fd10:2::2
//! ```
//!
//! All devices are made inside the namespaces: the host's own list never changes, and deleting
//! the namespaces deletes everything.

use std::net::IpAddr;

use super::error::Result;
use super::plan::{Addresses, Family, Plan, Role, UPLINK};
use super::shell;

/// A cable: two devices and the hosts they are in.
type Cable = (Role, &'static str, Role, &'static str);

const CABLES: [Cable; 5] = [
    (Role::Client, "eth0", Role::Wire, "w-client"),
    (Role::Outside, "eth0", Role::Wire, "w-outside"),
    (Role::Node, UPLINK, Role::Wire, "w-node"),
    (Role::Node, "veth-app1", Role::App1, "eth0"),
    (Role::Node, "veth-app2", Role::App2, "eth0"),
];

/// Devices that play a wire. XDP behind them sees frames as a NIC would deliver them only if
/// whoever sends computes checksums, cuts segments and puts VLAN tags into the frame itself.
const WIRE_SENDERS: [(Role, &str); 3] = [
    (Role::Client, "eth0"),
    (Role::Outside, "eth0"),
    (Role::Wire, "w-node"),
];

/// The two devices that a bad wire stands between: the far end of the node's uplink, and a device that leads
/// to the bridge.
pub(super) const BAD_WIRE: [&str; 2] = ["w-node", "w-bad"];

/// Builds hosts and cables; nothing runs in them yet. `is_bad`: with a gap where the bad wire goes.
pub(super) fn build(plan: &Plan, is_bad: bool) -> Result<()> {
    for role in Role::ALL {
        add_host(plan, role)?;
    }
    for cable in CABLES {
        add_cable(plan, cable)?;
    }
    build_wire(plan, is_bad)?;
    for family in Family::ALL {
        add_addresses(plan, family)?;
    }
    for family in Family::ALL {
        add_routes(plan, family)?;
    }
    for (role, device) in WIRE_SENDERS {
        in_host(
            plan,
            role,
            "ethtool",
            &format!("-K {device} tx off tso off gso off txvlan off tx-vlan-stag-hw-insert off"),
        )?;
    }
    if is_bad {
        // Whoever sends towards the bad wire cuts segments and sums them up; nobody puts them together again.
        for (role, device) in [
            (Role::Node, UPLINK),
            (Role::Wire, "w-bad"),
            (Role::Wire, "w-bridge"),
        ] {
            let words = format!("-K {device} tx off tso off gso off");
            in_host(plan, role, "ethtool", &words)?;
        }
        for device in BAD_WIRE {
            in_host(plan, Role::Wire, "ethtool", &format!("-K {device} gro off"))?;
        }
    }
    Ok(())
}

/// Removes hosts and with them all their devices; those that do not exist are passed over.
pub(super) fn remove(plan: &Plan) -> Result<()> {
    for role in existing(plan) {
        shell::run("ip", ["netns", "del", &plan.netns(role)])?;
    }
    Ok(())
}

/// The hosts that exist.
pub(super) fn existing(plan: &Plan) -> Vec<Role> {
    Role::ALL
        .into_iter()
        .filter(|role| plan.netns_path(*role).exists())
        .collect()
}

fn add_host(plan: &Plan, role: Role) -> Result<()> {
    shell::run("ip", ["netns", "add", &plan.netns(role)])?;
    ip(plan, role, "link set lo up")?;
    // Before any device exists, so that all of them begin so: without duplicate address
    // detection an IPv6 address can be used at once.
    sysctl(plan, role, "net.ipv6.conf.default.accept_dad=0")?;
    sysctl(plan, role, "net.ipv6.conf.all.accept_dad=0")?;
    match role {
        Role::Node => {
            sysctl(plan, role, "net.ipv4.ip_forward=1")?;
            sysctl(plan, role, "net.ipv6.conf.all.forwarding=1")
        }
        // A wire has no addresses.
        Role::Wire => sysctl(plan, role, "net.ipv6.conf.default.disable_ipv6=1"),
        _ => Ok(()),
    }
}

fn add_cable(plan: &Plan, (left, left_device, right, right_device): Cable) -> Result<()> {
    let (left_netns, right_netns) = (plan.netns(left), plan.netns(right));
    let link = format!(
        "link add {left_device} netns {left_netns} type veth \
         peer name {right_device} netns {right_netns}"
    );
    shell::run("ip", link.split_whitespace())?;
    ip(plan, left, &format!("link set {left_device} up"))?;
    ip(plan, right, &format!("link set {right_device} up"))
}

fn build_wire(plan: &Plan, is_bad: bool) -> Result<()> {
    // Without snooping, neighbour discovery works from the first packet.
    ip(
        plan,
        Role::Wire,
        "link add br0 type bridge mcast_snooping 0 stp_state 0",
    )?;
    let [node, bad] = BAD_WIRE;
    if is_bad {
        add_cable(plan, (Role::Wire, bad, Role::Wire, "w-bridge"))?;
    }
    let node_port = if is_bad { "w-bridge" } else { node };
    for port in ["w-client", "w-outside", node_port] {
        ip(plan, Role::Wire, &format!("link set {port} master br0"))?;
    }
    ip(plan, Role::Wire, "link set br0 up")
}

fn add_addresses(plan: &Plan, family: Family) -> Result<()> {
    let who = family.addresses();
    let (shared, single) = match family {
        Family::V4 => (24, 32),
        Family::V6 => (64, 128),
    };
    // The first address of a device is the one that it sends from; for IPv6 it has to be said.
    let addresses: [(Role, &str, IpAddr, u8); 12] = [
        (Role::Client, "eth0", who.client, shared),
        (Role::Client, "eth0", who.client_trusted, shared),
        (Role::Client, "eth0", who.client_denied, shared),
        (Role::Outside, "eth0", who.outside, shared),
        (Role::Outside, "eth0", who.outside_second, shared),
        (Role::Outside, "eth0", who.outside_denied, shared),
        (Role::Node, UPLINK, who.node, shared),
        (Role::Node, "veth-app1", who.node_app1, shared),
        (Role::Node, "veth-app2", who.node_app2, shared),
        (Role::Node, "lo", who.gateway, single),
        (Role::App1, "eth0", who.app1, shared),
        (Role::App2, "eth0", who.app2, shared),
    ];
    for (role, device, address, length) in addresses {
        let extra = match family {
            Family::V4 => "",
            Family::V6 if is_first(who, address) => "nodad",
            // Deprecated: answers, but is the source only of who asks for it.
            Family::V6 => "nodad preferred_lft 0",
        };
        ip(
            plan,
            role,
            &format!("addr add {address}/{length} dev {device} {extra}"),
        )?;
    }
    Ok(())
}

/// Whether an address is the one its device sends from by default.
fn is_first(who: &Addresses, address: IpAddr) -> bool {
    let extra = [
        who.client_trusted,
        who.client_denied,
        who.outside_second,
        who.outside_denied,
    ];
    !extra.contains(&address)
}

fn add_routes(plan: &Plan, family: Family) -> Result<()> {
    let who = family.addresses();
    let (apps, gateway) = match family {
        Family::V4 => ("10.0.0.0/8", "192.168.226.0/24"),
        Family::V6 => ("fd10::/16", "fd22::/64"),
    };
    for role in [Role::Client, Role::Outside] {
        ip(plan, role, &format!("route add {apps} via {}", who.node))?;
        ip(plan, role, &format!("route add {gateway} via {}", who.node))?;
    }
    ip(
        plan,
        Role::App1,
        &format!("route add default via {}", who.node_app1),
    )?;
    ip(
        plan,
        Role::App2,
        &format!("route add default via {}", who.node_app2),
    )
}

fn ip(plan: &Plan, role: Role, words: &str) -> Result<()> {
    let family = if words.contains("::") { "-6" } else { "-4" };
    let netns = plan.netns(role);
    let args = ["-n", &netns, family]
        .into_iter()
        .chain(words.split_whitespace());
    shell::run("ip", args).map(drop)
}

fn sysctl(plan: &Plan, role: Role, setting: &str) -> Result<()> {
    in_host(plan, role, "sysctl", &format!("-qw {setting}"))
}

fn in_host(plan: &Plan, role: Role, program: &str, words: &str) -> Result<()> {
    let netns = format!("--net={}", plan.netns_path(role).display());
    let args = [netns.as_str(), "--", program]
        .into_iter()
        .chain(words.split_whitespace());
    shell::run("nsenter", args).map(drop)
}
