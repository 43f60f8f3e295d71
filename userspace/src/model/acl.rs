//! ACL rules → hash entries for hosts, tries for networks and port ranges.
//!
//! The kernel asks exact (address, port), then (address, any port), then the longest prefix. So a host with a
//! port range goes into the trie with *all* its rules but the exact ports, else its any-port rule would hide
//! the range; and each prefix carries the rules of the prefixes around it, after its own.

use std::collections::{BTreeMap, HashMap};

use fsm_common::policy::{
    Acl4Key, Acl6Key, AclValue, CIDR_RULES, CidrRule, CidrRules, PROTO_OTHER, acl, kind,
};
use fsm_common::{maps::sys, wire::l3::IpProto};
use ipnet::IpNet;

use super::{Model, ModelError};
use crate::config::{Acl, AclAction, AclProto, Family};

/// Adds the rules to the model; of two with the same key the later one counts.
pub fn compile(model: &mut Model, rules: &[Acl]) -> Result<(), ModelError> {
    let mut by_key = HashMap::new();
    let mut order = Vec::new();
    for rule in rules {
        if by_key.insert(rule.key(), *rule).is_none() {
            order.push(rule.key());
        }
    }
    let rules: Vec<Acl> = order.iter().map(|key| by_key[key]).collect();
    let is_host = |rule: &Acl| rule.addr.prefix_len() == rule.addr.max_prefix_len();
    let is_range = |rule: &Acl| !rule.port.is_any() && rule.port.single().is_none();
    let ranged: std::collections::HashSet<_> = rules
        .iter()
        .filter(|r| is_host(r) && is_range(r))
        .map(|r| r.addr)
        .collect();
    let in_hash = |rule: &Acl| {
        is_host(rule) && !is_range(rule) && (!rule.port.is_any() || !ranged.contains(&rule.addr))
    };
    // A rule for any protocol first, so that one which names it takes its place.
    let (any, named): (Vec<_>, Vec<_>) = rules
        .iter()
        .filter(|r| in_hash(r))
        .partition(|r| r.proto == AclProto::Any);
    for rule in any.into_iter().chain(named) {
        add_host(model, rule);
    }
    let mut networks: BTreeMap<IpNet, Vec<Acl>> = BTreeMap::new();
    for rule in rules.iter().filter(|r| !in_hash(r)) {
        networks.entry(rule.addr).or_default().push(*rule);
    }
    add_networks(model, networks)
}

fn protocols(rule: &Acl) -> Vec<u8> {
    let icmp = match Family::of(&rule.addr.addr()) {
        Family::Ipv4 => IpProto::ICMP.0,
        Family::Ipv6 => IpProto::ICMPV6.0,
    };
    match rule.proto {
        AclProto::Tcp => vec![IpProto::TCP.0],
        AclProto::Udp => vec![IpProto::UDP.0],
        AclProto::Icmp => vec![icmp],
        // Only these two have ports.
        AclProto::Any if !rule.port.is_any() => vec![IpProto::TCP.0, IpProto::UDP.0],
        AclProto::Any => vec![IpProto::TCP.0, IpProto::UDP.0, icmp, PROTO_OTHER],
    }
}

/// The number of an action in the maps.
pub fn action(action: AclAction) -> u8 {
    match action {
        AclAction::Deny => acl::DENY,
        AclAction::Audit => acl::AUDIT,
        AclAction::Trusted => acl::TRUSTED,
    }
}

fn add_host(model: &mut Model, rule: &Acl) {
    let port = rule.port.single().unwrap_or(0).to_be_bytes();
    let value = AclValue {
        acl: action(rule.action),
        flag: 0,
        id: rule.id,
        pad: [0; 4],
    };
    let kind = if port == [0, 0] {
        kind::ADDR4
    } else {
        kind::EXACT4
    };
    for proto in protocols(rule) {
        match rule.addr {
            IpNet::V4(net) => {
                let key = Acl4Key {
                    addr: net.addr().octets(),
                    port,
                    proto,
                    sys: sys::MESH,
                };
                model.acl4.insert(key, value);
                model.acl_kinds |= kind;
            }
            IpNet::V6(net) => {
                let key = Acl6Key {
                    addr: net.addr().octets(),
                    port,
                    proto,
                    sys: sys::MESH,
                    pad: [0; 4],
                };
                model.acl6.insert(key, value);
                model.acl_kinds |= kind << kind::V6_SHIFT;
            }
        }
    }
}

/// Walks the prefixes from the outside in (the order of `IpNet`), keeping those around the current one.
fn add_networks(model: &mut Model, networks: BTreeMap<IpNet, Vec<Acl>>) -> Result<(), ModelError> {
    let mut around: Vec<(IpNet, Vec<CidrRule>)> = Vec::new();
    for (prefix, mut own) in networks {
        while around
            .last()
            .is_some_and(|(outer, _)| !outer.contains(&prefix))
        {
            around.pop();
        }
        own.sort_by_key(|r| {
            (
                r.port.last - r.port.first,
                r.proto == AclProto::Any,
                r.port.first,
            )
        });
        let mut rules: Vec<CidrRule> = own.iter().flat_map(cidr_rules).collect();
        let is_last_word = |r: &CidrRule| r.proto == 0 && r.port_lo == 0 && r.port_hi == u16::MAX;
        if !rules.iter().any(is_last_word)
            && let Some((_, outer)) = around.last()
        {
            let hidden = |o: &CidrRule| {
                rules
                    .iter()
                    .any(|r| (r.proto, r.port_lo, r.port_hi) == (o.proto, o.port_lo, o.port_hi))
            };
            let inherited: Vec<_> = outer.iter().filter(|o| !hidden(o)).copied().collect();
            rules.extend(inherited);
        }
        if rules.len() > CIDR_RULES {
            return Err(ModelError::TooManyRules {
                prefix,
                count: rules.len(),
                max: CIDR_RULES,
            });
        }
        let mut value = CidrRules {
            len: rules.len() as u32,
            ..CidrRules::ZERO
        };
        value.rules[..rules.len()].copy_from_slice(&rules);
        let len = u32::from(prefix.prefix_len());
        match prefix {
            IpNet::V4(net) => {
                model.cidr4.insert((len, net.network().octets()), value);
                model.acl_kinds |= kind::CIDR4;
            }
            IpNet::V6(net) => {
                model.cidr6.insert((len, net.network().octets()), value);
                model.acl_kinds |= kind::CIDR4 << kind::V6_SHIFT;
            }
        }
        around.push((prefix, rules));
    }
    Ok(())
}

fn cidr_rules(rule: &Acl) -> Vec<CidrRule> {
    let make = |proto| CidrRule {
        port_lo: rule.port.first,
        port_hi: rule.port.last,
        proto,
        acl: action(rule.action),
        id: rule.id,
    };
    match rule.proto {
        AclProto::Any if rule.port.is_any() => vec![make(0)],
        _ => protocols(rule).into_iter().map(make).collect(),
    }
}
