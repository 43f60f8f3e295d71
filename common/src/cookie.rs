//! A SYN's options, and the SYN-ACK that answers it with a SYN cookie (RFC 4987 §3.6).
//!
//! The cookie itself is the kernel's. What it has no room for, the kernel keeps in the lowest six bits of the
//! SYN-ACK's timestamp, which the client sends back: window scale, SACK, ECN (`net/ipv4/syncookies.c`). So
//! without timestamps a connection by cookie has neither scaling nor SACK. ECN is never agreed on.

use crate::{
    checksum::fold,
    flow::{Address, FlowKey},
    wire::{
        l3::{IPV4_LEN, IpProto},
        l4::{TCP_LEN, tcp_flag},
    },
};

/// Bits of [`crate::maps::Xcfg::syn_cookie`]: what this host's kernel takes back from a cookie.
pub mod offer {
    /// The lowest bits: the window scale that its listeners choose (RFC 7323 §2.3).
    pub const SCALE: u32 = 0xf;
    /// Timestamps without a random offset, so that options can be kept in them.
    pub const TIMESTAMPS: u32 = 0x10;
    /// Selective acknowledgements.
    pub const SACK: u32 = 0x20;
    /// Window scaling.
    pub const WSCALE: u32 = 0x40;
}

/// Option kinds (IANA, TCP parameters) and the lengths that they must have.
mod option {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: (u8, u8) = (2, 4);
    pub const WSCALE: (u8, u8) = (3, 3);
    pub const SACK_OK: (u8, u8) = (4, 2);
    pub const TIMESTAMPS: (u8, u8) = (8, 10);
}

/// Bytes of options that a TCP header can hold.
pub const MAX_OPTIONS: usize = 40;
/// The largest scale (RFC 7323 §2.3).
const MAX_SCALE: u8 = 14;
/// "No window scaling" in a cookie's timestamp.
const NO_SCALE: u32 = 0xf;
/// "SACK" in a cookie's timestamp.
const TS_SACK: u32 = 1 << 4;
/// Bits of the timestamp that hold options; the rest is time in milliseconds.
const TS_BITS: u32 = 6;
/// Bytes that the client may send before the listener has taken over and says more: ten segments, which is
/// what a client begins with (RFC 6928), and less than any listener of the kernel's grants.
const WINDOW: u16 = 14600;
/// Hop limit of the answer.
const HOP_LIMIT: u8 = 64;

/// What a SYN asks for. Plain numbers, since the verifier does not see through `Option`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size; 0 where it is not said.
    pub mss: u16,
    /// Window scale; 15 where it is not said.
    pub scale: u8,
    /// 1 where SACK is permitted.
    pub sack: u8,
    /// 1 where there is a timestamp.
    pub has_timestamp: u8,
    /// The timestamp, to be echoed.
    pub timestamp: [u8; 4],
}

impl SynOptions {
    /// No options.
    pub const NONE: Self = Self {
        mss: 0,
        scale: NO_SCALE as u8,
        sack: 0,
        has_timestamp: 0,
        timestamp: [0; 4],
    };
}

/// Reads the first `len` bytes of `headers.options` as options (RFC 9293 §3.2). What follows a malformed one is
/// not read, as the kernel does.
///
/// Position, length and what is found go through memory at each step. In registers the verifier would know
/// each of them for every way to get there, and walk all of these ways: over a million instructions, against
/// some thousands.
#[inline(always)]
pub fn options(headers: &mut Headers, len: usize) -> SynOptions {
    let byte = |headers: &Headers, at: usize| headers.options[at & 63];
    // Field by field: whole, it would be a copy of a constant in memory.
    let asked = &mut headers.asked;
    forget(&mut asked.mss, SynOptions::NONE.mss);
    forget(&mut asked.scale, SynOptions::NONE.scale);
    forget(&mut asked.sack, SynOptions::NONE.sack);
    forget(&mut asked.has_timestamp, SynOptions::NONE.has_timestamp);
    forget(&mut asked.timestamp, SynOptions::NONE.timestamp);
    forget(&mut headers.len, len as u64);
    forget(&mut headers.at, 0);
    for _ in 0..MAX_OPTIONS {
        let at = bounded(&headers.at);
        let len = bounded(&headers.len);
        if at >= len {
            break;
        }
        let kind = byte(headers, at);
        if kind == option::END {
            break;
        }
        if kind == option::NOP {
            forget(&mut headers.at, at as u64 + 1);
            continue;
        }
        let size = byte(headers, at + 1);
        let next = at + usize::from(size);
        if size < 2 || next > len {
            break;
        }
        match (kind, size) {
            option::MSS => {
                let mss = [byte(headers, at + 2), byte(headers, at + 3)];
                forget(&mut headers.asked.mss, u16::from_be_bytes(mss));
            }
            option::WSCALE => {
                let scale = byte(headers, at + 2).min(MAX_SCALE);
                forget(&mut headers.asked.scale, scale);
            }
            option::SACK_OK => forget(&mut headers.asked.sack, 1),
            option::TIMESTAMPS => {
                let timestamp = [2, 3, 4, 5].map(|i| byte(headers, at + i));
                forget(&mut headers.asked.timestamp, timestamp);
                forget(&mut headers.asked.has_timestamp, 1);
            }
            _ => {}
        }
        forget(&mut headers.at, next as u64);
    }
    recall(&headers.asked)
}

#[inline(always)]
fn forget<T>(place: &mut T, value: T) {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::write_volatile(place, value) };
}

#[inline(always)]
fn recall<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is valid and aligned; it is a copy that is given.
    unsafe { core::ptr::read_volatile(place) }
}

#[inline(always)]
fn bounded(place: &u64) -> usize {
    (recall(place) as usize).min(MAX_OPTIONS)
}

/// What the SYN-ACK says beyond the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Segment size that the node takes.
    pub mss: u16,
    /// Bits of [`offer`].
    pub offer: u32,
    /// CLOCK_MONOTONIC in milliseconds, which is the kernel's timestamp clock.
    pub now_ms: u32,
}

/// Room for a header.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; 40]);

impl Header {
    /// All zero.
    pub const EMPTY: Self = Self([0; 40]);

    /// Clears it word by word: left to itself, LLVM calls a loop over bytes.
    #[inline(always)]
    fn clear(&mut self) -> &mut [u8; 40] {
        let words = (&raw mut *self).cast::<u64>();
        for i in 0..5 {
            // SAFETY: within the 40 bytes, which are aligned to eight.
            unsafe { words.add(i).write_volatile(0) };
        }
        &mut self.0
    }
}

/// Headers in the making: too large for the BPF stack, so they lie in [`crate::scratch::Scratch`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The SYN's options, and anything behind them.
    pub options: [u8; 64],
    /// An IP header, IPv4's in the front.
    pub ip: Header,
    /// A TCP header.
    pub tcp: Header,
    /// Where [`options`] is, and where it ends.
    pub at: u64,
    /// See `at`.
    pub len: u64,
    /// What [`options`] has found.
    pub asked: SynOptions,
}

/// Writes the header that answers the SYN of tuple `syn` and sequence number `seq`, with a complete checksum;
/// gives its length, 24, 36 or 40.
#[inline(always)]
pub fn syn_ack<A: Address>(
    header: &mut Header,
    syn: &FlowKey<A>,
    seq: u32,
    cookie: u32,
    asked: &SynOptions,
    terms: &Terms,
) -> usize {
    let bytes = header.clear();
    let mut len = TCP_LEN + 4;
    let c = cookie.to_be_bytes();
    let a = seq.wrapping_add(1).to_be_bytes();
    let w = WINDOW.to_be_bytes();
    let m = terms.mss.to_be_bytes();
    (bytes[0], bytes[1]) = (syn.dport[0], syn.dport[1]);
    (bytes[2], bytes[3]) = (syn.sport[0], syn.sport[1]);
    (bytes[4], bytes[5], bytes[6], bytes[7]) = (c[0], c[1], c[2], c[3]);
    (bytes[8], bytes[9], bytes[10], bytes[11]) = (a[0], a[1], a[2], a[3]);
    bytes[13] = tcp_flag::SYN | tcp_flag::ACK;
    (bytes[14], bytes[15]) = (w[0], w[1]);
    (bytes[20], bytes[21]) = option::MSS;
    (bytes[22], bytes[23]) = (m[0], m[1]);
    if asked.has_timestamp != 0 && terms.offer & offer::TIMESTAMPS != 0 {
        let has_sack = asked.sack != 0 && terms.offer & offer::SACK != 0;
        let has_scale = u32::from(asked.scale) != NO_SCALE && terms.offer & offer::WSCALE != 0;
        let t = timestamp(terms.now_ms, asked.scale, has_sack, has_scale).to_be_bytes();
        let e = asked.timestamp;
        (bytes[24], bytes[25]) = if has_sack {
            option::SACK_OK
        } else {
            (option::NOP, option::NOP)
        };
        (bytes[26], bytes[27]) = option::TIMESTAMPS;
        (bytes[28], bytes[29], bytes[30], bytes[31]) = (t[0], t[1], t[2], t[3]);
        (bytes[32], bytes[33], bytes[34], bytes[35]) = (e[0], e[1], e[2], e[3]);
        len = TCP_LEN + 16;
        if has_scale {
            bytes[36] = option::NOP;
            (bytes[37], bytes[38]) = option::WSCALE;
            bytes[39] = (terms.offer & offer::SCALE) as u8;
            len = TCP_LEN + 20;
        }
    }
    bytes[12] = (len as u8 / 4) << 4;
    let addresses = syn.saddr.sum() + syn.daddr.sum();
    let mut sum = addresses + word(0, IpProto::TCP.0) + word(0, len as u8);
    // What is not used is zero and adds nothing.
    for i in 0..20 {
        sum += word(bytes[2 * i], bytes[2 * i + 1]);
    }
    [bytes[16], bytes[17]] = (!fold(sum)).to_ne_bytes();
    len
}

/// The time with the options in its lowest bits, never later than now: what the connection sends afterwards
/// must not look older.
#[inline(always)]
fn timestamp(now_ms: u32, scale: u8, has_sack: bool, has_scale: bool) -> u32 {
    let scale = if has_scale {
        u32::from(scale)
    } else {
        NO_SCALE
    };
    let options = scale | if has_sack { TS_SACK } else { 0 };
    let time = now_ms >> TS_BITS << TS_BITS | options;
    if time > now_ms {
        time.wrapping_sub(1 << TS_BITS)
    } else {
        time
    }
}

/// Writes the IPv4 header of a TCP segment of `tcp_len` bytes.
#[inline(always)]
pub fn ipv4_header(header: &mut Header, s: [u8; 4], d: [u8; 4], tcp_len: usize) {
    let total = ((IPV4_LEN + tcp_len) as u16).to_be_bytes();
    let ip = header.clear();
    ip[0] = 0x45;
    (ip[2], ip[3]) = (total[0], total[1]);
    // Do not fragment, so no identification is needed (RFC 6864 §4.1).
    ip[6] = 0x40;
    (ip[8], ip[9]) = (HOP_LIMIT, IpProto::TCP.0);
    (ip[12], ip[13], ip[14], ip[15]) = (s[0], s[1], s[2], s[3]);
    (ip[16], ip[17], ip[18], ip[19]) = (d[0], d[1], d[2], d[3]);
    let mut sum = 0;
    for i in 0..IPV4_LEN / 2 {
        sum += word(ip[2 * i], ip[2 * i + 1]);
    }
    [ip[10], ip[11]] = (!fold(sum)).to_ne_bytes();
}

/// Writes the IPv6 header of a TCP segment of `tcp_len` bytes.
#[inline(always)]
pub fn ipv6_header(header: &mut Header, s: [u8; 16], d: [u8; 16], tcp_len: usize) {
    let payload = (tcp_len as u16).to_be_bytes();
    let ip = header.clear();
    ip[0] = 0x60;
    (ip[4], ip[5]) = (payload[0], payload[1]);
    (ip[6], ip[7]) = (IpProto::TCP.0, HOP_LIMIT);
    for i in 0..16 {
        (ip[8 + i], ip[24 + i]) = (s[i], d[i]);
    }
}

/// Writes the SYN's TCP header as the listener would see it, of [`SEEN_LEN`] bytes: its ports, and of the
/// options the segment size alone, which is all that the kernel's cookie takes.
#[inline(always)]
pub fn seen_by_listener<A>(header: &mut Header, key: &FlowKey<A>, seq: [u8; 4], mss: u16) {
    let m = mss.to_be_bytes();
    let bytes = header.clear();
    (bytes[0], bytes[1]) = (key.sport[0], key.sport[1]);
    (bytes[2], bytes[3]) = (key.dport[0], key.dport[1]);
    (bytes[4], bytes[5], bytes[6], bytes[7]) = (seq[0], seq[1], seq[2], seq[3]);
    bytes[12] = (SEEN_LEN as u8 / 4) << 4;
    bytes[13] = tcp_flag::SYN;
    // Without the option, four zeros: the end of the options.
    if mss != 0 {
        (bytes[20], bytes[21]) = option::MSS;
        (bytes[22], bytes[23]) = (m[0], m[1]);
    }
}

/// Bytes that [`seen_by_listener`] writes.
pub const SEEN_LEN: usize = TCP_LEN + 4;

#[inline(always)]
const fn word(a: u8, b: u8) -> u32 {
    u16::from_ne_bytes([a, b]) as u32
}
