//! Flows of entries with `on_removed = "reset"`, at their first packet after a change of policy: those whose
//! endpoint is gone end here. Reached by tail call; one program a family, for both directions. A program of
//! its own, because the verifier walks through all endpoints once for each way that leads there.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        balance::is_target_gone,
        count, forget,
        judge::AGAIN,
        maps::{FSM_PROG, xcfg_at},
    },
    flow::{V4, V6, nf},
    maps::{Xcfg, slow},
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l4::tcp_flag,
};

use crate::{At, NEXT, Outcome, ctx::Skb, known, reset};

/// IPv4.
#[classifier]
#[inline(always)]
pub fn fsm_tc_ended4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[classifier]
#[inline(always)]
pub fn fsm_tc_ended6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx)
}

/// Hands the packet over, with [`AGAIN`] or `HALF`; comes back only where that fails.
#[inline(always)]
pub fn call<F: reset::Head>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    why: u8,
) -> Outcome {
    let slot = if F::V6 { slow::ENDED6 } else { slow::ENDED4 };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe {
        (*scratch).packet = *packet;
        (*scratch).verdict = u64::from(why);
        (*scratch).hook = at.hook as u64;
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: reset::Head>(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let Some(scratch) = F::scratch() else {
        return TC_ACT_SHOT;
    };
    // SAFETY: this CPU's own entry, filled by `call`.
    let hook = if unsafe { (*scratch).hook } == Hook::TcIngress as u64 {
        Hook::TcIngress
    } else {
        Hook::TcEgress
    };
    let Some(at) = At::new(&skb, hook) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run::<F>(&skb, at), bytes)
}

#[inline(always)]
fn run<F: reset::Head>(skb: &Skb, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let cfg = xcfg_at(unsafe { (*scratch).cfg }).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let (packet, why) = unsafe { (&(*scratch).packet, (*scratch).verdict as u8) };
    let key = &packet.key;
    let is_half = why != AGAIN;
    let found = if is_half { F::half(key) } else { F::flow(key) };
    // SAFETY: map value, readable until the program ends.
    let Some(flow) = found.map(|flow| unsafe { &*flow }) else {
        return known::call::<F>(skb, at, cfg, packet, why);
    };
    if !is_target_gone::<F>(cfg, key, flow) {
        return known::call::<F>(skb, at, cfg, packet, why);
    }
    let (bits, other) = (flow.nf, flow.pair_key(key));
    F::half_remove(&other);
    F::half_remove(key);
    // SAFETY: as above; the packet is not touched.
    let scratch = unsafe { &mut *scratch };
    scratch.reply_key = other;
    forget::<F>(cfg, key, bits, scratch);
    // A new connection on the old ports, and a datagram, find another endpoint; whoever goes on with the old
    // one is told.
    let opens = !packet.is_tcp() || packet.tcp_flags & tcp_flag::ACK == 0;
    if opens && bits & nf::REPLY == 0 {
        return known::call::<F>(skb, at, cfg, packet, why);
    }
    let action = reset::answer::<F>(skb, at, cfg, packet).ok_or(Reason::NatTargetGone)?;
    count::reason(Reason::NatTargetGone);
    Ok((Verdict::Drop, action))
}
