//! Entries in the order of their keys, each key once: compared with another such list in one walk over both, and
//! much smaller than a hash map. For networks the order is from the outside in.

use fsm_common::policy::{Acl4Key, Acl6Key, Cidr4Key, Cidr6Key};

/// A key with an order.
pub trait Ordered: Copy + Eq {
    /// What is compared.
    type By: Ord + Copy;
    /// What this key is compared by.
    fn by(&self) -> Self::By;
}

impl Ordered for Acl4Key {
    type By = (u32, u16);
    fn by(&self) -> Self::By {
        (u32::from_be_bytes(self.addr), u16::from_be_bytes(self.port))
    }
}

impl Ordered for Acl6Key {
    type By = (u128, u16);
    fn by(&self) -> Self::By {
        (
            u128::from_be_bytes(self.addr),
            u16::from_be_bytes(self.port),
        )
    }
}

/// A network as a key.
pub trait Network: Ordered<By = (u128, u32)> {
    /// The address, its first bit in front, and how many bits count.
    fn net(&self) -> (u128, u32);

    /// Whether the other network lies within this one, or is it.
    fn contains(&self, other: &Self) -> bool {
        let ((a, len), (b, other_len)) = (self.net(), other.net());
        len <= other_len && (len == 0 || (a ^ b) >> (128 - len) == 0)
    }
}

impl Network for Cidr4Key {
    fn net(&self) -> (u128, u32) {
        (
            u128::from(u32::from_be_bytes(self.addr)) << 96,
            self.prefix_len,
        )
    }
}

impl Network for Cidr6Key {
    fn net(&self) -> (u128, u32) {
        (u128::from_be_bytes(self.addr), self.prefix_len)
    }
}

macro_rules! ordered_networks {
    ($($key:ty)+) => {$(
        impl Ordered for $key {
            type By = (u128, u32);
            fn by(&self) -> Self::By {
                self.net()
            }
        }
    )+};
}
ordered_networks!(Cidr4Key Cidr6Key);

/// The list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<K, V>(Vec<(K, V)>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ordered, V> Table<K, V> {
    /// Of entries in any order; of two with one key the later one counts.
    pub fn new(mut entries: Vec<(K, V)>) -> Self {
        if !entries.is_sorted_by(|a, b| a.0.by() < b.0.by()) {
            entries.sort_by_key(|(key, _)| key.by());
            entries.reverse();
            entries.dedup_by_key(|(key, _)| key.by());
            entries.reverse();
        }
        Self(entries)
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = self.0.binary_search_by_key(&key.by(), |(key, _)| key.by());
        at.ok().map(|at| &self.0[at].1)
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.0.iter()
    }
}

/// Calls `visit` for each key of either list, in their order, with its values.
pub fn both<'a, K: Ordered, A, B>(
    a: &'a Table<K, A>,
    b: &'a Table<K, B>,
    mut visit: impl FnMut(K, Option<&'a A>, Option<&'a B>),
) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let (in_a, in_b) = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some((x, _)), Some((y, _))) => (x.by() <= y.by(), y.by() <= x.by()),
        };
        let (a, b) = (a.next_if(|_| in_a), b.next_if(|_| in_b));
        if let Some((key, _)) = a {
            visit(*key, a.map(|(_, value)| value), b.map(|(_, value)| value));
        } else if let Some((key, value)) = b {
            visit(*key, None, Some(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(addr: [u8; 4], prefix_len: u32) -> Cidr4Key {
        Cidr4Key { prefix_len, addr }
    }

    #[test]
    fn networks_come_from_the_outside_in_and_the_later_value_counts() {
        let keys = [
            (net([10, 1, 0, 0], 16), 1),
            (net([10, 0, 0, 0], 8), 2),
            (net([0, 0, 0, 0], 0), 3),
            (net([10, 1, 0, 0], 16), 4),
        ];
        let table = Table::new(keys.into());
        let order: Vec<_> = table
            .iter()
            .map(|(key, value)| (key.prefix_len, *value))
            .collect();
        assert_eq!(order, [(0, 3), (8, 2), (16, 4)]);
        assert_eq!(table.get(&keys[0].0), Some(&4));
        assert_eq!(table.get(&net([10, 1, 0, 0], 17)), None);
    }

    #[test]
    fn a_network_contains_itself_and_what_is_within() {
        let eight = net([10, 0, 0, 0], 8);
        assert!(eight.contains(&eight) && eight.contains(&net([10, 9, 0, 0], 16)));
        assert!(!eight.contains(&net([11, 0, 0, 0], 8)) && !eight.contains(&net([0; 4], 0)));
        assert!(net([0; 4], 0).contains(&net([255; 4], 32)));
    }

    #[test]
    fn a_walk_over_both_sees_each_key_once() {
        let table =
            |keys: &[u8]| Table::new(keys.iter().map(|&n| (net([n, 0, 0, 0], 8), n)).collect());
        let mut seen = Vec::new();
        both(&table(&[1, 3, 4]), &table(&[2, 3, 5]), |key, a, b| {
            seen.push((key.addr[0], a.is_some(), b.is_some()));
        });
        let expected = [
            (1, true, false),
            (2, false, true),
            (3, true, true),
            (4, true, false),
        ];
        assert_eq!(seen[..4], expected);
        assert_eq!(seen[4..], [(5, false, true)]);
    }
}
