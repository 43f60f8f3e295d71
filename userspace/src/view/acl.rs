//! ACL entries, as `acl list` shows them: in the words of `[[acl]]`.
//!
//! The kernel has one entry a protocol, and a CIDR carries the rules of those around it; both are
//! taken back here, so that the list reads like the rules it was made of.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fsm_common::policy::{AclValue, CIDR_RULES, CidrRule, CidrRules, PROTO_OTHER, acl, class};
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

/// What one entry says of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub addr: IpAddr,
    /// Its port; 0 for any.
    pub port: u16,
    /// IP protocol, or [`PROTO_OTHER`].
    pub proto: u8,
    /// One of [`acl`], never `SILENT`.
    pub acl: u8,
    /// Owner tag.
    pub id: u16,
}

/// What an entry of the maps says under this version of the policy, protocol by protocol.
pub fn entries(
    addr: IpAddr,
    port: u16,
    value: &AclValue,
    policy: u32,
) -> impl Iterator<Item = Entry> {
    let (word, ids) = (value.word(), value.ids);
    let icmp = match addr {
        IpAddr::V4(_) => IpProto::ICMP,
        IpAddr::V6(_) => IpProto::ICMPV6,
    };
    let classes = [
        (class::TCP, IpProto::TCP),
        (class::UDP, IpProto::UDP),
        (class::ICMP, icmp),
        (class::OTHER, IpProto(PROTO_OTHER)),
    ];
    classes.into_iter().filter_map(move |(class, proto)| {
        let acl = word.verdict(policy, class);
        (acl != acl::SILENT).then(|| Entry {
            addr,
            port,
            proto: proto.0,
            acl,
            id: ids[class as usize],
        })
    })
}

/// A rule without its protocol.
type Rule = (IpNet, PortRange, u8, u16);

/// The rules behind the entries: exact ones and CIDRs.
pub fn rows(exact: &[Entry], cidrs: &[(IpNet, CidrRules)]) -> Vec<AclRow> {
    let mut rules: BTreeMap<(IpNet, u16, u16, u8, u16), Vec<u8>> = BTreeMap::new();
    let mut add = |(net, ports, action, id): Rule, proto| {
        rules
            .entry((net, ports.first, ports.last, action, id))
            .or_default()
            .push(proto);
    };
    for entry in exact {
        let ports = if entry.port == 0 {
            PortRange::ANY
        } else {
            PortRange::one(entry.port)
        };
        add(
            (IpNet::from(entry.addr), ports, entry.acl, entry.id),
            entry.proto,
        );
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

    fn entry(addr: &str, port: u16, proto: u8, acl: u8, id: u16) -> Entry {
        let addr = addr.parse().unwrap();
        Entry {
            addr,
            port,
            proto,
            acl,
            id,
        }
    }

    #[test]
    fn an_entry_says_what_is_in_force_of_each_protocol() {
        let value = AclValue {
            from: 5,
            now: AclValue::with(AclValue::NOTHING, class::UDP, acl::DENY),
            was: AclValue::with(AclValue::NOTHING, class::ICMP, acl::TRUSTED),
            tag: 0,
            ids: [1, 2, 3, 4],
        };
        let said = |policy| -> Vec<Entry> {
            entries("10.0.0.1".parse().unwrap(), 0, &value, policy).collect()
        };
        assert_eq!(said(5), [entry("10.0.0.1", 0, 17, acl::DENY, 2)]);
        assert_eq!(said(4), [entry("10.0.0.1", 0, 1, acl::TRUSTED, 3)]);
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
        let entries = [6, 17, 1, 255].map(|proto| entry("10.0.0.1", 0, proto, 2, 7));
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
        let entries = [6, 17].map(|proto| entry("fd00::1", 80, proto, 0, 0));
        let rows = rows(&entries, &[]);
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
