//! Endpoint choice by Maglev.

use fsm_common::nat::{MAGLEV_SLOTS, MAX_ENDPOINTS, NatEndpoint, maglev};
use proptest::prelude::*;

const SLOTS: usize = MAGLEV_SLOTS as usize;

fn endpoint(number: u8, weight: u16) -> NatEndpoint {
    NatEndpoint {
        addr: [10, 1, 0, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        port: [0, 80],
        weight,
        active: 1,
        ..NatEndpoint::ZERO
    }
}

/// The table; every slot that the filling left out stands as 255.
fn table(endpoints: &[NatEndpoint]) -> Option<[u8; 1024]> {
    let mut table = [255; 1024];
    maglev(&mut table, endpoints).then_some(table)
}

fn shares(table: &[u8; 1024], count: usize) -> Vec<usize> {
    let mut shares = vec![0; count];
    for &endpoint in &table[..SLOTS] {
        shares[usize::from(endpoint)] += 1;
    }
    shares
}

#[test]
fn the_table_size_is_a_prime_that_fits() {
    assert!(!(2..SLOTS).any(|divisor| SLOTS.is_multiple_of(divisor)));
    const { assert!(SLOTS <= 1024 && SLOTS > 7 * MAX_ENDPOINTS) };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_are_respected_and_every_slot_is_filled(weights in proptest::collection::vec(1u16..=100, 1..=16)) {
        let endpoints: Vec<_> = weights.iter().zip(0..).map(|(&weight, i)| endpoint(i, weight)).collect();
        let table = table(&endpoints).unwrap();
        prop_assert_eq!(&table[SLOTS..], &[255; 3], "padding is left alone");
        let total: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        for (share, &weight) in shares(&table, endpoints.len()).iter().zip(&weights) {
            // Turns are whole: the last round may be a few slots off.
            let fair = f64::from(MAGLEV_SLOTS) * f64::from(weight) / f64::from(total);
            prop_assert!((*share as f64 - fair).abs() <= 2.0 + fair * 0.02, "{} of {} instead of {}", weight, share, fair);
        }
    }

    #[test]
    fn one_that_goes_down_moves_few_others_and_back_up_all_is_as_before(
        weights in proptest::collection::vec(1u16..=10, 2..=12), which in any::<proptest::sample::Index>()
    ) {
        let mut endpoints: Vec<_> = weights.iter().zip(0..).map(|(&weight, i)| endpoint(i, weight)).collect();
        let before = table(&endpoints).unwrap();
        let gone = which.index(endpoints.len());
        endpoints[gone].active = 0;
        let without = table(&endpoints).unwrap();
        let moved = (0..SLOTS)
            .filter(|&slot| usize::from(before[slot]) != gone && before[slot] != without[slot])
            .count();
        let others = SLOTS - shares(&before, endpoints.len())[gone];
        prop_assert!(moved * 100 <= others * 35, "{} of {} slots moved", moved, others);
        prop_assert_eq!(shares(&without, endpoints.len())[gone], 0);
        endpoints[gone].active = 1;
        prop_assert_eq!(table(&endpoints).unwrap(), before);
    }

    #[test]
    fn any_endpoints_fill_or_say_no(
        list in proptest::collection::vec((any::<[u8; 4]>(), any::<u16>(), 0u8..2), 0..=MAX_ENDPOINTS)
    ) {
        let endpoints: Vec<_> = list
            .iter()
            .map(|&([a, b, c, d], weight, active)| NatEndpoint {
                addr: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                weight: weight % 1000,
                active,
                ..NatEndpoint::ZERO
            })
            .collect();
        let takes_part = |e: &NatEndpoint| e.active != 0 && e.weight != 0;
        match table(&endpoints) {
            None => prop_assert!(!endpoints.iter().any(takes_part)),
            Some(table) => {
                for &slot in &table[..SLOTS] {
                    prop_assert!(endpoints.get(usize::from(slot)).is_some_and(takes_part), "slot of {}", slot);
                }
            }
        }
    }
}

#[test]
fn equal_weights_share_evenly() {
    let endpoints: Vec<_> = (0..MAX_ENDPOINTS as u8).map(|i| endpoint(i, 1)).collect();
    for share in shares(&table(&endpoints).unwrap(), MAX_ENDPOINTS) {
        assert!((7..=8).contains(&share), "{share}");
    }
}

#[test]
fn heavy_and_light_weights_do_not_hang() {
    let weights = [(u16::MAX, 1), (1, u16::MAX), (u16::MAX, u16::MAX), (1, 1)];
    for (a, b) in weights {
        let shares = shares(&table(&[endpoint(1, a), endpoint(2, b)]).unwrap(), 2);
        assert_eq!(shares.iter().sum::<usize>(), SLOTS);
        assert_eq!(
            a.cmp(&b),
            if shares[0].abs_diff(shares[1]) <= 1 {
                std::cmp::Ordering::Equal
            } else {
                shares[0].cmp(&shares[1])
            }
        );
    }
}

#[test]
fn who_does_not_take_part_gets_nothing() {
    let mut endpoints: Vec<_> = (0..4).map(|i| endpoint(i, 1)).collect();
    endpoints[1].active = 0;
    endpoints[2].weight = 0;
    let shares = shares(&table(&endpoints).unwrap(), 4);
    assert_eq!((shares[1], shares[2]), (0, 0));
    assert_eq!(table(&[]), None);
    assert_eq!(
        table(&[NatEndpoint {
            active: 0,
            ..endpoint(1, 1)
        }]),
        None
    );
    assert_eq!(table(&vec![endpoint(1, 1); MAX_ENDPOINTS + 1]), None);
}

#[test]
fn losing_one_endpoint_moves_few_others() {
    for count in [3u8, 8, 20] {
        let endpoints: Vec<_> = (0..count).map(|i| endpoint(i, 10)).collect();
        let before = table(&endpoints).unwrap();
        for gone in 0..count {
            let mut fewer = endpoints.clone();
            fewer[usize::from(gone)].active = 0;
            let after = table(&fewer).unwrap();
            let moved = (0..SLOTS)
                .filter(|&slot| before[slot] != gone && before[slot] != after[slot])
                .count();
            // Maglev gives up a little (NSDI 2016, §5.3) of what consistent hashing would keep.
            assert!(
                moved * 100 < SLOTS * 12,
                "{moved} of {SLOTS} slots moved, {gone} of {count} gone"
            );
        }
    }
}

#[test]
fn the_same_endpoints_give_the_same_table() {
    let endpoints: Vec<_> = (0..9).map(|i| endpoint(i, 1 + u16::from(i))).collect();
    let first = table(&endpoints).unwrap();
    // What was in the table before does not matter.
    let mut again = [7; 1024];
    assert!(maglev(&mut again, &endpoints));
    assert_eq!(first[..SLOTS], again[..SLOTS]);
}

#[test]
fn the_order_of_endpoints_hardly_matters() {
    // Two nodes may list the same endpoints otherwise.
    let endpoints: Vec<_> = (0..8).map(|i| endpoint(i, 1)).collect();
    let mut reversed = endpoints.clone();
    reversed.reverse();
    let (a, b) = (table(&endpoints).unwrap(), table(&reversed).unwrap());
    let differ = (0..SLOTS).filter(|&slot| a[slot] != 7 - b[slot]).count();
    assert!(
        differ * 100 < SLOTS * 25,
        "{differ} of {SLOTS} slots differ"
    );
}
