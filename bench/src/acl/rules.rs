//! A list of a million rules: half of them addresses, a quarter networks, a quarter IPv6; no two alike, the same
//! in every run.

use std::{collections::HashSet, fmt::Write as _, net::Ipv6Addr};

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A rule's address or network, and whether it is denied.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// As it stands in the file.
    pub net: String,
    /// For IPv4: the address, and how many bits count.
    pub v4: Option<([u8; 4], u32)>,
}

/// The list, without the first octets 10 and 20, which belong to the measured flows; `seed` makes another.
pub fn rules(count: usize, seed: u64) -> Vec<Rule> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
    let mut seen = HashSet::new();
    let mut rules = Vec::with_capacity(count);
    while rules.len() < count {
        let kind = rules.len() % 20;
        let number = random.next();
        let rule = if kind < 15 {
            let mut addr = (number >> 32) as u32;
            addr = 0x1e00_0000 + addr % 0xb000_0000;
            let len = if kind < 10 {
                32
            } else {
                [20, 22, 24, 24, 24, 26, 28, 30][(number & 7) as usize]
            };
            let addr = (addr & (u32::MAX << (32 - len))).to_be_bytes();
            let [a, b, c, d] = addr;
            let net = if len == 32 {
                format!("{a}.{b}.{c}.{d}")
            } else {
                format!("{a}.{b}.{c}.{d}/{len}")
            };
            Rule {
                net,
                v4: Some((addr, len)),
            }
        } else {
            let high = 0x2a00_0000_0000_0000 | number >> 8;
            if kind < 19 {
                let addr = u128::from(high) << 64 | u128::from(random.next());
                Rule {
                    net: Ipv6Addr::from(addr).to_string(),
                    v4: None,
                }
            } else {
                let addr = u128::from(high & !0xffff) << 64;
                Rule {
                    net: format!("{}/48", Ipv6Addr::from(addr)),
                    v4: None,
                }
            }
        };
        if seen.insert(rule.net.clone()) {
            rules.push(rule);
        }
    }
    rules
}

/// The list as a file of `acl_files`.
pub fn as_list(rules: &[Rule], action: &str) -> String {
    let mut text = String::with_capacity(rules.len() * 32);
    for rule in rules {
        let _ = writeln!(text, "{} {action}", rule.net);
    }
    text
}

/// The list as `[[acl]]` tables.
pub fn as_tables(rules: &[Rule], action: &str) -> String {
    let mut text = String::with_capacity(rules.len() * 64);
    for rule in rules {
        let _ = write!(
            text,
            "[[acl]]\naddr = \"{}\"\naction = \"{action}\"\n",
            rule.net
        );
    }
    text
}
