//! The lab on paper: who is in it, their addresses, names and paths. Nothing here touches the host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use super::error::{Error, Result};

/// One host of the lab; each is a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Where requests from outside come from.
    Client,
    /// Where the servers outside are.
    Outside,
    /// The bridge between client, outside and the node's uplink.
    Wire,
    /// The node: data path, gateway, DNS.
    Node,
    /// First app behind the node.
    App1,
    /// Second app behind the node.
    App2,
}

impl Role {
    /// All hosts.
    pub const ALL: [Role; 6] = [
        Role::Client,
        Role::Outside,
        Role::Wire,
        Role::Node,
        Role::App1,
        Role::App2,
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Client => "client",
            Role::Outside => "outside",
            Role::Wire => "wire",
            Role::Node => "node",
            Role::App1 => "app1",
            Role::App2 => "app2",
        })
    }
}

/// Address family of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The lab's addresses in this family.
    pub fn addresses(self) -> &'static Addresses {
        match self {
            Family::V4 => &V4,
            Family::V6 => &V6,
        }
    }
}

/// Everyone's addresses in one family.
#[derive(Debug)]
pub struct Addresses {
    /// The ordinary client: its traffic to apps goes through the gateway.
    pub client: IpAddr,
    /// A client that the ACL trusts: goes to apps directly.
    pub client_trusted: IpAddr,
    /// A client that the ACL denies.
    pub client_denied: IpAddr,
    /// The server outside.
    pub outside: IpAddr,
    /// The same server's second address: same source port, other destination.
    pub outside_second: IpAddr,
    /// The same server's address that the ACL denies.
    pub outside_denied: IpAddr,
    /// A resolver that does not exist; only interception answers for it.
    pub resolver: IpAddr,
    /// The node towards the wire.
    pub node: IpAddr,
    /// The node towards app1.
    pub node_app1: IpAddr,
    /// The node towards app2.
    pub node_app2: IpAddr,
    /// First app.
    pub app1: IpAddr,
    /// Second app.
    pub app2: IpAddr,
    /// The gateway's own address on the node.
    pub gateway: IpAddr,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(net: u16, subnet: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(net, subnet, 0, 0, 0, 0, 0, host))
}

static V4: Addresses = Addresses {
    client: v4(20, 0, 0, 10),
    client_trusted: v4(20, 0, 0, 11),
    client_denied: v4(20, 0, 0, 99),
    outside: v4(20, 0, 0, 2),
    outside_second: v4(20, 0, 0, 3),
    outside_denied: v4(20, 0, 0, 66),
    resolver: v4(20, 0, 0, 53),
    node: v4(20, 0, 0, 1),
    node_app1: v4(10, 1, 0, 1),
    node_app2: v4(10, 2, 0, 1),
    app1: v4(10, 1, 0, 2),
    app2: v4(10, 2, 0, 2),
    gateway: v4(192, 168, 226, 22),
};

static V6: Addresses = Addresses {
    client: v6(0xfd20, 0, 0x10),
    client_trusted: v6(0xfd20, 0, 0x11),
    client_denied: v6(0xfd20, 0, 0x99),
    outside: v6(0xfd20, 0, 0x2),
    outside_second: v6(0xfd20, 0, 0x3),
    outside_denied: v6(0xfd20, 0, 0x66),
    resolver: v6(0xfd20, 0, 0x53),
    node: v6(0xfd20, 0, 0x1),
    node_app1: v6(0xfd10, 1, 0x1),
    node_app2: v6(0xfd10, 2, 0x1),
    app1: v6(0xfd10, 1, 0x2),
    app2: v6(0xfd10, 2, 0x2),
    gateway: v6(0xfd22, 0, 0x22),
};

/// Port numbers, the same in both families.
pub mod port {
    /// The server outside.
    pub const OUTSIDE_WEB: u16 = 8080;
    /// The server outside, excluded from interception.
    pub const OUTSIDE_EXCLUDED: u16 = 9999;
    /// UDP echo outside.
    pub const ECHO: u16 = 7777;
    /// The apps' server.
    pub const APP_WEB: u16 = 80;
    /// The apps' server; the ACL trusts the apps to each other on this port.
    pub const APP_TRUSTED: u16 = 8081;
    /// The apps' server, excluded from interception.
    pub const APP_EXCLUDED: u16 = 9998;
    /// Gateway listener for what apps send.
    pub const GATEWAY_OUTBOUND: u16 = 15001;
    /// Gateway listener for what apps receive.
    pub const GATEWAY_INBOUND: u16 = 15003;
    /// Gateway listener for UDP.
    pub const GATEWAY_UDP: u16 = 15007;
    /// Gateway listener for DNS.
    pub const GATEWAY_DNS: u16 = 15053;
}

/// Uplink of the node.
pub const UPLINK: &str = "up0";

/// Names and paths that belong to one lab.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The lab's name, prefix of everything that it makes.
    pub name: String,
}

impl Plan {
    /// A plan under a name that is safe as part of namespaces, paths and a cgroup.
    pub fn new(name: &str) -> Result<Plan> {
        let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        if !begins || name.len() > 24 || !name.chars().all(safe) {
            return Err(Error::BadName(name.to_owned()));
        }
        Ok(Plan {
            name: name.to_owned(),
        })
    }

    /// Name of a host's namespace.
    pub fn netns(&self, role: Role) -> String {
        format!("{}-{role}", self.name)
    }

    /// File that stands for a host's namespace.
    pub fn netns_path(&self, role: Role) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(role))
    }

    /// Folder of everything that the lab writes.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/run").join(&self.name)
    }

    /// A file or folder in [`Plan::dir`].
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir().join(file)
    }

    /// The node's configuration.
    pub fn config(&self) -> PathBuf {
        self.path("node.toml")
    }
}

/// `address:port`, with brackets where IPv6 needs them.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_are_refused() {
        for bad in [
            "",
            "../etc",
            "a/b",
            "Lab",
            "-lab",
            "1lab",
            "a b",
            &"x".repeat(25),
        ] {
            assert!(Plan::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            Plan::new("fsm-lab").unwrap().netns(Role::App1),
            "fsm-lab-app1"
        );
    }
}
