//! The ACL's order, with tables that are plain hash maps.

use std::{cell::RefCell, collections::HashMap};

use fsm_common::policy::{
    Acl4Key, Acl6Key, AclTables, AclValue, CIDR_RULES, CidrRule, CidrRules, CidrValue, PROTO_OTHER,
    Tagged as _, acl, acl_proto, class, decide, is_before, kind,
};
use proptest::prelude::*;

const PEER: [u8; 4] = [10, 0, 0, 7];
const OTHER: [u8; 4] = [10, 0, 0, 8];

/// The tables, and which questions were asked.
#[derive(Default)]
struct Rules {
    exact: HashMap<([u8; 4], u16, u32), u8>,
    cidr: Option<CidrRules>,
    kinds: u32,
    asked: RefCell<Vec<&'static str>>,
}

impl AclTables<[u8; 4]> for Rules {
    fn exact(&self, addr: &[u8; 4], port: [u8; 2], class: u32) -> u8 {
        self.asked
            .borrow_mut()
            .push(if port == [0, 0] { "addr" } else { "exact" });
        self.exact
            .get(&(*addr, u16::from_be_bytes(port), class))
            .copied()
            .unwrap_or(acl::SILENT)
    }

    fn cidr(&self, _: &[u8; 4], proto: u8, port: u16) -> u8 {
        self.asked.borrow_mut().push("cidr");
        let rules = self.cidr.as_ref();
        rules.map_or(acl::SILENT, |rules| rules.verdict(proto, port))
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
    decide(rules, &addr, port.to_be_bytes(), proto)
}

#[test]
fn exact_port_then_address_then_cidr() {
    let mut rules = Rules {
        exact: HashMap::from([
            ((PEER, 80, class::TCP), acl::AUDIT),
            ((PEER, 0, class::TCP), acl::TRUSTED),
        ]),
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
        exact: HashMap::from([((PEER, 0, class::OTHER), acl::DENY)]),
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
    assert_eq!(rules.verdict(6, 81), acl::DENY);
    assert_eq!(CidrRules::ZERO.verdict(6, 80), acl::SILENT);
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
        let rules = cidr(&list);
        prop_assert_eq!(rules.find(proto, port), expected);
        prop_assert_eq!(rules.verdict(proto, port), expected.map_or(acl::SILENT, |rule| rule.acl));
    }
}

#[test]
fn an_entry_says_the_new_from_its_version_on_and_the_old_before() {
    for from in [0u32, 1, 7, u32::MAX / 2, u32::MAX - 1, u32::MAX] {
        let value = AclValue {
            from,
            now: AclValue::with(AclValue::NOTHING, class::TCP, acl::DENY),
            was: AclValue::with(AclValue::NOTHING, class::TCP, acl::TRUSTED),
            tag: 0x1234,
            ids: [0; class::COUNT],
        };
        let network = CidrValue {
            now: rule(1, 1, 6, acl::DENY),
            was: rule(2, 2, 6, acl::TRUSTED),
            from,
            pad: 0,
        };
        assert_eq!(value.word().tag(), 0x1234);
        for ahead in [0, 1, 1 << 30, (1 << 31) - 1] {
            let (policy, before) = (from.wrapping_add(ahead), from.wrapping_sub(ahead.max(1)));
            assert!(!is_before(policy, from) && is_before(before, from));
            assert_eq!(value.word().verdict(policy, class::TCP), acl::DENY);
            assert_eq!(value.word().verdict(before, class::TCP), acl::TRUSTED);
            assert_eq!(value.word().verdict(policy, class::UDP), acl::SILENT);
            assert_eq!(network.at(policy).acl, acl::DENY);
            assert_eq!(network.at(before).acl, acl::TRUSTED);
        }
    }
}

#[test]
fn the_kernel_reads_the_front_of_an_entry_as_one_word() {
    let value = AclValue {
        from: 0x0102_0304,
        now: 0x1b,
        was: 0xe4,
        tag: 0xbeef,
        ids: [9; class::COUNT],
    };
    let front: [u8; 8] = value.as_bytes()[..8].try_into().unwrap();
    assert_eq!(value.word().0, u64::from_le_bytes(front));
    let verdicts = |policy| [0, 1, 2, 3].map(|class| value.word().verdict(policy, class));
    assert_eq!(verdicts(0x0102_0304), [3, 2, 1, 0]);
    assert_eq!(verdicts(0x0102_0303), [0, 1, 2, 3]);
}

#[test]
fn keys_that_follow_each_other_have_different_tags() {
    let v4: std::collections::HashSet<u16> = (0..1000u32)
        .map(|i| {
            Acl4Key {
                addr: i.to_be_bytes(),
                port: [0; 2],
                proto: 0,
                sys: 1,
            }
            .tag()
        })
        .collect();
    let v6: std::collections::HashSet<u16> = (0..1000u128)
        .map(|i| {
            Acl6Key {
                addr: i.to_be_bytes(),
                sys: 1,
                ..Acl6Key::ZERO
            }
            .tag()
        })
        .collect();
    assert!(
        v4.len() > 980 && v6.len() > 980,
        "{} {}",
        v4.len(),
        v6.len()
    );
}

#[test]
fn a_set_keeps_its_number() {
    for number in [0, 1, 65_535, 65_536, u32::MAX] {
        let rule = CidrRule::set(number);
        assert_eq!((rule.acl, rule.number()), (acl::SET, number));
    }
}
