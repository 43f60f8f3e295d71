//! The order of NAT look-ups, with a table that is a plain hash map.

use std::collections::HashMap;

use fsm_common::{
    flow::Address,
    maps::sys,
    nat::{MAGLEV_SLOTS, NatKey, NatTables, dir, flow_hash, kind, lookup, slot},
};
use proptest::prelude::*;

struct Entries(HashMap<NatKey, &'static str>);

impl NatTables for Entries {
    type Entry = &'static str;

    fn entry(&self, key: &NatKey) -> Option<&'static str> {
        self.0.get(key).copied()
    }
}

const ADDR: [u8; 4] = [20, 0, 0, 2];
const PORT: [u8; 2] = [0, 80];
const NAMES: [&str; 4] = ["address and port", "address", "port", "any"];

fn key(daddr: [u8; 16], dport: [u8; 2]) -> NatKey {
    NatKey {
        daddr,
        dport,
        proto: 6,
        dir: dir::EGRESS,
        sys: sys::MESH,
        ..NatKey::ZERO
    }
}

/// The entries whose bit is set in `present`, of the four kinds in their order.
fn entries(present: u32) -> Entries {
    let keys = [
        key(ADDR.widen(), PORT),
        key(ADDR.widen(), [0; 2]),
        key([0; 16], PORT),
        key([0; 16], [0; 2]),
    ];
    Entries(
        (0..4)
            .filter(|i| present >> i & 1 == 1)
            .map(|i| (keys[i], NAMES[i]))
            .collect(),
    )
}

fn find(entries: &Entries, kinds: u32, addr: [u8; 4], port: [u8; 2]) -> Option<&'static str> {
    let mut key = NatKey {
        proto: 6,
        dir: dir::EGRESS,
        sys: sys::MESH,
        ..NatKey::ZERO
    };
    lookup(entries, kinds, &mut key, addr, port)
}

#[test]
fn the_most_exact_entry_that_exists_and_is_asked_for() {
    assert_eq!(
        [kind::ADDR_PORT, kind::ADDR, kind::PORT, kind::ANY],
        [1, 2, 4, 8]
    );
    for present in 0..16 {
        for kinds in 0..16 {
            let expected = (0..4)
                .find(|i| (present & kinds) >> i & 1 == 1)
                .map(|i| NAMES[i]);
            assert_eq!(
                find(&entries(present), kinds, ADDR, PORT),
                expected,
                "{present:04b} {kinds:04b}"
            );
        }
    }
}

#[test]
fn other_destinations_find_only_what_fits() {
    let all = entries(15);
    assert_eq!(find(&all, 15, ADDR, [0, 81]), Some("address"));
    assert_eq!(find(&all, 15, [20, 0, 0, 3], PORT), Some("port"));
    assert_eq!(find(&all, 15, [20, 0, 0, 3], [0, 81]), Some("any"));
    assert_eq!(find(&entries(7), 15, [20, 0, 0, 3], [0, 81]), None);
}

#[test]
fn the_key_is_of_one_protocol_direction_family_and_system() {
    let all = entries(15);
    let base = NatKey {
        proto: 6,
        dir: dir::EGRESS,
        sys: sys::MESH,
        ..NatKey::ZERO
    };
    for wrong in [
        NatKey { proto: 17, ..base },
        NatKey {
            dir: dir::INGRESS,
            ..base
        },
        NatKey { v6: 1, ..base },
        NatKey {
            sys: sys::E4LB,
            ..base
        },
    ] {
        assert_eq!(
            lookup(&all, 15, &mut { wrong }, ADDR, PORT),
            None,
            "{wrong:?}"
        );
    }
}

#[test]
fn every_kind_has_bits_of_its_own() {
    let mut seen = 0u32;
    for v6 in [false, true] {
        for direction in [dir::INGRESS, dir::EGRESS] {
            for is_udp in [false, true] {
                let bits = 0xf << kind::shift(direction, is_udp, v6);
                assert_eq!(seen & bits, 0);
                seen |= bits;
            }
        }
    }
    assert_eq!(seen, u32::MAX);
}

proptest! {
    #[test]
    fn slots_are_in_the_table(hash: u32) {
        prop_assert!(slot(hash) < MAGLEV_SLOTS);
    }
}

#[test]
fn slots_take_the_whole_table_evenly() {
    let mut counts = [0u32; MAGLEV_SLOTS as usize];
    assert_eq!((slot(0), slot(u32::MAX)), (0, MAGLEV_SLOTS - 1));
    // The connections of one client: addresses fixed, its ports in turn.
    for port in 0..=u16::MAX {
        let hash = flow_hash([10, 0, 0, 2], [20, 0, 0, 2], port.to_be_bytes(), [0, 80]);
        counts[slot(hash) as usize] += 1;
    }
    // 64 on average; a Poisson count of over 64 ± 6 σ is no accident.
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(*least > 16 && *most < 112, "{least} to {most}");
}

#[test]
fn the_flow_hash_depends_on_every_part() {
    let hash = |tuple: [u8; 12]| {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = tuple;
        flow_hash([a, b, c, d], [e, f, g, h], [i, j], [k, l])
    };
    let base = [10, 0, 0, 2, 20, 0, 0, 2, 0x9c, 0x40, 0, 80];
    for at in 0..base.len() {
        let mut other = base;
        other[at] ^= 1;
        assert_ne!(hash(base), hash(other), "byte {at}");
    }
}
