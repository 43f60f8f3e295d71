//! The SYN-ACK with a SYN cookie, sent back from here: reached by tail call.
//!
//! The cookie is the kernel's own, made for the listener that TC will steer the client's next packet to, and
//! for the tuple that the listener will see; so its acceptance is the kernel's too, and no state is kept here.
//! Whether it is time for cookies is the listener's to say (`bpf_tcp_gen_syncookie`): always where
//! `net.ipv4.tcp_syncookies` is 2, once its queue is full where it is 1. Asking also sets the mark without
//! which the listener would not believe a cookie. What gets none passes to the stack.
//!
//! Nothing of the SYN but its numbers is believed: the answer's headers are written anew, without the options
//! and extension headers that the SYN's had. The SYN's checksum is not looked at; the stack looks at that of the
//! ACK.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_PASS, XDP_TX},
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie},
    macros::xdp,
    programs::XdpContext,
};
use fsm_common::{
    bpf::{
        Tables, count,
        fib::Host as _,
        guard::listener,
        maps::{FSM_PROG_XDP, xcfg_at},
    },
    cookie::{self, Header, Headers, Terms},
    flow::{Address as _, FlowKey, V4, V6},
    maps::{IfaceEntry, Xcfg, slow},
    parse::Parsed,
    reason::Reason,
    scratch::Scratch,
    stats::Verdict,
    view::PacketView as _,
    wire::{
        l3::{IPV4_LEN, IPV6_LEN},
        l4::TCP_LEN,
    },
};

use crate::{At, Outcome, PASS, ctx::Frame};

/// `BPF_F_CURRENT_NETNS` (`linux/bpf.h`).
const THIS_NETNS: u64 = u64::MAX;
/// Bytes of a tuple in `bpf_sock_tuple`: the front of a [`FlowKey`].
const TUPLE4_LEN: u32 = 12;
const TUPLE6_LEN: u32 = 36;

/// IPv4.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_cookie4(ctx: XdpContext) -> u32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_cookie6(ctx: XdpContext) -> u32 {
    enter::<V6>(ctx)
}

/// Hands the SYN in this CPU's scratch over; comes back only where that fails.
#[inline(always)]
pub fn call<F: Tables>(frame: &Frame) -> Outcome {
    let slot = if F::V6 {
        slow::XDP_COOKIE6
    } else {
        slow::XDP_COOKIE4
    };
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG_XDP.tail_call(frame.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Tables>(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let Some(at) = At::new(&frame) else {
        return XDP_PASS;
    };
    let bytes = frame.frame_len() as u64;
    at.leave(run::<F>(&frame, at), bytes)
}

#[inline(always)]
fn run<F: Tables>(frame: &Frame, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `guard`; no other program runs on this CPU before this one ends.
    let scratch = unsafe { &mut *scratch };
    let cfg = xcfg_at(scratch.cfg).ok_or(Reason::Internal)?;
    let Some(len) = answer::<F>(frame, cfg, at.iface, scratch) else {
        count::reason(Reason::SynCookieNone);
        return PASS;
    };
    send::<F>(frame, &scratch.packet, &mut scratch.headers, len)
}

/// Puts the answer's TCP header into `scratch.headers`, and gives its length; the frame is as it was.
#[inline(always)]
fn answer<F: Tables>(
    frame: &Frame,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    scratch: &mut Scratch<F::Addr>,
) -> Option<usize> {
    let key = &scratch.packet.key;
    let [multicast, _] = frame.read::<2>(0)?;
    if multicast & 1 != 0 || key.saddr.is_local_scope() || key.daddr.is_local_scope() {
        return None;
    }
    listener::<F, _>(frame, cfg, iface.ifindex, scratch)?;
    let l4 = scratch.packet.l4_at();
    let tcp = frame.read::<TCP_LEN>(l4)?;
    let seq = [tcp[4], tcp[5], tcp[6], tcp[7]];
    let len = (usize::from(tcp[12] >> 4) * 4).saturating_sub(TCP_LEN);
    let headers = &mut scratch.headers;
    copy_options(frame, l4 + TCP_LEN, len, &mut headers.options)?;
    let asked = cookie::options(headers, len);
    let isn = isn::<F>(frame, &mut scratch.forward, headers, seq, asked.mss)?;
    let around = TCP_LEN + if F::V6 { IPV6_LEN } else { IPV4_LEN };
    let terms = Terms {
        mss: iface.mtu.wrapping_sub(around as u32) as u16,
        offer: cfg.syn_cookie,
        now_ms: (frame.now_ns() / 1_000_000) as u32,
    };
    let (key, seq) = (&scratch.packet.key, u32::from_be_bytes(seq));
    Some(cookie::syn_ack(
        &mut headers.tcp,
        key,
        seq,
        isn,
        &asked,
        &terms,
    ))
}

/// Copies a SYN's options to where an index can be computed: in a packet each computed offset costs a
/// comparison with its end.
#[inline(always)]
fn copy_options(frame: &Frame, at: usize, len: usize, to: &mut [u8; 64]) -> Option<()> {
    for (i, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        if 4 * i >= len || 4 * i >= cookie::MAX_OPTIONS {
            break;
        }
        *to = frame.read::<4>(at + 4 * i)?;
    }
    Some(())
}

/// The cookie of the listener at the destination of `seen`, the SYN's tuple as it would arrive there; `None`
/// where nobody listens, or no cookie is wanted now.
#[inline(always)]
fn isn<F: Tables>(
    frame: &Frame,
    seen: &mut FlowKey<F::Addr>,
    headers: &mut Headers,
    seq: [u8; 4],
    mss: u16,
) -> Option<u32> {
    cookie::seen_by_listener(&mut headers.tcp, seen, seq, mss);
    ip_header::<F>(&mut headers.ip, seen.saddr, seen.daddr, cookie::SEEN_LEN);
    let (tuple_len, ip_len) = if F::V6 {
        (TUPLE6_LEN, IPV6_LEN)
    } else {
        (TUPLE4_LEN, IPV4_LEN)
    };
    // SAFETY: the tuple's front is laid out as `bpf_sock_tuple`, of that length.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            frame.tail_ctx().as_ptr(),
            (&raw mut *seen).cast(),
            tuple_len,
            THIS_NETNS,
            0,
        )
    };
    if socket.is_null() {
        return None;
    }
    // SAFETY: a socket just looked up, and two headers of the lengths given.
    let cookie = unsafe {
        bpf_tcp_gen_syncookie(
            socket.cast(),
            (&raw mut headers.ip).cast(),
            ip_len as u32,
            (&raw mut headers.tcp).cast(),
            cookie::SEEN_LEN as u32,
        )
    };
    // SAFETY: looked up above, and not used after this.
    unsafe { bpf_sk_release(socket.cast()) };
    // The cookie in the lower half, the segment size that it stands for above it.
    if cookie < 0 {
        None
    } else {
        Some(cookie as u32)
    }
}

#[inline(always)]
fn ip_header<F: Tables>(ip: &mut Header, s: F::Addr, d: F::Addr, tcp_len: usize) {
    if F::V6 {
        cookie::ipv6_header(ip, s.widen(), d.widen(), tcp_len);
    } else {
        cookie::ipv4_header(ip, s.head(), d.head(), tcp_len);
    }
}

/// Makes the frame the answer and sends it back: MACs, addresses and ports swapped, VLAN tags kept.
#[inline(always)]
fn send<F: Tables>(
    frame: &Frame,
    packet: &Parsed<F::Addr>,
    headers: &mut Headers,
    len: usize,
) -> Outcome {
    let key = &packet.key;
    ip_header::<F>(&mut headers.ip, key.daddr, key.saddr, len);
    let l3 = packet.l3_at();
    let l4 = l3 + if F::V6 { IPV6_LEN } else { IPV4_LEN };
    let macs = frame.read::<12>(0).ok_or(Reason::Truncated)?;
    if frame.set_len(l4 + len).is_none() {
        count::reason(Reason::SynCookieNone);
        return PASS;
    }
    // The frame is the SYN no more: from here on it is sent or dropped.
    write::<F>(frame, l3, l4, macs, headers, len).ok_or(Reason::Internal)?;
    count::reason(Reason::SynCookieSent);
    Ok((Verdict::Answer, XDP_TX))
}

#[inline(always)]
fn write<F: Tables>(
    frame: &Frame,
    l3: usize,
    l4: usize,
    m: [u8; 12],
    headers: &Headers,
    len: usize,
) -> Option<()> {
    let swapped = [
        m[6], m[7], m[8], m[9], m[10], m[11], m[0], m[1], m[2], m[3], m[4], m[5],
    ];
    frame.write(0, swapped)?;
    if F::V6 {
        put::<IPV6_LEN>(frame, l3, &headers.ip)?;
    } else {
        put::<IPV4_LEN>(frame, l3, &headers.ip)?;
    }
    match len {
        24 => put::<24>(frame, l4, &headers.tcp),
        36 => put::<36>(frame, l4, &headers.tcp),
        _ => put::<40>(frame, l4, &headers.tcp),
    }
}

/// Writes the first `N` bytes of a header word by word: a copy of all is a loop over bytes.
#[inline(always)]
fn put<const N: usize>(frame: &Frame, at: usize, header: &Header) -> Option<()> {
    for (i, word) in header.0.as_chunks::<4>().0.iter().take(N / 4).enumerate() {
        frame.write(at + 4 * i, *word)?;
    }
    Some(())
}
