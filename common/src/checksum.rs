//! Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! All sums are over 16-bit words in memory order: the sum is the same up to a byte swap either way
//! (RFC 1071 §2 B), and the kernel's helpers take them so.

use crate::view::PacketView;

/// Folds carries into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// One's complement difference `new - old` of two sums of words; no difference is always 0, not 0xffff.
#[inline(always)]
pub const fn difference(old_sum: u32, new_sum: u32) -> u16 {
    match fold(!fold(old_sum) as u32 + fold(new_sum) as u32) {
        0xffff => 0,
        delta => delta,
    }
}

/// The difference that takes `delta` back.
#[inline(always)]
pub const fn opposite(delta: u16) -> u16 {
    match delta {
        0 => 0,
        delta => !delta,
    }
}

/// A checksum field after the words below it changed by `delta` (RFC 1624, equation 3).
#[inline(always)]
pub const fn adjust(check: [u8; 2], delta: u16) -> [u8; 2] {
    let old = !u16::from_ne_bytes(check);
    (!fold(old as u32 + delta as u32)).to_ne_bytes()
}

/// Sum of `len` bytes from `offset`, not folded to the complement; `None` where the frame ends before.
pub fn sum<P: PacketView + ?Sized>(packet: &P, offset: usize, len: usize) -> Option<u32> {
    let mut sum = 0u32;
    let mut at = 0;
    while at + 1 < len {
        sum += u32::from(u16::from_ne_bytes(packet.read::<2>(offset + at)?));
        sum = (sum & 0xffff) + (sum >> 16);
        at += 2;
    }
    if at < len {
        let [last] = packet.read::<1>(offset + at)?;
        sum += u32::from(u16::from_ne_bytes([last, 0]));
    }
    Some((sum & 0xffff) + (sum >> 16))
}
