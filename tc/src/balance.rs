//! Packets of a load balancer's flows ([`fsm_common::bpf::balance`]).
//!
//! Where the client's address is kept, the stack forwards: the destination is translated on arrival, and an
//! answer's source where it leaves. It cannot be translated sooner, because the virtual address is this host's
//! own, and the stack takes such a source from no device. For the same reason packets with full NAT, whose
//! source is the virtual address both ways, are sent on from here.

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh};
use fsm_common::{
    bpf::fib::{Host as _, device},
    flow::{Flow, nf, opt},
    maps::MARK_REINJECTED,
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
};

use crate::{
    At, NEXT, Outcome,
    ctx::Skb,
    redirect::{ethernet, hop},
    translate::Apply,
};

/// Whether a packet is translated only where it leaves.
///
/// # Errors
/// [`Reason::HopLimit`] where it can go no further.
#[inline(always)]
pub fn waits<A>(at: At, packet: &Parsed<A>, flow: &Flow<A>) -> Result<bool, Reason> {
    if at.hook as u8 != Hook::TcIngress as u8 {
        return Ok(false);
    }
    if flow.opt() & opt::FULL_NAT == 0 {
        return Ok(flow.nf & nf::REPLY != 0);
    }
    if packet.hop_limit <= 1 {
        return Err(Reason::HopLimit);
    }
    Ok(false)
}

/// Lets a translated packet go on, or sends it.
#[inline(always)]
pub fn send<F: Apply, const SLOW: bool>(
    skb: &Skb,
    at: At,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Outcome {
    if at.hook as u8 != Hook::TcIngress as u8 {
        return Ok((Verdict::Nat, NEXT));
    }
    // Where it leaves, it is neither judged nor steered again.
    skb.set_mark(MARK_REINJECTED);
    if !SLOW || flow.opt() & opt::FULL_NAT == 0 {
        return Ok((Verdict::Nat, NEXT));
    }
    Ok((Verdict::Nat, send_on::<F>(skb, packet, flow)?))
}

/// Whether the packet leaves as [`send`] has let it go: all is done already. What this host itself sends may have
/// any mark.
#[inline(always)]
pub fn was_sent_on(skb: &Skb, at: At) -> bool {
    at.hook as u8 == Hook::TcEgress as u8 && skb.arrived_on() != 0 && skb.take_mark(MARK_REINJECTED)
}

/// Sends a translated packet to its next hop, one hop older, as a router does.
#[inline(always)]
fn send_on<F: Apply>(
    skb: &Skb,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<i32, Reason> {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry.
    let params = unsafe { &mut (*scratch).fib };
    let addrs = (flow.to_saddr, flow.to_daddr);
    let device = device::<F, _>(skb, skb.ifindex(), addrs, packet.key.proto, params);
    if device == 0 {
        return Err(Reason::NoRoute);
    }
    hop::<F>(skb, packet.l3_at(), packet.hop_limit).ok_or(Reason::Truncated)?;
    let (smac, dmac) = params.macs();
    if dmac == [0; 6] {
        // Resolves the neighbour, and keeps the packet until then.
        // SAFETY: without parameters the helper asks the routing table itself.
        let action = unsafe { bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) };
        return Ok(action as i32);
    }
    ethernet(skb, dmac, smac).ok_or(Reason::Truncated)?;
    // SAFETY: helper that only takes numbers.
    Ok(unsafe { bpf_redirect(device, 0) } as i32)
}
