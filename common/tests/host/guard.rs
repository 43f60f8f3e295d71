//! Buckets of protected destinations: rate, depth, and which of them counts a flow.

use std::collections::HashMap;

use fsm_common::{
    guard::{Bucket, Buckets, DEPTH_NS, lookup, shift},
    nat::kind,
};
use proptest::prelude::*;

#[test]
fn a_full_bucket_holds_a_seconds_flows_and_no_more() {
    // The last is kept only to the nanosecond between two flows: within 1 %.
    for (per_s, holds) in [(1, 1), (2, 2), (3, 3), (1000, 1000), (6_999_999, 7_042_253)] {
        let mut bucket = Bucket::new(per_s);
        let now = 77 * DEPTH_NS;
        let asked = holds + 10;
        let at_once = (0..asked).filter(|_| bucket.admit(now)).count();
        assert_eq!(at_once as u64, holds, "{per_s}");
        assert_eq!((bucket.passed, bucket.over), (holds, 10));
    }
}

#[test]
fn a_clock_that_stands_still_or_goes_back_a_tick_lets_nothing_more_through() {
    let mut bucket = Bucket::new(1);
    assert!(bucket.admit(DEPTH_NS));
    assert!(!bucket.admit(DEPTH_NS));
    // Another CPU's coarse clock may be a tick behind.
    assert!(!bucket.admit(DEPTH_NS - 4_000_000));
    assert!(bucket.admit(2 * DEPTH_NS));
}

proptest! {
    /// Over any time, what passes is the rate's share of it and one full bucket at most; and nothing is
    /// refused while there is room.
    #[test]
    fn what_passes_is_the_rate_and_one_bucket(
        per_s in 1u32..5000,
        gaps in prop::collection::vec(0u64..5_000_000, 1..2000),
    ) {
        let (mut bucket, mut now, mut passed) = (Bucket::new(per_s), DEPTH_NS, 0u64);
        for gap in gaps {
            now += gap;
            passed += u64::from(bucket.admit(now));
            let share = (now - DEPTH_NS) / bucket.interval_ns;
            prop_assert!(passed <= share + u64::from(per_s) + 1);
            prop_assert!(bucket.over == 0 || passed >= u64::from(per_s));
        }
    }
}

struct Table(HashMap<([u8; 4], [u8; 2]), u32>);

impl Buckets<[u8; 4]> for Table {
    type Entry = u32;

    fn bucket(&self, addr: [u8; 4], port: [u8; 2]) -> Option<u32> {
        self.0.get(&(addr, port)).copied()
    }
}

#[test]
fn the_most_exact_entry_is_found_among_the_kinds_that_exist() {
    let (addr, port) = ([10, 0, 0, 1], 80u16.to_be_bytes());
    let all = [
        (kind::ADDR_PORT, (addr, port)),
        (kind::ADDR, (addr, [0; 2])),
        (kind::PORT, ([0; 4], port)),
        (kind::ANY, ([0; 4], [0; 2])),
    ];
    let table = Table(all.iter().map(|(kind, key)| (*key, *kind)).collect());
    for kinds in 0..16u32 {
        let found = lookup(&table, kinds, addr, port);
        let first = all.iter().map(|(kind, _)| *kind).find(|k| kinds & k != 0);
        assert_eq!(found, first, "{kinds:04b}");
    }
}

#[test]
fn protocols_and_families_have_bits_of_their_own() {
    let mut seen = 0u32;
    for (is_udp, v6) in [(false, false), (true, false), (false, true), (true, true)] {
        let bits = 0xf << shift(is_udp, v6);
        assert_eq!(seen & bits, 0);
        seen |= bits;
    }
}
