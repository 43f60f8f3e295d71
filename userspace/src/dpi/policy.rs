//! `[[dpi.policy]]`, compiled: the first policy that matches a flow decides; none allows. One pass over the list for a
//! flow, again when its protocol becomes known and when the list has changed.

use std::net::IpAddr;

use fsm_common::wire::l3::IpProto;
use ipnet::IpNet;

use crate::config::{AclProto, Dpi, Peer, PolicyAction, ProtoPorts};

/// What is known of a flow's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet: it is still looked for.
    NotYet,
    /// It will not be known.
    Never,
    /// This one.
    App(&'static str),
}

/// A flow, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Who opened it.
    pub client: IpAddr,
    /// To whom.
    pub server: IpAddr,
    /// The server's port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Its protocol.
    pub app: Known,
}

/// What is to be done with a flow, and the policy that says so, by its number in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A policy that names protocols matches, and the flow's is not known yet.
    Undecided,
    /// It goes on.
    Allow,
    /// It is reported.
    Violate(u32),
    /// It is stopped.
    Deny(u32),
}

#[derive(Clone, Debug)]
enum Peers {
    Any,
    Nets(Vec<IpNet>),
}

impl Peers {
    fn compile(dpi: &Dpi, peer: &Peer, at: usize) -> Result<Self, String> {
        match peer {
            Peer::Any => Ok(Self::Any),
            Peer::Net(net) => Ok(Self::Nets(vec![*net])),
            Peer::Group(name) => match dpi.groups.get(name) {
                Some(nets) => Ok(Self::Nets(nets.clone())),
                None => Err(format!("dpi.policy[{at}]: there is no group {name:?}")),
            },
            Peer::Fqdn(name) => Err(format!(
                "dpi.policy[{at}]: the domain name {name:?} cannot be a peer: not built yet"
            )),
        }
    }

    fn contains(&self, addr: &IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Nets(nets) => nets.iter().any(|net| net.contains(addr)),
        }
    }
}

#[derive(Clone, Debug)]
struct Policy {
    from: Peers,
    to: Peers,
    ports: Vec<ProtoPorts>,
    apps: Vec<String>,
    action: PolicyAction,
}

/// All of them. Never changed: a new list takes its place.
#[derive(Clone, Debug, Default)]
pub struct Policies(Vec<Policy>);

impl Policies {
    /// From the configuration.
    ///
    /// # Errors
    /// Names the policy that cannot be.
    pub fn compile(dpi: &Dpi) -> Result<Self, String> {
        let compile = |(at, policy): (usize, &crate::config::Policy)| {
            Ok(Policy {
                from: Peers::compile(dpi, &policy.from, at)?,
                to: Peers::compile(dpi, &policy.to, at)?,
                ports: policy.ports.clone(),
                apps: policy.apps.clone(),
                action: policy.action,
            })
        };
        let all = dpi.policy.iter().enumerate().map(compile);
        all.collect::<Result<_, String>>().map(Self)
    }

    /// What the first policy that matches says.
    pub fn judge(&self, flow: &Flow) -> Decision {
        let is_icmp = |proto| proto == IpProto::ICMP.0 || proto == IpProto::ICMPV6.0;
        let is_port = |ports: &ProtoPorts| {
            let is_proto = match ports.proto {
                AclProto::Any => true,
                AclProto::Tcp => flow.proto == IpProto::TCP.0,
                AclProto::Udp => flow.proto == IpProto::UDP.0,
                AclProto::Icmp => is_icmp(flow.proto),
            };
            is_proto && ports.ports.contains(flow.port)
        };
        for (at, policy) in self.0.iter().enumerate() {
            let is_match = (policy.ports.is_empty() || policy.ports.iter().any(is_port))
                && policy.from.contains(&flow.client)
                && policy.to.contains(&flow.server);
            let is_app = match flow.app {
                _ if policy.apps.is_empty() => true,
                Known::App(app) => policy.apps.iter().any(|name| name == app),
                Known::Never => false,
                Known::NotYet if is_match => return Decision::Undecided,
                Known::NotYet => false,
            };
            if is_match && is_app {
                return match policy.action {
                    PolicyAction::Allow => Decision::Allow,
                    PolicyAction::Violate => Decision::Violate(at as u32),
                    PolicyAction::Deny => Decision::Deny(at as u32),
                };
            }
        }
        Decision::Allow
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::path::Path;

    /// The policies of a configuration with this `[dpi]` in it.
    pub fn compile(text: &str) -> Result<Policies, String> {
        let text = format!("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n{text}");
        let config = crate::config::parse(&text, Path::new("node.toml"));
        Policies::compile(&config.unwrap_or_else(|errors| panic!("{errors}")).dpi)
    }

    const ALL: &str = r#"
        [dpi.groups]
        web = ["20.0.0.0/24", "fd20::/64"]
        [[dpi.policy]]
        from = "10.0.0.0/24"
        to = "web"
        ports = ["tcp/80", "tcp/8000-8099"]
        apps = ["http"]
        action = "allow"
        [[dpi.policy]]
        to = "web"
        ports = ["tcp/any"]
        apps = ["http", "tls"]
        action = "deny"
        [[dpi.policy]]
        ports = ["icmp"]
        action = "violate"
        [[dpi.policy]]
        from = "10.0.0.9"
        action = "deny"
    "#;

    fn flow(client: &str, server: &str, port: u16, proto: u8, app: Known) -> Flow {
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        Flow {
            client,
            server,
            port,
            proto,
            app,
        }
    }

    #[test]
    fn the_first_that_matches_decides() {
        use Decision::{Allow, Deny, Undecided, Violate};
        use Known::{App, Never, NotYet};
        let policies = compile(ALL).unwrap();
        for (client, server, port, proto, app, want) in [
            ("10.0.0.1", "20.0.0.1", 80, 6, NotYet, Undecided),
            ("10.0.0.1", "20.0.0.1", 80, 6, App("http"), Allow),
            ("10.0.0.1", "20.0.0.1", 8100, 6, App("http"), Deny(1)),
            ("10.0.1.1", "20.0.0.1", 80, 6, App("http"), Deny(1)),
            ("fd00::1", "fd20::1", 443, 6, App("tls"), Deny(1)),
            ("fd00::1", "fd20::1", 443, 6, App("ssh"), Allow),
            ("10.0.0.1", "20.0.0.1", 80, 6, Never, Allow),
            ("10.0.0.9", "20.0.0.1", 80, 6, Never, Deny(3)),
            ("10.0.0.9", "20.0.0.1", 80, 6, NotYet, Undecided),
            ("10.0.0.9", "20.0.0.1", 80, 17, NotYet, Deny(3)),
            ("10.0.0.9", "20.0.0.1", 0, 1, Never, Violate(2)),
            ("fd00::1", "fd20::1", 0, 58, Never, Violate(2)),
            ("10.0.0.8", "30.0.0.1", 53, 17, NotYet, Allow),
        ] {
            let flow = flow(client, server, port, proto, app);
            assert_eq!(policies.judge(&flow), want, "{flow:?}");
        }
    }

    #[test]
    fn domain_names_are_refused_for_now() {
        let text = "[[dpi.policy]]\naction = \"allow\"\n[[dpi.policy]]\nto = \"*.example.org\"\naction = \"deny\"\n";
        let error = compile(text).unwrap_err();
        assert!(
            error.contains("dpi.policy[1]") && error.contains("not built yet"),
            "{error}"
        );
    }
}
