//! Sums: the incremental way gives what adding everything up again gives.

use fsm_common::checksum::{adjust, difference, fold, opposite, sum};
use proptest::{collection::vec, prelude::*};

/// RFC 1071 by the book: one's complement of the one's complement sum of big-endian words.
fn full(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    (!(sum as u16)).to_be_bytes()
}

fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])))
        .sum()
}

proptest! {
    #[test]
    fn incremental_is_full(mut data in vec(any::<u8>(), 40..120), new in vec(any::<u8>(), 12), at in 0usize..12) {
        data.truncate(data.len() & !1);
        data[38] = 1; // not all zero: a header never is
        let check = full(&data);
        let old = words(&data[at * 2..at * 2 + 12]);
        data[at * 2..at * 2 + 12].copy_from_slice(&new);
        prop_assert_eq!(adjust(check, difference(old, words(&new))), full(&data));
    }

    #[test]
    fn what_is_done_can_be_undone(check in 0u16..0xffff, old: u32, new: u32) {
        // 0xffff is no correct checksum of anything but zeros.
        let delta = difference(old, new);
        prop_assert_eq!(difference(new, old), opposite(delta));
        prop_assert_eq!(opposite(opposite(delta)), delta);
        let check = check.to_ne_bytes();
        prop_assert_eq!(adjust(adjust(check, delta), opposite(delta)), check);
    }

    #[test]
    fn differences_add_up(check in 0u16..0xffff, a: u16, b: u16) {
        let check = check.to_ne_bytes();
        let both = fold(u32::from(a) + u32::from(b));
        prop_assert_eq!(adjust(adjust(check, a), b), adjust(check, both));
    }

    #[test]
    fn no_difference_is_zero(old: u32) {
        prop_assert_eq!(difference(old, old), 0);
        prop_assert_eq!(difference(old, u32::from(fold(old))), 0);
    }

    #[test]
    fn folding_keeps_the_value_modulo_ffff(value: u32) {
        prop_assert_eq!(u32::from(fold(value)) % 0xffff, value % 0xffff);
        prop_assert_eq!(fold(value) == 0, value == 0);
    }

    #[test]
    fn sum_of_any_part(data in vec(any::<u8>(), 1..100), from in 0usize..50, len in 1usize..120) {
        let part = data.get(from..from + len);
        let sum = sum(&data[..], from, len);
        prop_assert_eq!(sum.map(|sum| (!fold(sum)).to_ne_bytes()), part.map(full));
    }
}

#[test]
fn the_corner_case_of_rfc_1624() {
    // §4: with equation 2 this would become 0xffff
    let ne = |be: u16| u32::from(u16::from_ne_bytes(be.to_be_bytes()));
    let delta = difference(ne(0x5555), ne(0x3285));
    assert_eq!(adjust(0xdd2fu16.to_be_bytes(), delta), [0, 0]);
}

#[test]
fn minus_zero_makes_no_difference() {
    assert_eq!(difference(0, 0xffff), 0);
    assert_eq!(difference(0xffff, 0), 0);
    assert_eq!(opposite(0), 0);
    for check in [[0, 0], [0x12, 0x34], [0xff, 0xfe]] {
        assert_eq!(adjust(check, 0), check);
    }
}
