//! NAT entries: which listeners take a destination, in which order entries are asked, and how one of
//! several endpoints is chosen.

use crate::{flow::Address, shared};

/// Endpoints of one entry.
pub const MAX_ENDPOINTS: usize = 128;
/// Slots of the Maglev table (a prime: Eisenbud et al., NSDI 2016, §3.4).
pub const MAGLEV_SLOTS: u32 = 1021;

/// Value of [`NatKey::dir`], the seed's numbers.
pub mod dir {
    /// The app receives (TC_DIR_IGR).
    pub const INGRESS: u8 = 0;
    /// The app sends (TC_DIR_EGR).
    pub const EGRESS: u8 = 1;
}

/// Value of [`NatValue::select`].
pub mod select {
    /// By the flow's tuple: any node and any restart chooses alike.
    pub const MAGLEV: u8 = 0;
    /// In turn, per CPU.
    pub const ROUND_ROBIN: u8 = 1;
}

/// Bits of [`NatValue::options`].
pub mod option {
    /// Full NAT always: the client's address becomes the destination's (e4lb).
    pub const SOURCE_VIP: u64 = 1;
    /// Full NAT never (e4lb).
    pub const SOURCE_CLIENT: u64 = 2;
    /// Flows whose endpoint is gone from the entry end; without it they drain.
    pub const RESET: u64 = 4;
}

/// Bits of [`NatEndpoint::flags`].
pub mod endpoint_flag {
    /// The daemon probes it.
    pub const CHECKED: u8 = 1;
    /// Its probes have failed: it is not active for that reason.
    pub const DOWN: u8 = 2;
}

/// Which kinds of entry exist, for one family: bit `kind + 4 * (dir * 2 + is_udp)`; IPv6 is shifted by 16.
pub mod kind {
    /// Address and port.
    pub const ADDR_PORT: u32 = 1;
    /// Address.
    pub const ADDR: u32 = 2;
    /// Port.
    pub const PORT: u32 = 4;
    /// Any destination.
    pub const ANY: u32 = 8;

    /// Position of the four bits for a direction and protocol.
    #[inline(always)]
    pub const fn shift(dir: u8, is_udp: bool, v6: bool) -> u32 {
        4 * (dir as u32 * 2 + is_udp as u32) + 16 * v6 as u32
    }
}

shared! {
    /// Key of `fsm_xnat`. Unused parts are zero: `any` has neither address nor port.
    pub struct NatKey {
        /// Destination, IPv4 in the first four bytes.
        pub daddr: [u8; 16],
        /// Destination port, network byte order.
        pub dport: [u8; 2],
        /// IP protocol.
        pub proto: u8,
        /// One of [`dir`].
        pub dir: u8,
        /// 1 for IPv6.
        pub v6: u8,
        /// [`crate::maps::sys`].
        pub sys: u8,
        /// 0 or 1: those in force are of [`crate::maps::Xcfg::nat_bank`], the others are of the last change or the
        /// next.
        pub bank: u8,
        /// Always zero.
        pub pad: u8,
    }

    /// One listener.
    pub struct NatEndpoint {
        /// Address, IPv4 in the first four bytes; all zero keeps the packet's.
        pub addr: [u8; 16],
        /// Port, network byte order; zero keeps the packet's.
        pub port: [u8; 2],
        /// Weight in the Maglev table.
        pub weight: u16,
        /// Device to leave by (e4lb), or 0.
        pub ifindex: u32,
        /// Next hop's MAC (e4lb), or zero.
        pub mac: [u8; 6],
        /// Bits of [`endpoint_flag`].
        pub flags: u8,
        /// 1 while it takes new flows.
        pub active: u8,
    }

    /// Value of `fsm_xnat`.
    pub struct NatValue {
        /// Round-robin position (the seed's `ep_sel`).
        pub ep_sel: u32,
        /// Endpoints in use.
        pub ep_cnt: u16,
        /// One of [`select`].
        pub select: u8,
        /// 0 where no endpoint is active.
        pub usable: u8,
        /// Bits of [`option`].
        pub options: u64,
        /// Endpoint index for each slot; the last three bytes are padding.
        pub table: [u8; 1024],
        /// The endpoints.
        pub endpoints: [NatEndpoint; MAX_ENDPOINTS],
    }
}

/// Where NAT entries are found: the kernel's map, or a test's table.
pub trait NatTables {
    /// What a found entry is.
    type Entry;
    /// The entry with exactly this key.
    fn entry(&self, key: &NatKey) -> Option<Self::Entry>;
}

/// Most exact first: address and port, address, port, any. `kinds` are the four bits that exist.
#[inline(always)]
pub fn lookup<A: Address, T: NatTables>(
    tables: &T,
    kinds: u32,
    key: &mut NatKey,
    daddr: A,
    dport: [u8; 2],
) -> Option<T::Entry> {
    (key.daddr, key.dport) = (daddr.widen(), dport);
    if kinds & kind::ADDR_PORT != 0
        && let Some(entry) = tables.entry(key)
    {
        return Some(entry);
    }
    key.dport = [0; 2];
    if kinds & kind::ADDR != 0
        && let Some(entry) = tables.entry(key)
    {
        return Some(entry);
    }
    (key.daddr, key.dport) = ([0; 16], dport);
    if kinds & kind::PORT != 0
        && let Some(entry) = tables.entry(key)
    {
        return Some(entry);
    }
    key.dport = [0; 2];
    if kinds & kind::ANY != 0 {
        tables.entry(key)
    } else {
        None
    }
}

/// Fills `table` by Maglev's population (NSDI 2016, §3.4): weights are turns, inactive endpoints get none.
/// Returns whether any endpoint is active.
pub fn maglev(table: &mut [u8; 1024], endpoints: &[NatEndpoint]) -> bool {
    let slots = MAGLEV_SLOTS as u64;
    let takes_part = |e: &NatEndpoint| e.active != 0 && e.weight != 0;
    if endpoints.len() > MAX_ENDPOINTS || !endpoints.iter().any(takes_part) {
        return false;
    }
    let start = |e: &NatEndpoint| {
        let hash = fnv1a(&e.addr, &e.port);
        (hash % slots, (hash >> 32) % (slots - 1) + 1)
    };
    let heaviest = endpoints.iter().map(|e| e.weight).max().unwrap_or(1).max(1);
    let mut next = [0u64; MAX_ENDPOINTS];
    let mut credit = [0u32; MAX_ENDPOINTS];
    let mut taken = [false; MAGLEV_SLOTS as usize];
    let mut filled = 0;
    while filled < MAGLEV_SLOTS {
        for (i, endpoint) in endpoints.iter().enumerate().filter(|(_, e)| takes_part(e)) {
            credit[i] += u32::from(endpoint.weight);
            if credit[i] < u32::from(heaviest) || filled == MAGLEV_SLOTS {
                continue;
            }
            credit[i] -= u32::from(heaviest);
            let (offset, skip) = start(endpoint);
            loop {
                let slot = ((offset + next[i] * skip) % slots) as usize;
                next[i] += 1;
                if !taken[slot] {
                    (taken[slot], table[slot]) = (true, i as u8);
                    filled += 1;
                    break;
                }
            }
        }
    }
    true
}

/// FNV-1a with a final mix, so that both halves are usable.
fn fnv1a(a: &[u8], b: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in a.iter().chain(b) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

/// Hash of a flow's tuple for endpoint choice: the same on every node.
#[inline(always)]
pub fn flow_hash<A: Address>(saddr: A, daddr: A, sport: [u8; 2], dport: [u8; 2]) -> u32 {
    let ports = u32::from_ne_bytes([sport[0], sport[1], dport[0], dport[1]]);
    let mut hash = saddr.sum().wrapping_mul(0x9e37_79b1) ^ daddr.sum().wrapping_mul(0x85eb_ca77);
    hash ^= u32::from_ne_bytes(saddr.head()).rotate_left(15) ^ ports;
    hash = (hash ^ hash >> 16).wrapping_mul(0x7feb_352d);
    hash = (hash ^ hash >> 15).wrapping_mul(0x846c_a68b);
    hash ^ hash >> 16
}

/// A source port for a translated flow of this hash: 1024 to 65535, never a privileged one; network byte order.
#[inline(always)]
pub const fn own_port(hash: u32) -> [u8; 2] {
    (1024 + (((hash & 0xffff) * 64512) >> 16) as u16).to_be_bytes()
}

/// The Maglev slot of a hash: its share of the range, by a multiplication that the verifier can bound.
#[inline(always)]
pub const fn slot(hash: u32) -> u32 {
    ((hash as u64 * MAGLEV_SLOTS as u64) >> 32) as u32
}
