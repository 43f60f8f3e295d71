//! Protected destinations: how many new flows a second may reach each of them as they are.
//!
//! A bucket is one time, as in the generic cell rate algorithm (ITU-T I.371, annex A): when it will be full
//! again. All CPUs write it without a lock. Where two of them read the same time, one flow goes uncounted; so
//! the rate is exceeded by at most the number of CPUs in one burst, and never the other way round.

use crate::{flow::Address, nat::kind, shared};

/// What a bucket holds, in time at its rate: after a second of quiet, a second's flows may come at once.
pub const DEPTH_NS: u64 = 1_000_000_000;

shared! {
    /// Key of `fsm_guard`. Unused parts are zero: `any` has neither address nor port.
    pub struct GuardKey {
        /// Destination, IPv4 in the first four bytes.
        pub addr: [u8; 16],
        /// Destination port, network byte order.
        pub port: [u8; 2],
        /// IP protocol.
        pub proto: u8,
        /// 1 for IPv6.
        pub v6: u8,
        /// Always zero.
        pub pad: [u8; 4],
    }

    /// Value of `fsm_guard`: one bucket.
    pub struct Bucket {
        /// Nanoseconds from one flow to the next at the configured rate.
        pub interval_ns: u64,
        /// When the bucket will be full again, CLOCK_MONOTONIC; in the past where it is full.
        pub full_at_ns: u64,
        /// The configured rate, new flows a second.
        pub per_s: u64,
        /// New flows that passed, about: CPUs may overwrite each other's count.
        pub passed: u64,
        /// New flows over the rate, about likewise.
        pub over: u64,
    }
}

impl Bucket {
    /// A full bucket of `per_s` new flows a second.
    pub const fn new(per_s: u32) -> Self {
        Self {
            // 1 to a second: never zero for a rate that the configuration takes.
            interval_ns: DEPTH_NS / if per_s == 0 { 1 } else { per_s as u64 },
            per_s: per_s as u64,
            ..Self::ZERO
        }
    }

    /// Takes one new flow at `now_ns` and counts it; whether it is within the rate.
    #[inline(always)]
    pub fn admit(&mut self, now_ns: u64) -> bool {
        let from = if self.full_at_ns > now_ns {
            self.full_at_ns
        } else {
            now_ns
        };
        let full_at_ns = from.wrapping_add(self.interval_ns);
        if full_at_ns.wrapping_sub(now_ns) > DEPTH_NS {
            self.over += 1;
            return false;
        }
        self.full_at_ns = full_at_ns;
        self.passed += 1;
        true
    }
}

/// Position in [`crate::maps::Xcfg::guard_kinds`] of the four bits of [`kind`] for a protocol and family.
#[inline(always)]
pub const fn shift(is_udp: bool, v6: bool) -> u32 {
    4 * is_udp as u32 + 8 * v6 as u32
}

/// Where the buckets of one protocol and family are found: the kernel's map, or a test's table.
pub trait Buckets<A> {
    /// What a found bucket is.
    type Entry;
    /// The bucket of exactly this address ([`Address::ANY`] for any) and port (0 for any).
    fn bucket(&self, addr: A, port: [u8; 2]) -> Option<Self::Entry>;
}

/// Most exact first, as for NAT: address and port, address, port, any. `kinds` are the four bits that exist.
#[inline(always)]
pub fn lookup<A: Address, T: Buckets<A>>(
    tables: &T,
    kinds: u32,
    addr: A,
    port: [u8; 2],
) -> Option<T::Entry> {
    // Spelled out: a list of the four would be a table in memory for LLVM.
    let ask = |kind, addr, port| {
        if kinds & kind == 0 {
            None
        } else {
            tables.bucket(addr, port)
        }
    };
    if let Some(bucket) = ask(kind::ADDR_PORT, addr, port) {
        return Some(bucket);
    }
    if let Some(bucket) = ask(kind::ADDR, addr, [0; 2]) {
        return Some(bucket);
    }
    if let Some(bucket) = ask(kind::PORT, A::ANY, port) {
        return Some(bucket);
    }
    ask(kind::ANY, A::ANY, [0; 2])
}
