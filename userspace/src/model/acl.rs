//! ACL rules → hash entries for hosts, tries for networks and port ranges.
//!
//! The kernel asks exact (address, port), then (address, any port), then the longest prefix. So a host with a
//! port range goes into the trie with *all* its rules but the exact ports, else its any-port rule would hide
//! the range; and each prefix carries the rules of the prefixes around it, after its own.

use std::{collections::HashMap, sync::Arc};

use fsm_common::policy::{
    Acl4Key, Acl6Key, AclValue, CIDR_RULES, Cidr4Key, Cidr6Key, CidrRule, CidrRules, acl, class,
    kind,
};
use fsm_common::{maps::sys, wire::l3::IpProto};
use ipnet::IpNet;

use super::{Model, ModelError, table::Table};
use crate::config::{Acl, AclAction, AclProto};

/// What an address, or one port of it, gets: an entry of `fsm_xacl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Verdicts as in [`AclValue::now`].
    pub acl: u8,
    /// Owner tags by [`class`].
    pub ids: [u16; class::COUNT],
}

impl Said {
    /// Nothing of any protocol.
    pub const NOTHING: Self = Self {
        acl: AclValue::NOTHING,
        ids: [0; class::COUNT],
    };
}

/// What a prefix gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rules {
    /// One rule, which the trie itself holds.
    One(CidrRule),
    /// A set of `fsm_cidr_set`, shared by all prefixes that have it.
    Many(Arc<CidrRules>),
}

impl Rules {
    /// The rules, first match first.
    pub fn list(&self) -> &[CidrRule] {
        match self {
            Self::One(rule) => std::slice::from_ref(rule),
            Self::Many(rules) => rules.in_use(),
        }
    }
}

/// Adds the rules to the model; of two with the same key the later one counts.
pub fn compile(model: &mut Model, rules: &[&[Acl]]) -> Result<(), ModelError> {
    let rule = |at: Place| &rules[at.list as usize][at.index as usize];
    let mut places = [Vec::new(), Vec::new()];
    for (list, of_list) in (0..).zip(rules) {
        for (index, rule) in (0..).zip(*of_list) {
            let family = usize::from(matches!(rule.addr, IpNet::V6(_)));
            places[family].push((net(&rule.addr), Place { list, index }));
        }
    }
    for (family, mut places) in places.into_iter().enumerate() {
        // From the outside in; within a network in the order that they were given in.
        places.sort_unstable();
        let mut compiler = Compiler {
            shift: kind::V6_SHIFT * family as u32,
            ..Compiler::default()
        };
        for group in places.chunk_by(|a, b| a.0 == b.0) {
            compiler.group.clear();
            compiler
                .group
                .extend(group.iter().map(|(_, at)| *rule(*at)));
            compiler.add_group()?;
        }
        model.acl_kinds |= compiler.kinds;
        let Compiler { hosts, nets, .. } = compiler;
        if family == 0 {
            let host = |(addr, port): (u128, u16)| Acl4Key {
                addr: ((addr >> 96) as u32).to_be_bytes(),
                port: port.to_be_bytes(),
                proto: 0,
                sys: sys::MESH,
            };
            model.acl4 = Table::new(hosts.into_iter().map(|(at, v)| (host(at), v)).collect());
            let net = |(addr, prefix_len): (u128, u32)| Cidr4Key {
                prefix_len,
                addr: ((addr >> 96) as u32).to_be_bytes(),
            };
            model.cidr4 = Table::new(nets.into_iter().map(|(at, v)| (net(at), v)).collect());
        } else {
            let host = |(addr, port): (u128, u16)| Acl6Key {
                addr: addr.to_be_bytes(),
                port: port.to_be_bytes(),
                proto: 0,
                sys: sys::MESH,
                pad: [0; 4],
            };
            model.acl6 = Table::new(hosts.into_iter().map(|(at, v)| (host(at), v)).collect());
            let net = |(addr, prefix_len): (u128, u32)| Cidr6Key {
                prefix_len,
                addr: addr.to_be_bytes(),
                pad: [0; 4],
            };
            model.cidr6 = Table::new(nets.into_iter().map(|(at, v)| (net(at), v)).collect());
        }
    }
    Ok(())
}

/// A rule's place: eight bytes are sorted where a rule has 28.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    list: u32,
    index: u32,
}

/// The network's address, its first bit in front, and its length.
fn net(net: &IpNet) -> (u128, u32) {
    let addr = match net {
        IpNet::V4(net) => u128::from(u32::from(net.network())) << 96,
        IpNet::V6(net) => u128::from(net.network()),
    };
    (addr, net.prefix_len().into())
}

/// The rules of one family, network by network from the outside in.
#[derive(Default)]
struct Compiler {
    /// [`kind::V6_SHIFT`] for IPv6.
    shift: u32,
    kinds: u32,
    /// The rules of the network at hand.
    group: Vec<Acl>,
    hosts: Vec<((u128, u16), Said)>,
    nets: Vec<((u128, u32), Rules)>,
    /// Places in `nets` of the prefixes around the one at hand.
    around: Vec<usize>,
    sets: HashMap<CidrRules, Arc<CidrRules>>,
}

impl Compiler {
    fn add_group(&mut self) -> Result<(), ModelError> {
        let mut group = std::mem::take(&mut self.group);
        if group.len() > 1 {
            keep_last(&mut group);
        }
        let prefix = group[0].addr;
        if prefix.prefix_len() == prefix.max_prefix_len() {
            let is_range = |rule: &Acl| !rule.port.is_any() && rule.port.single().is_none();
            let ranged = group.iter().any(is_range);
            let in_hash = |rule: &Acl| !is_range(rule) && (!rule.port.is_any() || !ranged);
            self.add_host(&prefix, group.iter().filter(|rule| in_hash(rule)));
            group.retain(|rule| !in_hash(rule));
        }
        if !group.is_empty() {
            self.add_network(prefix, &mut group)?;
        }
        self.group = group;
        Ok(())
    }

    /// Hash entries of one address.
    fn add_host<'r>(&mut self, addr: &IpNet, rules: impl Iterator<Item = &'r Acl>) {
        let (addr, _) = net(addr);
        let mut rules: Vec<(u16, &Acl)> = rules
            .map(|rule| (rule.port.single().unwrap_or(0), rule))
            .collect();
        // A rule for any protocol first, so that one which names it takes its place.
        rules.sort_by_key(|(port, rule)| (*port, rule.proto != AclProto::Any));
        for of_port in rules.chunk_by(|a, b| a.0 == b.0) {
            let port = of_port[0].0;
            let mut said = Said::NOTHING;
            for (_, rule) in of_port {
                for class in classes(rule) {
                    said.acl = AclValue::with(said.acl, *class, action(rule.action));
                    said.ids[*class as usize] = rule.id;
                }
            }
            self.hosts.push(((addr, port), said));
            self.kinds |= match port {
                0 => kind::ADDR4 << self.shift,
                _ => kind::EXACT4 << self.shift,
            };
        }
    }

    /// The trie entry of one prefix.
    fn add_network(&mut self, prefix: IpNet, own: &mut [Acl]) -> Result<(), ModelError> {
        let at = net(&prefix);
        let contains = |outer: (u128, u32)| {
            outer.1 <= at.1 && (outer.1 == 0 || (outer.0 ^ at.0) >> (128 - outer.1) == 0)
        };
        while self
            .around
            .last()
            .is_some_and(|outer| !contains(self.nets[*outer].0))
        {
            self.around.pop();
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
            && let Some(outer) = self.around.last()
        {
            let own = rules.len();
            for rule in self.nets[*outer].1.list() {
                let same = |o: &CidrRule| {
                    (o.proto, o.port_lo, o.port_hi) == (rule.proto, rule.port_lo, rule.port_hi)
                };
                if !rules[..own].iter().any(same) {
                    rules.push(*rule);
                }
            }
        }
        let rules = self.share(prefix, &rules)?;
        self.kinds |= kind::CIDR4 << self.shift;
        self.around.push(self.nets.len());
        self.nets.push((at, rules));
        Ok(())
    }

    /// One rule as it is, more of them as a set that others may have too.
    fn share(&mut self, prefix: IpNet, rules: &[CidrRule]) -> Result<Rules, ModelError> {
        if let [rule] = rules {
            return Ok(Rules::One(*rule));
        }
        if rules.len() > CIDR_RULES {
            return Err(ModelError::TooManyRules {
                prefix,
                count: rules.len(),
                max: CIDR_RULES,
            });
        }
        let mut set = CidrRules {
            len: rules.len() as u32,
            ..CidrRules::ZERO
        };
        set.rules[..rules.len()].copy_from_slice(rules);
        let shared = self.sets.entry(set).or_insert_with(|| Arc::new(set));
        Ok(Rules::Many(Arc::clone(shared)))
    }
}

/// Of rules with the same key the last one.
fn keep_last(group: &mut Vec<Acl>) {
    let mut at = 0;
    while at < group.len() {
        let key = group[at].key();
        if group[at + 1..].iter().any(|later| later.key() == key) {
            group.remove(at);
        } else {
            at += 1;
        }
    }
}

fn classes(rule: &Acl) -> &'static [u32] {
    match rule.proto {
        AclProto::Tcp => &[class::TCP],
        AclProto::Udp => &[class::UDP],
        AclProto::Icmp => &[class::ICMP],
        // Only these two have ports.
        AclProto::Any if !rule.port.is_any() => &[class::TCP, class::UDP],
        AclProto::Any => &[class::TCP, class::UDP, class::ICMP, class::OTHER],
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

fn cidr_rules(rule: &Acl) -> Vec<CidrRule> {
    let make = |proto: IpProto| CidrRule {
        port_lo: rule.port.first,
        port_hi: rule.port.last,
        proto: proto.0,
        acl: action(rule.action),
        id: rule.id,
    };
    let icmp = match rule.addr {
        IpNet::V4(_) => IpProto::ICMP,
        IpNet::V6(_) => IpProto::ICMPV6,
    };
    match rule.proto {
        AclProto::Any if rule.port.is_any() => vec![make(IpProto(0))],
        AclProto::Any => vec![make(IpProto::TCP), make(IpProto::UDP)],
        AclProto::Tcp => vec![make(IpProto::TCP)],
        AclProto::Udp => vec![make(IpProto::UDP)],
        AclProto::Icmp => vec![make(icmp)],
    }
}
