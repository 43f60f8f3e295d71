//! Flow keys and the state kept for each direction of a flow.
//!
//! A connection has two entries, one for each direction, keyed by the tuple *as seen on arrival* at its
//! hook. Each entry says what its packets become (`to_*`), so an established packet costs one lookup and
//! one rewrite. An entry's counters and `tcp` byte are written by the hook of interface `ifindex` alone;
//! what the other direction knows is in the other entry, found by [`Flow::pair_key`].

use core::hash::Hash;

use crate::{rewrite, track::MAX_SCALE};

/// IPv4 or IPv6: what differs between the two, as types.
pub trait Family: Copy + 'static {
    /// An address, in network byte order.
    type Addr: Address;
    /// `AF_INET` or `AF_INET6` (`linux/socket.h`).
    const AF: u8;
    /// True for IPv6.
    const V6: bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];
    const AF: u8 = 2;
    const V6: bool = false;
}

impl Family for V6 {
    type Addr = [u8; 16];
    const AF: u8 = 10;
    const V6: bool = true;
}

/// An address in network byte order: `[u8; 4]` or `[u8; 16]`.
pub trait Address: Copy + PartialEq + Eq + Hash + core::fmt::Debug + 'static {
    /// The unspecified address.
    const ANY: Self;
    /// In a field of 16 bytes, IPv4 first and then zeros, as in the seed's maps.
    fn widen(self) -> [u8; 16];
    /// The address in the front of such a field.
    fn narrow(wide: [u8; 16]) -> Self;
    /// The first four bytes.
    fn head(self) -> [u8; 4];
    /// An address of these bytes and zeros.
    fn from_head(head: [u8; 4]) -> Self;
    /// The 16-bit words, in memory order, added up without folding (RFC 1071).
    fn sum(self) -> u32;
    /// Equality by words: the BPF target has no `memcmp`.
    fn same(&self, other: &Self) -> bool;
    /// Multicast, broadcast, unspecified, loopback or link-local: never steered.
    fn is_local_scope(self) -> bool;
}

#[inline(always)]
const fn word(a: u8, b: u8) -> u32 {
    u16::from_ne_bytes([a, b]) as u32
}

impl Address for [u8; 4] {
    const ANY: Self = [0; 4];

    #[inline(always)]
    fn widen(self) -> [u8; 16] {
        let mut wide = [0; 16];
        (wide[0], wide[1], wide[2], wide[3]) = (self[0], self[1], self[2], self[3]);
        wide
    }

    #[inline(always)]
    fn narrow(w: [u8; 16]) -> Self {
        [w[0], w[1], w[2], w[3]]
    }

    #[inline(always)]
    fn head(self) -> [u8; 4] {
        self
    }

    #[inline(always)]
    fn from_head(head: [u8; 4]) -> Self {
        head
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        word(self[0], self[1]) + word(self[2], self[3])
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        u32::from_ne_bytes(*self) == u32::from_ne_bytes(*other)
    }

    #[inline(always)]
    fn is_local_scope(self) -> bool {
        // 224/4 multicast, 240/4 reserved and 255.255.255.255; 169.254/16 RFC 3927
        self[0] >= 224 || self[0] == 127 || self[0] == 0 || (self[0] == 169 && self[1] == 254)
    }
}

impl Address for [u8; 16] {
    const ANY: Self = [0; 16];

    #[inline(always)]
    fn widen(self) -> [u8; 16] {
        self
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> Self {
        wide
    }

    #[inline(always)]
    fn head(self) -> [u8; 4] {
        [self[0], self[1], self[2], self[3]]
    }

    #[inline(always)]
    fn from_head(head: [u8; 4]) -> Self {
        head.widen()
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let mut sum = 0;
        let mut i = 0;
        while i < 16 {
            sum += word(self[i], self[i + 1]);
            i += 2;
        }
        sum
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        u128::from_ne_bytes(*self) == u128::from_ne_bytes(*other)
    }

    #[inline(always)]
    fn is_local_scope(self) -> bool {
        // ff00::/8 multicast, fe80::/10 link-local, ::/64 unspecified and loopback
        self[0] == 0xff
            || (self[0] == 0xfe && self[1] & 0xc0 == 0x80)
            || u64::from_ne_bytes([
                self[0], self[1], self[2], self[3], self[4], self[5], self[6], self[7],
            ]) == 0
    }
}

/// The tuple of a packet as it arrived, network byte order.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address.
    pub saddr: A,
    /// Destination address.
    pub daddr: A,
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 16 && size_of::<FlowKey<[u8; 16]>>() == 40);
crate::pod!(FlowKey<[u8; 4]>);
crate::pod!(FlowKey<[u8; 16]>);

impl<A: Address> FlowKey<A> {
    /// The tuple of the answer to this packet.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        let mut answer = *self;
        answer.set_reversed(self);
        answer
    }

    /// Makes this the tuple of the answer to `packet`.
    #[inline(always)]
    pub fn set_reversed(&mut self, packet: &Self) {
        self.saddr = packet.daddr;
        self.daddr = packet.saddr;
        self.sport = packet.dport;
        self.dport = packet.sport;
        self.proto = packet.proto;
        self.pad = [0; 3];
    }
}

/// Bits of [`Flow::nf`]. The first three have the seed's numbers.
pub mod nf {
    /// Packets pass (absent: NF_DENY; such flows are never stored).
    pub const ALLOW: u8 = 1;
    /// Packets are translated to `to_*`.
    pub const XNAT: u8 = 2;
    /// Packets are redirected past the stack; `to_*` holds device and MAC instead.
    pub const RDIR: u8 = 4;
    /// The answering direction.
    pub const REPLY: u8 = 8;
    /// The flow was steered to an inbound listener: the app is the server (seed: TC_DIR_IGR).
    pub const INBOUND: u8 = 16;
    /// Judged by a hook that could not see where the packet goes; the app's device judges again.
    pub const PROVISIONAL: u8 = 32;
    /// The ACL trusts the peer.
    pub const TRUST: u8 = 64;
    /// Under inspection: `fsm_verdict` says what became of it, and until it does, a worker gets its packets.
    pub const INSPECT: u8 = 128;
}

/// Bits of [`Flow::opt`]: what its NAT entry asked for, and who opened it. Alike in both directions.
pub mod opt {
    /// Made by a load balancer's entry (`sys::E4LB`).
    pub const BALANCED: u8 = 1;
    /// The client's address is translated too.
    pub const FULL_NAT: u8 = 2;
    /// Ends when the entry no longer has its endpoint (`on_removed = "reset"`).
    pub const RESET: u8 = 4;
    /// Opened by this host itself, not by or to an app.
    pub const HOST: u8 = 8;
}

/// State of one direction of a flow. Mirrored in both directions where both need it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// CLOCK_MONOTONIC (coarse) of the last packet.
    pub last_seen_ns: u64,
    /// Packets of this direction; segments of a GSO frame each count.
    pub packets: u64,
    /// Frame bytes of this direction.
    pub bytes: u64,
    /// Source address after translation.
    pub to_saddr: A,
    /// Destination address after translation.
    pub to_daddr: A,
    /// Source port after translation.
    pub to_sport: [u8; 2],
    /// Destination port after translation.
    pub to_dport: [u8; 2],
    /// One's complement difference that the addresses make in a checksum (memory order).
    pub addr_delta: u16,
    /// The same for the ports.
    pub port_delta: u16,
    /// Policy generation under which the flow was judged.
    pub generation: u32,
    /// Interface whose hook counts this direction; 0 until its first packet.
    pub ifindex: u32,
    /// CLOCK_MONOTONIC when the flow was made, in units of [`CREATED_UNIT_NS`] (24 bits, so that ages of up to 104 days are told); above it
    /// bits of [`opt`] (4 bits) and this direction's TCP window scale (4 bits). See [`Flow::age`],
    /// [`Flow::opt`] and [`Flow::scale`].
    pub born: u32,
    /// TCP: the sequence number after the last byte sent in this direction, host order.
    pub seq_end: u32,
    /// TCP: the highest acknowledgement given in this direction, host order; valid if `tcp` has ACK.
    pub acked: u32,
    /// TCP: the largest window offered in this direction, not scaled.
    pub window: u16,
    /// Bits of [`nf`].
    pub nf: u8,
    /// TCP flags that were seen in this direction and can be the connection's own ([`crate::track`]).
    pub tcp: u8,
}

// With the kernel's 48 bytes and the key, an IPv4 entry is 128 bytes: two cache lines.
const _: () = assert!(size_of::<Flow<[u8; 4]>>() == 64 && size_of::<Flow<[u8; 16]>>() == 88);
crate::pod!(Flow<[u8; 4]>);
crate::pod!(Flow<[u8; 16]>);

impl<A> Flow<A> {
    /// How long ago the flow was made, in units of [`CREATED_UNIT_NS`]; 0 for a clock that is behind.
    #[inline(always)]
    pub fn age(&self, now_ns: u64) -> u32 {
        let age = ((now_ns >> 30) as u32).wrapping_sub(self.born) & CREATED_BITS;
        if age > CREATED_BITS / 2 { 0 } else { age }
    }

    /// When the flow was made, of [`Flow::born`]: alike in both directions.
    #[inline(always)]
    pub fn made(&self) -> u32 {
        self.born & CREATED_BITS
    }

    /// Bits of [`opt`].
    #[inline(always)]
    pub fn opt(&self) -> u8 {
        (self.born >> OPT_SHIFT) as u8 & OPT_BITS
    }

    /// Adds bits of [`opt`].
    #[inline(always)]
    pub fn add_opt(&mut self, bits: u8) {
        self.born |= u32::from(bits & OPT_BITS) << OPT_SHIFT;
    }

    /// TCP window scale of this direction (RFC 7323 §2.2).
    #[inline(always)]
    pub fn scale(&self) -> u32 {
        self.born >> SCALE_SHIFT
    }

    /// Sets it; more than 14 counts as 14.
    #[inline(always)]
    pub fn set_scale(&mut self, scale: u8) {
        let scale = if scale > MAX_SCALE { MAX_SCALE } else { scale };
        let rest = self.born & ((1 << SCALE_SHIFT) - 1);
        self.born = rest | u32::from(scale) << SCALE_SHIFT;
    }
}

impl<A: Address> Flow<A> {
    /// What the packets with `key` look like after translation.
    #[inline(always)]
    pub fn translated(&self, key: &FlowKey<A>) -> FlowKey<A> {
        if self.nf & nf::RDIR != 0 {
            return *key;
        }
        FlowKey {
            saddr: self.to_saddr,
            daddr: self.to_daddr,
            sport: self.to_sport,
            dport: self.to_dport,
            proto: key.proto,
            pad: [0; 3],
        }
    }

    /// Key of the other direction's entry.
    #[inline(always)]
    pub fn pair_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        self.translated(key).reversed()
    }

    /// Sets the translation `key` → `to` with its checksum differences.
    #[inline(always)]
    pub fn set_translation(&mut self, key: &FlowKey<A>, to: &FlowKey<A>) {
        (self.addr_delta, self.port_delta) = rewrite::deltas(key, to);
        self.to_saddr = to.saddr;
        self.to_daddr = to.daddr;
        self.to_sport = to.sport;
        self.to_dport = to.dport;
    }

    /// Device and destination MAC of a redirected flow (`nf::RDIR`).
    #[inline(always)]
    pub fn redirect(&self) -> (u32, [u8; 6]) {
        let mac = self.to_daddr.head();
        (
            u32::from_ne_bytes(self.to_saddr.head()),
            [
                mac[0],
                mac[1],
                mac[2],
                mac[3],
                self.to_sport[0],
                self.to_sport[1],
            ],
        )
    }

    /// Makes the flow a redirected one.
    #[inline(always)]
    pub fn set_redirect(&mut self, ifindex: u32, dmac: [u8; 6]) {
        self.to_saddr = A::from_head(ifindex.to_ne_bytes());
        self.to_daddr = A::from_head([dmac[0], dmac[1], dmac[2], dmac[3]]);
        self.to_sport = [dmac[4], dmac[5]];
        self.nf |= nf::RDIR;
    }

    /// Takes translation and redirect back; `key` is the entry's own.
    #[inline(always)]
    pub fn pass_unchanged(&mut self, key: &FlowKey<A>) {
        self.nf &= !(nf::XNAT | nf::RDIR);
        self.to_saddr = key.saddr;
        self.to_daddr = key.daddr;
        self.to_sport = key.sport;
        self.to_dport = key.dport;
        (self.addr_delta, self.port_delta) = (0, 0);
    }

    /// Makes this the entry of a flow without packets that passes as it is; `key` is its own. In place,
    /// since the BPF stack is small.
    #[inline(always)]
    pub fn start(&mut self, key: &FlowKey<A>, generation: u32, now_ns: u64) {
        self.last_seen_ns = now_ns;
        self.packets = 0;
        self.bytes = 0;
        self.generation = generation;
        self.ifindex = 0;
        self.born = (now_ns >> 30) as u32 & CREATED_BITS;
        (self.seq_end, self.acked, self.window) = (0, 0, 0);
        self.nf = nf::ALLOW;
        self.tcp = 0;
        self.pass_unchanged(key);
    }
}

/// Unit of [`Flow::created`]: 2^30 ns, a shift in the kernel instead of a division.
pub const CREATED_UNIT_NS: u64 = 1 << 30;
const CREATED_BITS: u32 = (1 << OPT_SHIFT) - 1;
const OPT_SHIFT: u32 = 24;
const OPT_BITS: u8 = 0xf;
const SCALE_SHIFT: u32 = 28;
