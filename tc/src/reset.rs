//! Tells the sender of a TCP segment that its connection is over: the segment itself becomes the RST, and goes
//! back out of the device that it came from (RFC 9293 §3.5.2: the sequence number is the one acknowledged, so
//! that it is exactly what the receiver waits for, RFC 5961 §3.2).

use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail};
use fsm_common::{
    checksum,
    flow::{Address as _, V4, V6},
    maps::Xcfg,
    parse::{Fragment, Parsed},
    stats::Hook,
    view::PacketView as _,
    wire::{
        l3::{IPV4_LEN, IPV6_LEN, IpProto},
        l4::{TCP_LEN, tcp_flag},
    },
};

use crate::{At, ctx::Skb, redirect::ethernet, translate::Apply};

/// Data offset of a header without options, and RST alone.
const OFFSET_FLAGS: [u8; 2] = [0x50, tcp_flag::RST];
/// Hop limit of what a host sends.
const HOPS: u8 = 64;

/// Answers with an RST; the action, or `None` where the packet can only be dropped.
#[inline(always)]
pub fn answer<F: Head>(skb: &Skb, at: At, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Option<i32> {
    let (l3, l4) = (packet.l3_at(), packet.l4_at());
    let is_tcp = packet.key.proto == IpProto::TCP.0
        && packet.fragment as u8 == Fragment::Whole as u8
        && packet.tcp_flags & (tcp_flag::ACK | tcp_flag::RST) == tcp_flag::ACK;
    // Only whoever sends to this hook can be reached by its device.
    if !is_tcp || at.hook as u8 != Hook::TcIngress as u8 || l4 != l3 + F::LEN {
        return None;
    }
    // SAFETY: the context is valid; the helper checks the length.
    if unsafe { bpf_skb_change_tail(skb.helper_ctx(), (l4 + TCP_LEN) as u32, 0) } != 0 {
        return None;
    }
    skb.pull_headers();
    let macs = skb.read::<12>(0)?;
    let was = skb.read::<2>(l4 + 16)?;
    // Tells by the way whether the checksum is complete, or only the pseudo header's part of it, to be finished by
    // the device: the helper changes the one downwards and the other upwards.
    const DELTA: u16 = 0x0101;
    let (at, flags) = ((l4 + 16) as u32, F::pseudo_flags(cfg));
    // SAFETY: the context is valid; the helper checks the offset.
    unsafe { bpf_l4_csum_replace(skb.helper_ctx(), at, 0, u64::from(DELTA), flags) };
    // From the front to the back: of a check that a later one implies, the verifier would learn nothing.
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    ethernet(skb, [s0, s1, s2, s3, s4, s5], [d0, d1, d2, d3, d4, d5])?;
    F::write_head(skb, l3, packet)?;
    let tcp = skb.read::<TCP_LEN>(l4)?;
    let (s, d) = (packet.key.dport, packet.key.sport);
    let ack = [tcp[8], tcp[9], tcp[10], tcp[11]];
    let word = |a: u8, b: u8| u32::from(u16::from_ne_bytes([a, b]));
    let [offset, rst] = OFFSET_FLAGS;
    let pseudo = packet.key.saddr.sum()
        + packet.key.daddr.sum()
        + u32::from((TCP_LEN as u16).to_be())
        + word(0, IpProto::TCP.0);
    let header = word(s[0], s[1])
        + word(d[0], d[1])
        + word(ack[0], ack[1])
        + word(ack[2], ack[3])
        + word(offset, rst);
    let check = if [tcp[16], tcp[17]] == checksum::adjust(was, DELTA) {
        !checksum::fold(pseudo + header)
    } else {
        checksum::fold(pseudo)
    };
    let check = check.to_ne_bytes();
    skb.write(
        l4,
        [
            s[0], s[1], d[0], d[1], ack[0], ack[1], ack[2], ack[3], 0, 0, 0, 0, offset, rst, 0, 0,
            check[0], check[1], 0, 0,
        ],
    )?;
    // SAFETY: helper that only takes numbers.
    Some(unsafe { bpf_redirect(skb.ifindex(), 0) } as i32)
}

/// A family's header.
pub trait Head: Apply {
    /// Its bytes without options or extension headers.
    const LEN: usize;
    /// Makes it that of a bare TCP header on its way back.
    fn write_head(skb: &Skb, l3: usize, packet: &Parsed<Self::Addr>) -> Option<()>;
}

impl Head for V4 {
    const LEN: usize = IPV4_LEN;

    #[inline(always)]
    fn write_head(skb: &Skb, l3: usize, packet: &Parsed<Self::Addr>) -> Option<()> {
        let (s, d) = (packet.key.daddr, packet.key.saddr);
        let length = ((IPV4_LEN + TCP_LEN) as u16).to_be_bytes();
        let word = |a: u8, b: u8| u32::from(u16::from_ne_bytes([a, b]));
        // Version and length of the header; do not fragment.
        let sum = word(0x45, 0)
            + word(length[0], length[1])
            + word(0x40, 0)
            + word(HOPS, IpProto::TCP.0)
            + s.sum()
            + d.sum();
        let check = (!checksum::fold(sum)).to_ne_bytes();
        skb.write(l3, [0x45, 0, length[0], length[1], 0, 0, 0x40, 0])?;
        skb.write(
            l3 + 8,
            [
                HOPS,
                IpProto::TCP.0,
                check[0],
                check[1],
                s[0],
                s[1],
                s[2],
                s[3],
                d[0],
                d[1],
                d[2],
                d[3],
            ],
        )
    }
}

impl Head for V6 {
    const LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn write_head(skb: &Skb, l3: usize, packet: &Parsed<Self::Addr>) -> Option<()> {
        let length = (TCP_LEN as u16).to_be_bytes();
        skb.write(
            l3,
            [0x60, 0, 0, 0, length[0], length[1], IpProto::TCP.0, HOPS],
        )?;
        skb.write(l3 + 8, packet.key.daddr)?;
        skb.write(l3 + 24, packet.key.saddr)
    }
}
