//! What must hold for any input: one check a fuzz target, over raw bytes. `fuzz/` runs them with inputs of
//! its own making, `host/corpus.rs` with the committed ones.

pub mod icmp_inner;
#[path = "../support/pair.rs"]
pub mod pair;
pub mod parse;
pub mod rewrite;
pub mod track;

/// Panics where an input does not hold.
#[allow(dead_code, reason = "each fuzz target uses one")]
pub type Check = fn(&[u8]);

/// A check by its target's name.
#[allow(dead_code, reason = "each fuzz target uses one")]
pub const CHECKS: [(&str, Check); 4] = [
    ("parse", parse::check),
    ("rewrite", rewrite::check),
    ("track", track::check),
    ("icmp_inner", icmp_inner::check),
];

/// Bytes from the front of `data`; zeros where it ends.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let (front, rest) = data.split_at(N.min(data.len()));
    bytes[..front.len()].copy_from_slice(front);
    *data = rest;
    bytes
}

/// Folds a sum of 16-bit words as RFC 1071 has it; 0xffff and 0 are one number, given as 0.
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum == 0xffff { 0 } else { sum as u16 }
}

/// The words of `bytes`, added up.
fn words(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    bytes.chunks(2).map(word).sum()
}
