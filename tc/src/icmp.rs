//! ICMP and ICMPv6 errors about translated packets: reached by tail call.
//!
//! The quoted packet is one that left here translated, so the entry of its *answer* knows both tuples: keyed
//! by the quoted tuple turned round, it becomes the original one turned round. The error is translated the
//! same way: its destination, its source where that is the flow's own end, and the quote. Path MTU discovery
//! (RFC 1191, RFC 8201) works through NAT by this. An error about no flow of ours passes as it is.

use aya_ebpf::{
    bindings::TC_ACT_SHOT, helpers::generated::bpf_l4_csum_replace, macros::classifier,
    programs::TcContext,
};
use fsm_common::{
    bpf::{
        count,
        maps::{FSM_PROG, xcfg_at},
    },
    checksum,
    flow::{Address as _, Flow, FlowKey, V4, V6, nf, opt},
    maps::{Xcfg, slow},
    parse::{Parsed, quoted4, quoted6},
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l4::ICMP_LEN,
};

use crate::{At, NEXT, Outcome, ctx::Skb, translate::Apply};

/// ICMP.
#[classifier]
#[inline(always)]
pub fn fsm_tc_icmp4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx)
}

/// ICMPv6.
#[classifier]
#[inline(always)]
pub fn fsm_tc_icmp6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx)
}

/// Hands the packet over; comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(skb: &Skb, at: At, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Outcome {
    let slot = if F::V6 { slow::ICMP6 } else { slow::ICMP4 };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe {
        (*scratch).packet = *packet;
        (*scratch).hook = at.hook as u64;
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Quote>(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let Some(scratch) = F::scratch() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: this CPU's own entry, filled by `call`.
    let (packet, hook, cfg) = unsafe { (&(*scratch).packet, (*scratch).hook, (*scratch).cfg) };
    let hook = if hook == Hook::TcIngress as u64 {
        Hook::TcIngress
    } else {
        Hook::TcEgress
    };
    let Some(at) = At::new(&skb, hook) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run::<F>(&skb, cfg, packet), bytes)
}

#[inline(always)]
fn run<F: Quote>(skb: &Skb, cfg: u64, packet: &Parsed<F::Addr>) -> Outcome {
    const PASS: Outcome = Ok((Verdict::Pass, NEXT));
    let cfg = xcfg_at(cfg).ok_or(Reason::Internal)?;
    skb.pull_quote();
    let inner = packet.l4_at() + ICMP_LEN;
    let Some((quoted, ports_at)) = F::quoted(skb, inner) else {
        return PASS;
    };
    let answer = quoted.reversed();
    let Some(flow) = F::find(&answer) else {
        return PASS;
    };
    // SAFETY: map value, readable until the program ends.
    let flow = unsafe { &*flow };
    if flow.nf & nf::XNAT == 0 {
        return PASS;
    }
    let (s, d) = (flow.to_dport, flow.to_sport);
    skb.write(ports_at & 0x3ff, [s[0], s[1], d[0], d[1]])
        .ok_or(Reason::Truncated)?;
    F::write_quote(skb, inner, flow).ok_or(Reason::Truncated)?;
    // A load balancer's address is this host's own, and the stack takes such a source from no device.
    let from_end = packet.key.saddr.same(&answer.saddr) && flow.opt() & opt::BALANCED == 0;
    let outer = Flow {
        to_saddr: if from_end {
            flow.to_saddr
        } else {
            packet.key.saddr
        },
        to_daddr: flow.to_daddr,
        ..*flow
    };
    let outer_delta = checksum::difference(
        packet.key.saddr.sum() + packet.key.daddr.sum(),
        outer.to_saddr.sum() + outer.to_daddr.sum(),
    );
    F::write_addresses(
        skb,
        packet.l3_at(),
        &Flow {
            addr_delta: outer_delta,
            ..outer
        },
    )
    .ok_or(Reason::Truncated)?;
    mend_checksum::<F>(skb, cfg, packet, flow, outer_delta);
    count::reason(Reason::IcmpTranslated);
    Ok((Verdict::Nat, NEXT))
}

/// The ICMP checksum covers the quote, and over IPv6 the pseudo header. A quoted IPv4 header mends itself by
/// its own checksum.
#[inline(always)]
fn mend_checksum<F: Quote>(
    skb: &Skb,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
    outer_delta: u16,
) {
    let at = (packet.l4_at() + 2) as u32;
    let quote_delta = if F::V6 {
        checksum::fold(u32::from(flow.addr_delta) + u32::from(flow.port_delta))
    } else {
        flow.port_delta
    };
    // SAFETY: the context is valid; the helper checks the offset.
    unsafe {
        if quote_delta != 0 {
            bpf_l4_csum_replace(skb.helper_ctx(), at, 0, u64::from(quote_delta), 0);
        }
        if F::V6 && outer_delta != 0 {
            let flags = F::pseudo_flags(cfg);
            bpf_l4_csum_replace(skb.helper_ctx(), at, 0, u64::from(outer_delta), flags);
        }
    }
}

/// Reading and writing the quoted packet.
trait Quote: Apply {
    /// Its tuple, and where its ports are.
    fn quoted(skb: &Skb, l3: usize) -> Option<(FlowKey<Self::Addr>, usize)>;
    /// Puts the original addresses into its header; `flow` is the entry of its answer.
    fn write_quote(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()>;
}

impl Quote for V4 {
    #[inline(always)]
    fn quoted(skb: &Skb, l3: usize) -> Option<(FlowKey<Self::Addr>, usize)> {
        quoted4(skb, l3).map(|quoted| (quoted.key, usize::from(quoted.l4)))
    }

    #[inline(always)]
    fn write_quote(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()> {
        let check = checksum::adjust(skb.read::<2>(l3 + 10)?, flow.addr_delta);
        let (s, d) = (flow.to_daddr, flow.to_saddr);
        skb.write(
            l3 + 10,
            [
                check[0], check[1], s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3],
            ],
        )
    }
}

impl Quote for V6 {
    #[inline(always)]
    fn quoted(skb: &Skb, l3: usize) -> Option<(FlowKey<Self::Addr>, usize)> {
        quoted6(skb, l3).map(|quoted| (quoted.key, usize::from(quoted.l4)))
    }

    #[inline(always)]
    fn write_quote(skb: &Skb, l3: usize, flow: &Flow<Self::Addr>) -> Option<()> {
        skb.write(l3 + 8, flow.to_daddr)?;
        skb.write(l3 + 24, flow.to_saddr)
    }
}
