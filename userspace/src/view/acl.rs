//! ACL entries, as `acl list` shows them: in the words of `[[acl]]`.
//!
//! The kernel has one entry a protocol, and a CIDR carries the rules of those around it; both are
//! taken back here, so that the list reads like the rules it was made of.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fsm_common::policy::{AclValue, CIDR_RULES, CidrRule, CidrRules, PROTO_OTHER, acl};
use fsm_common::wire::l3::IpProto;
use ipnet::IpNet;
use serde::Serialize;

use super::{Row, proto};
use crate::config::PortRange;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AclRow {
    /// Address or CIDR.
    pub addr: String,
    /// A port, a range, or 0 for any.
    pub port: PortText,
    /// `tcp`, `udp`, `icmp`, `other` or `any`.
    pub proto: Cow<'static, str>,
    /// `trusted`, `audit` or `deny`.
    pub action: &'static str,
    /// Owner tag.
    pub id: u16,
}

/// A port as `[[acl]]` has it: a number, 0 for any, or a range in text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum PortText {
    /// One port, or 0.
    One(u16),
    /// `FIRST-LAST`.
    Range(String),
}

/// A rule without its protocol.
type Rule = (IpNet, PortRange, u8, u16);

/// The rules behind the entries of one family: exact ones (address, port, protocol) and CIDRs.
pub fn rows(exact: &[(IpAddr, u16, u8, AclValue)], cidrs: &[(IpNet, CidrRules)]) -> Vec<AclRow> {
    let mut rules: BTreeMap<(IpNet, u16, u16, u8, u16), Vec<u8>> = BTreeMap::new();
    let mut add = |(net, ports, action, id): Rule, proto| {
        rules
            .entry((net, ports.first, ports.last, action, id))
            .or_default()
            .push(proto);
    };
    for (addr, port, proto, value) in exact {
        let ports = if *port == 0 {
            PortRange::ANY
        } else {
            PortRange::one(*port)
        };
        add((IpNet::from(*addr), ports, value.acl, value.id), *proto);
    }
    let by_net: HashMap<IpNet, &CidrRules> =
        cidrs.iter().map(|(net, rules)| (*net, rules)).collect();
    for (net, of_net) in cidrs {
        for rule in in_use(of_net).filter(|rule| !is_inherited(*net, rule, &by_net)) {
            let ports = PortRange {
                first: rule.port_lo,
                last: rule.port_hi,
            };
            add((*net, ports, rule.acl, rule.id), rule.proto);
        }
    }
    let mut rows = Vec::new();
    for ((net, first, last, action, id), protos) in rules {
        for proto in merge(protos) {
            rows.push(row((net, PortRange { first, last }, action, id), proto));
        }
    }
    rows
}

fn in_use(rules: &CidrRules) -> impl Iterator<Item = &CidrRule> {
    rules.rules[..(rules.len as usize).min(CIDR_RULES)].iter()
}

/// Whether a rule of `net` is there because a network around it has it.
fn is_inherited(net: IpNet, rule: &CidrRule, by_net: &HashMap<IpNet, &CidrRules>) -> bool {
    let mut around = net.supernet();
    while let Some(outer) = around {
        if by_net
            .get(&outer)
            .is_some_and(|rules| in_use(rules).any(|other| other == rule))
        {
            return true;
        }
        around = outer.supernet();
    }
    false
}

/// The protocols' names; all four of an `any` rule are one again.
fn merge(mut protos: Vec<u8>) -> Vec<Cow<'static, str>> {
    protos.sort_unstable();
    protos.dedup();
    let has = |proto: IpProto| protos.contains(&proto.0);
    let icmp = has(IpProto::ICMP) || has(IpProto::ICMPV6);
    let every = has(IpProto::TCP) && has(IpProto::UDP) && icmp && has(IpProto(PROTO_OTHER));
    if every || protos.contains(&0) {
        return vec!["any".into()];
    }
    protos.into_iter().map(proto).collect()
}

fn row((net, ports, action, id): Rule, proto: Cow<'static, str>) -> AclRow {
    let is_host = net.prefix_len() == net.max_prefix_len();
    AclRow {
        addr: if is_host {
            net.addr().to_string()
        } else {
            net.to_string()
        },
        port: match ports.single() {
            Some(port) => PortText::One(port),
            None if ports.is_any() => PortText::One(0),
            None => PortText::Range(ports.to_string()),
        },
        proto,
        action: action_name(action),
        id,
    }
}

const fn action_name(number: u8) -> &'static str {
    match number {
        acl::DENY => "deny",
        acl::AUDIT => "audit",
        acl::TRUSTED => "trusted",
        // The kernel takes what it does not know for no entry.
        _ => "unknown",
    }
}

impl Row for AclRow {
    const HEAD: &'static [&'static str] = &["ADDRESS", "PORT", "PROTO", "ACTION", "ID"];

    fn cells(&self) -> Vec<String> {
        let port = match &self.port {
            PortText::One(0) => "any".to_owned(),
            PortText::One(port) => port.to_string(),
            PortText::Range(range) => range.clone(),
        };
        vec![
            self.addr.clone(),
            port,
            self.proto.clone().into_owned(),
            self.action.to_owned(),
            self.id.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(acl: u8, id: u16) -> AclValue {
        AclValue {
            acl,
            flag: 0,
            id,
            pad: [0; 4],
        }
    }

    fn cidr(net: &str, rules: &[CidrRule]) -> (IpNet, CidrRules) {
        let mut value = CidrRules {
            len: rules.len() as u32,
            ..CidrRules::ZERO
        };
        value.rules[..rules.len()].copy_from_slice(rules);
        (net.parse().unwrap(), value)
    }

    #[test]
    fn a_rule_for_any_protocol_is_one_row() {
        let addr: IpAddr = "10.0.0.1".parse().unwrap();
        let entries: Vec<_> = [6, 17, 1, 255]
            .map(|proto| (addr, 0, proto, value(2, 7)))
            .into();
        let rows = rows(&entries, &[]);
        let json = serde_json::to_value(&rows).unwrap();
        let expected = serde_json::json!([
            {"addr": "10.0.0.1", "port": 0, "proto": "any", "action": "trusted", "id": 7},
        ]);
        assert_eq!(json, expected);
        assert_eq!(rows[0].cells(), ["10.0.0.1", "any", "any", "trusted", "7"]);
    }

    #[test]
    fn rules_of_one_protocol_stay_apart() {
        let addr: IpAddr = "fd00::1".parse().unwrap();
        let rows = rows(
            &[(addr, 80, 6, value(0, 0)), (addr, 80, 17, value(0, 0))],
            &[],
        );
        let protos: Vec<_> = rows.iter().map(|row| row.proto.as_ref()).collect();
        assert_eq!(protos, ["tcp", "udp"]);
        assert_eq!(rows[0].action, "deny");
    }

    #[test]
    fn a_cidr_does_not_show_what_it_inherits() {
        let deny = CidrRule {
            port_lo: 8000,
            port_hi: 8099,
            proto: 6,
            acl: 0,
            id: 1,
        };
        let trust = CidrRule {
            port_lo: 0,
            port_hi: 65535,
            proto: 0,
            acl: 2,
            id: 2,
        };
        let nets = [
            cidr("10.0.0.0/8", &[trust]),
            cidr("10.1.0.0/16", &[deny, trust]),
        ];
        let rows = rows(&[], &nets);
        let texts: Vec<String> = rows.iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(
            texts,
            [
                "10.0.0.0/8 any any trusted 2",
                "10.1.0.0/16 8000-8099 tcp deny 1"
            ]
        );
    }
}
