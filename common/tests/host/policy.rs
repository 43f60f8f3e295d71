//! The ACL's order, with tables that are plain hash maps.

use std::{cell::RefCell, collections::HashMap};

use fsm_common::policy::{
    AclTables, AclValue, CIDR_RULES, CidrRule, CidrRules, PROTO_OTHER, acl, acl_proto, decide, kind,
};
use proptest::prelude::*;

const PEER: [u8; 4] = [10, 0, 0, 7];
const OTHER: [u8; 4] = [10, 0, 0, 8];

/// The tables, and which questions were asked.
#[derive(Default)]
struct Rules {
    exact: HashMap<([u8; 4], u16, u8), u8>,
    cidr: Option<CidrRules>,
    kinds: u32,
    asked: RefCell<Vec<&'static str>>,
}

fn value(acl: u8) -> AclValue {
    AclValue {
        acl,
        flag: 0,
        id: 0,
        pad: [0; 4],
    }
}

impl AclTables<[u8; 4]> for Rules {
    fn exact(&self, addr: &[u8; 4], port: [u8; 2], proto: u8) -> Option<AclValue> {
        self.asked
            .borrow_mut()
            .push(if port == [0, 0] { "addr" } else { "exact" });
        self.exact
            .get(&(*addr, u16::from_be_bytes(port), proto))
            .map(|&acl| value(acl))
    }

    fn cidr(&self, _: &[u8; 4], proto: u8, port: u16) -> Option<AclValue> {
        self.asked.borrow_mut().push("cidr");
        self.cidr.as_ref()?.find(proto, port)
    }

    fn kinds(&self) -> u32 {
        self.kinds
    }
}

const ALL: u32 = kind::EXACT4 | kind::ADDR4 | kind::CIDR4;

fn rule(port_lo: u16, port_hi: u16, proto: u8, acl: u8) -> CidrRule {
    CidrRule {
        port_lo,
        port_hi,
        proto,
        acl,
        id: 9,
    }
}

fn cidr(list: &[CidrRule]) -> CidrRules {
    let mut rules = CidrRules {
        len: list.len() as u32,
        ..CidrRules::ZERO
    };
    rules.rules[..list.len()].copy_from_slice(list);
    rules
}

fn asks(rules: &Rules, addr: [u8; 4], port: u16, proto: u8) -> u8 {
    decide(rules, &addr, port.to_be_bytes(), proto).map_or(acl::SILENT, |value| value.acl)
}

#[test]
fn exact_port_then_address_then_cidr() {
    let mut rules = Rules {
        exact: HashMap::from([((PEER, 80, 6), acl::AUDIT), ((PEER, 0, 6), acl::TRUSTED)]),
        cidr: Some(cidr(&[rule(0, 65535, 0, acl::DENY)])),
        kinds: ALL,
        ..Rules::default()
    };
    assert_eq!(
        asks(&rules, PEER, 80, 6),
        acl::AUDIT,
        "an exact AUDIT overrides an address-wide TRUSTED"
    );
    assert_eq!(asks(&rules, PEER, 81, 6), acl::TRUSTED);
    assert_eq!(asks(&rules, OTHER, 80, 6), acl::DENY);
    assert_eq!(
        asks(&rules, PEER, 80, 17),
        acl::DENY,
        "entries are for one protocol"
    );
    rules.cidr = None;
    assert_eq!(asks(&rules, OTHER, 80, 6), acl::SILENT);
}

#[test]
fn look_ups_that_cannot_hit_are_left_out() {
    for kinds in 0..=ALL {
        let rules = Rules {
            kinds,
            ..Rules::default()
        };
        assert_eq!(asks(&rules, PEER, 80, 6), acl::SILENT);
        let expected: Vec<&str> = [
            (kind::EXACT4, "exact"),
            (kind::ADDR4, "addr"),
            (kind::CIDR4, "cidr"),
        ]
        .into_iter()
        .filter(|(kind, _)| kinds & kind != 0)
        .map(|(_, name)| name)
        .collect();
        assert_eq!(*rules.asked.borrow(), expected);
    }
}

#[test]
fn what_has_no_port_is_not_asked_for_one() {
    let rules = Rules {
        kinds: ALL,
        ..Rules::default()
    };
    assert_eq!(asks(&rules, PEER, 0, 1), acl::SILENT);
    assert_eq!(*rules.asked.borrow(), ["addr", "cidr"]);
}

#[test]
fn other_protocols_share_one_number() {
    for proto in 0..=u8::MAX {
        let expected = if [1, 6, 17, 58].contains(&proto) {
            proto
        } else {
            PROTO_OTHER
        };
        assert_eq!(acl_proto(proto), expected);
    }
    let rules = Rules {
        exact: HashMap::from([((PEER, 0, PROTO_OTHER), acl::DENY)]),
        kinds: ALL,
        ..Rules::default()
    };
    assert_eq!(asks(&rules, PEER, 0, 47), acl::DENY);
}

#[test]
fn the_first_rule_of_a_cidr_that_matches_decides() {
    let rules = cidr(&[
        rule(8080, 8080, 6, acl::AUDIT),
        rule(8000, 8999, 6, acl::DENY),
        rule(0, 65535, 17, acl::DENY),
        rule(0, 65535, 0, acl::TRUSTED),
    ]);
    let find = |proto, port| rules.find(proto, port).map(|value| (value.acl, value.id));
    assert_eq!(find(6, 8080), Some((acl::AUDIT, 9)));
    for port in [8000, 8079, 8081, 8999] {
        assert_eq!(find(6, port), Some((acl::DENY, 9)), "{port}");
    }
    for port in [0, 7999, 9000, 65535] {
        assert_eq!(find(6, port), Some((acl::TRUSTED, 9)), "{port}");
    }
    assert_eq!(find(17, 8080), Some((acl::DENY, 9)));
    assert_eq!(find(PROTO_OTHER, 0), Some((acl::TRUSTED, 9)));
}

#[test]
fn rules_beyond_the_length_do_not_count() {
    let mut rules = cidr(&[rule(80, 80, 6, acl::DENY), rule(0, 65535, 0, acl::DENY)]);
    rules.len = 1;
    assert_eq!(rules.find(6, 81), None);
    // A length that is wrong does no harm.
    rules.len = u32::MAX;
    assert_eq!(rules.find(6, 81).map(|value| value.acl), Some(acl::DENY));
    assert_eq!(CidrRules::ZERO.find(6, 80), None);
}

proptest! {
    #[test]
    fn find_is_the_first_match(
        list in proptest::collection::vec((0u16..20, 0u16..20, 0usize..4, 0u8..3), 0..=CIDR_RULES), port in 0u16..20, proto in 0usize..4,
    ) {
        const PROTOS: [u8; 4] = [0, 6, 17, PROTO_OTHER];
        let list: Vec<CidrRule> = list.into_iter().map(|(lo, hi, proto, acl)| rule(lo, hi, PROTOS[proto], acl)).collect();
        let proto = PROTOS[proto];
        let expected = list.iter().find(|rule| {
            (rule.port_lo..=rule.port_hi).contains(&port) && [0, proto].contains(&rule.proto)
        });
        prop_assert_eq!(cidr(&list).find(proto, port).map(|value| value.acl), expected.map(|rule| rule.acl));
    }
}
