//! Whatever the change, and wherever in it one looks: a packet is judged by all of the old rules or by all of the
//! new ones. The kernel's tables are hash maps here, and are looked at after every single write.

use std::net::{Ipv4Addr, Ipv6Addr};

use fsm_common::policy::{AclTables, PROTO_OTHER, acl, decide};
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::config::{Acl, AclAction, AclProto, PortRange};
use crate::model::acl::{action, compile};

/// The kernel's tables.
#[derive(Default, Clone)]
struct Kernel {
    acl4: HashMap<Acl4Key, AclValue>,
    acl6: HashMap<Acl6Key, AclValue>,
    cidr4: HashMap<Cidr4Key, CidrValue>,
    cidr6: HashMap<Cidr6Key, CidrValue>,
    sets: HashMap<u32, CidrRules>,
    skip4: HashMap<Cidr4Key, Skip>,
    ports: HashMap<u16, Skip>,
}

/// The tables as a program sees them that has read these settings.
struct At<'k> {
    kernel: &'k Kernel,
    policy: u32,
    kinds: u32,
}

impl At<'_> {
    fn rules(&self, value: Option<&CidrValue>, proto: u8, port: u16) -> u8 {
        let Some(value) = value else {
            return acl::SILENT;
        };
        let rule = value.at(self.policy);
        match rule.acl {
            acl::SET => self.kernel.sets[&rule.number()].verdict(proto, port),
            _ => rule.verdict(proto, port),
        }
    }

    fn skip(&self, addr: &[u8; 4]) -> u8 {
        let found = longest4(&self.kernel.skip4, addr);
        found.map_or(0, |skip| skip.at(self.policy))
    }
}

fn longest4<'m, V>(map: &'m HashMap<Cidr4Key, V>, addr: &[u8; 4]) -> Option<&'m V> {
    (0..=32u32).rev().find_map(|prefix_len| {
        let mask = u32::MAX.checked_shl(32 - prefix_len).unwrap_or(0);
        let addr = (u32::from_be_bytes(*addr) & mask).to_be_bytes();
        map.get(&Cidr4Key { prefix_len, addr })
    })
}

impl AclTables<[u8; 4]> for At<'_> {
    fn exact(&self, addr: &[u8; 4], port: [u8; 2], class: u32) -> u8 {
        let key = Acl4Key {
            addr: *addr,
            port,
            proto: 0,
            sys: 1,
        };
        self.kernel.acl4.get(&key).map_or(acl::SILENT, |value| {
            assert_eq!(value.word().tag(), key.tag());
            value.word().verdict(self.policy, class)
        })
    }

    fn cidr(&self, addr: &[u8; 4], proto: u8, port: u16) -> u8 {
        self.rules(longest4(&self.kernel.cidr4, addr), proto, port)
    }

    fn kinds(&self) -> u32 {
        self.kinds
    }
}

impl AclTables<[u8; 16]> for At<'_> {
    fn exact(&self, addr: &[u8; 16], port: [u8; 2], class: u32) -> u8 {
        let key = Acl6Key {
            addr: *addr,
            port,
            sys: 1,
            ..Acl6Key::ZERO
        };
        let value = self.kernel.acl6.get(&key);
        value.map_or(acl::SILENT, |value| {
            value.word().verdict(self.policy, class)
        })
    }

    fn cidr(&self, addr: &[u8; 16], proto: u8, port: u16) -> u8 {
        let longest = (0..=128u32).rev().find_map(|prefix_len| {
            let mask = u128::MAX.checked_shl(128 - prefix_len).unwrap_or(0);
            let addr = (u128::from_be_bytes(*addr) & mask).to_be_bytes();
            let key = Cidr6Key {
                prefix_len,
                addr,
                pad: [0; 4],
            };
            self.kernel.cidr6.get(&key)
        });
        self.rules(longest, proto, port)
    }

    fn kinds(&self) -> u32 {
        self.kinds >> fsm_common::policy::kind::V6_SHIFT
    }
}

/// What the rules say, without any table: the exact port of an address, then what is left by longest prefix,
/// narrowest range, named protocol.
fn reference(rules: &[Acl], addr: IpNet, port: u16, proto: u8) -> u8 {
    let names = |rule: &Acl| match (rule.proto, proto) {
        (AclProto::Any, 6 | 17) => true,
        (AclProto::Any, _) => rule.port.is_any(),
        (AclProto::Tcp, 6) | (AclProto::Udp, 17) | (AclProto::Icmp, 1 | 58) => true,
        _ => false,
    };
    let is_exact = |rule: &Acl| rule.addr == addr && rule.port.single() == Some(port);
    let matching =
        |rule: &&Acl| rule.addr.contains(&addr) && rule.port.contains(port) && names(rule);
    let by_key: HashMap<_, _> = rules.iter().map(|rule| (rule.key(), rule)).collect();
    let order = |rule: &&Acl| {
        (
            !is_exact(rule),
            u8::MAX - rule.addr.prefix_len(),
            rule.port.last - rule.port.first,
            rule.proto == AclProto::Any,
            rule.port.first,
        )
    };
    let best = by_key.into_values().filter(matching).min_by_key(order);
    best.map_or(acl::SILENT, |rule| action(rule.action))
}

const PORTS: [u16; 4] = [0, 80, 85, 443];
const PROTOS: [u8; 3] = [6, 17, PROTO_OTHER];

fn addresses() -> Vec<IpNet> {
    let v4 = (0..4).map(|i| IpNet::from(std::net::IpAddr::from(Ipv4Addr::new(10, 0, 0, i))));
    let v6 = (0..4).map(|i| {
        IpNet::from(std::net::IpAddr::from(Ipv6Addr::new(
            0xfd00, 0, 0, 0, 0, 0, 0, i,
        )))
    });
    v4.chain(v6)
        .chain([
            "10.0.1.9/32".parse().unwrap(),
            "11.0.0.0/32".parse().unwrap(),
        ])
        .collect()
}

fn rule() -> impl Strategy<Value = Acl> {
    let v4 = [0u8, 8, 24, 30, 31, 32, 32];
    let v6 = [0u8, 16, 64, 126, 127, 128, 128];
    let port = prop_oneof![
        3 => Just(PortRange::ANY),
        2 => Just(PortRange::one(80)),
        1 => Just(PortRange::one(443)),
        1 => Just(PortRange { first: 80, last: 90 }),
        1 => Just(PortRange { first: 1, last: 1023 }),
    ];
    let proto = prop_oneof![
        2 => Just(AclProto::Any),
        1 => Just(AclProto::Tcp),
        1 => Just(AclProto::Udp),
    ];
    let action = prop_oneof![
        Just(AclAction::Deny),
        Just(AclAction::Audit),
        Just(AclAction::Trusted),
    ];
    (
        any::<bool>(),
        0usize..7,
        0u8..4,
        port,
        proto,
        action,
        0u16..2,
    )
        .prop_map(move |(is_v6, len, low, port, proto, action, id)| {
            let addr = if is_v6 {
                let addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into());
                IpNet::new(addr.into(), v6[len]).unwrap()
            } else {
                IpNet::new(Ipv4Addr::new(10, 0, 0, low).into(), v4[len]).unwrap()
            };
            Acl {
                addr: addr.trunc(),
                port,
                proto,
                action,
                id,
            }
        })
}

/// What a program under these settings decides of everything that is asked here.
fn answers(kernel: &Kernel, policy: u32, kinds: u32) -> Vec<u8> {
    let at = At {
        kernel,
        policy,
        kinds,
    };
    let mut answers = Vec::new();
    for addr in addresses() {
        for port in PORTS {
            for proto in PROTOS {
                let port = port.to_be_bytes();
                answers.push(match addr.addr() {
                    std::net::IpAddr::V4(v4) => decide(&at, &v4.octets(), port, proto),
                    std::net::IpAddr::V6(v6) => decide(&at, &v6.octets(), port, proto),
                });
            }
        }
    }
    for i in 0..8 {
        answers.push(at.skip(&[10, 0, 0, i]));
        let port = kernel.ports.get(&i.into());
        answers.push(port.map_or(0, |skip| skip.at(policy)));
    }
    answers
}

/// A policy: rules, excluded networks and ports.
#[derive(Debug, Clone)]
struct Policy {
    rules: Vec<Acl>,
    nets: Vec<(u8, u32)>,
    ports: Vec<(u16, u8)>,
}

fn policy() -> impl Strategy<Value = Policy> {
    let nets = proptest::collection::vec((0u8..8, 28u32..=32), 0..4);
    let ports = proptest::collection::vec((0u16..8, 1u8..4), 0..4);
    (proptest::collection::vec(rule(), 0..14), nets, ports)
        .prop_map(|(rules, nets, ports)| Policy { rules, nets, ports })
}

impl Policy {
    /// The model; `None` where one prefix has too many rules.
    fn model(&self) -> Option<Model> {
        let mut model = Model::default();
        compile(&mut model, &[&self.rules]).ok()?;
        let net = |&(low, prefix_len): &(u8, u32)| {
            let addr = u32::from_be_bytes([10, 0, 0, low]) & u32::MAX << (32 - prefix_len);
            let addr = addr.to_be_bytes();
            (Cidr4Key { prefix_len, addr }, 2)
        };
        model.skip4 = Table::new(self.nets.iter().map(net).collect());
        model.skip_port = self.ports.iter().copied().collect();
        Some(model)
    }

    /// What must be decided, from the rules alone.
    fn answers(&self, model: &Model) -> Vec<u8> {
        let mut answers = Vec::new();
        for addr in addresses() {
            for port in PORTS {
                for proto in PROTOS {
                    answers.push(reference(&self.rules, addr, port, proto));
                }
            }
        }
        for i in 0..8 {
            let within = |(key, _): &(Cidr4Key, u8)| {
                let host = Cidr4Key {
                    prefix_len: 32,
                    addr: [10, 0, 0, i],
                };
                key.contains(&host)
            };
            answers.push(if model.skip4.iter().any(within) { 2 } else { 0 });
            answers.push(model.skip_port.get(&i.into()).copied().unwrap_or(0));
        }
        answers
    }
}

/// One write or removal.
type Write = Box<dyn Fn(&mut Kernel)>;

fn writes(plan: &Plan, kernel: &Kernel) -> Vec<Write> {
    let mut all: Vec<Write> = Vec::new();
    macro_rules! put {
        ($($map:ident)+) => {$(
            for (key, value) in plan.writes.$map.clone() {
                all.push(Box::new(move |kernel| { kernel.$map.insert(key, value); }));
            }
        )+};
    }
    put!(acl4 acl6 cidr4 cidr6 skip4);
    for (port, now, was) in plan.writes.skip_port.clone() {
        let there = kernel.ports.get(&port).copied().unwrap_or(Skip::ZERO);
        let steps = skip_port_steps(there, now, was, plan.policy);
        all.push(Box::new(move |kernel| {
            kernel.ports.insert(port, steps[0]);
        }));
        all.push(Box::new(move |kernel| {
            kernel.ports.insert(port, steps[1]);
        }));
        all.push(Box::new(move |kernel| {
            kernel.ports.insert(port, steps[2]);
        }));
    }
    all
}

fn removals(plan: &Plan) -> Vec<Write> {
    let mut all: Vec<Write> = Vec::new();
    macro_rules! take {
        ($($map:ident)+) => {$(
            for key in plan.gone.$map.clone() {
                all.push(Box::new(move |kernel| { kernel.$map.remove(&key); }));
            }
        )+};
    }
    take!(acl4 acl6 cidr4 cidr6 skip4 sets);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn at_any_moment_of_a_change_all_of_the_old_or_all_of_the_new_rules_hold(
        policies in proptest::collection::vec(policy(), 2..5),
        turn in 0usize..40,
        first in prop_oneof![Just(0), Just(u32::MAX - 1), Just((1 << 30) - 2)],
    ) {
        let mut kernel = Kernel::default();
        let mut known = InForce { policy: first, ..InForce::default() };
        let mut old = Policy { rules: vec![], nets: vec![], ports: vec![] };
        for new in policies {
            let Some(model) = new.model() else { continue };
            let (before, after) = (old.answers(&known.model), new.answers(&model));
            let (kinds, new_kinds) = (known.model.acl_kinds, model.acl_kinds);
            let plan = Plan::new(&known, &model);
            prop_assert_eq!(answers(&kernel, known.policy, kinds), before.clone());

            for (number, rules) in &plan.sets {
                prop_assert!(kernel.sets.insert(*number, *rules).is_none(), "a set that lives is changed");
            }
            let mut steps = writes(&plan, &kernel);
            if plan.writes.skip_port.is_empty() && !steps.is_empty() {
                // In any order.
                let by = turn % steps.len();
                steps.rotate_left(by);
                if turn % 2 == 1 {
                    steps.reverse();
                }
            }
            for step in steps {
                step(&mut kernel);
                prop_assert_eq!(&answers(&kernel, known.policy, kinds), &before);
            }
            // In force now; a program that began before still sees the old.
            prop_assert_eq!(&answers(&kernel, plan.policy, new_kinds), &after);
            let fits: Result<(), TooSmall> = plan.check(|_| Ok(usize::MAX));
            prop_assert!(fits.is_ok());
            for step in removals(&plan) {
                step(&mut kernel);
                prop_assert_eq!(&answers(&kernel, plan.policy, new_kinds), &after);
            }
            // Nothing dead is left.
            prop_assert_eq!(
                (kernel.acl4.len(), kernel.acl6.len(), kernel.cidr4.len(), kernel.cidr6.len()),
                (model.acl4.len(), model.acl6.len(), model.cidr4.len(), model.cidr6.len())
            );
            prop_assert_eq!(kernel.sets.len(), plan.sets_after.len());
            known = InForce { model, sets: plan.sets_after, policy: plan.policy, is_mixed: false };
            old = new;
        }
    }
}

fn acl_rule(addr: &str, action: AclAction) -> Acl {
    Acl {
        addr: addr.parse().unwrap(),
        port: PortRange::ANY,
        proto: AclProto::Any,
        action,
        id: 0,
    }
}

fn in_force(rules: &[Acl]) -> InForce {
    let mut model = Model::default();
    compile(&mut model, &[rules]).unwrap();
    InForce {
        model,
        ..InForce::default()
    }
}

#[test]
fn what_does_not_change_is_not_written() {
    let mut rules: Vec<Acl> = (0..100u8)
        .map(|i| acl_rule(&format!("10.0.0.{i}/32"), AclAction::Deny))
        .collect();
    rules.push(acl_rule("20.0.0.0/8", AclAction::Deny));
    let known = in_force(&rules);
    rules[7].action = AclAction::Trusted;
    let plan = Plan::new(&known, &in_force(&rules).model);
    assert_eq!(plan.writes.acl4.len(), 1);
    assert!(plan.writes.cidr4.is_empty() && plan.gone.is_empty());
}

#[test]
fn each_two_to_the_thirtieth_version_everything_is_written_anew() {
    let rules = [
        acl_rule("10.0.0.1/32", AclAction::Deny),
        acl_rule("20.0.0.0/8", AclAction::Deny),
    ];
    let mut known = in_force(&rules);
    for (policy, writes) in [
        (5, 0),
        ((1 << 30) - 1, 1),
        (u32::MAX, 1),
        ((3 << 30) - 1, 1),
    ] {
        known.policy = policy;
        let plan = Plan::new(&known, &in_force(&rules).model);
        assert_eq!(
            (plan.writes.acl4.len(), plan.writes.cidr4.len()),
            (writes, writes),
            "{policy}"
        );
        assert_eq!(plan.policy, policy.wrapping_add(1));
    }
}

#[test]
fn a_table_that_cannot_hold_both_is_named_with_what_it_needs() {
    let old = in_force(&[acl_rule("10.0.0.1/32", AclAction::Deny)]);
    let new = in_force(&[acl_rule("10.0.0.2/32", AclAction::Deny)]).model;
    let plan = Plan::new(&old, &new);
    let error = plan.check(|_| Ok::<_, TooSmall>(1)).unwrap_err();
    assert_eq!((error.map, error.needs, error.has), (name::FSM_XACL, 2, 1));
    assert!(error.to_string().contains("needs 2 entries"), "{error}");
}
