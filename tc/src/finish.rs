//! The last step of packets that needed more than their entry: inspection, where their flow is under it, and then what
//! the flow says. Reached by tail call from all slow programs; one program a family, for both directions. A program of
//! its own, because the verifier would walk through it once for each way that leads here.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        judge::{BACK, BACK_HALF, HALF},
        maps::{FSM_PROG, xcfg_at},
    },
    flow::{V4, V6, nf},
    maps::{Xcfg, slow},
    parse::Parsed,
    reason::Reason,
    stats::Hook,
    view::PacketView as _,
};

use crate::{
    At, NEXT, Outcome,
    ctx::Skb,
    deliver,
    inspect::{inspect, is_here},
    reset,
    translate::Apply,
};

/// IPv4.
#[classifier]
#[inline(always)]
pub fn fsm_tc_finish4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[classifier]
#[inline(always)]
pub fn fsm_tc_finish6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx)
}

/// Hands over a packet that is counted already: `READY` where its flow is in the main table, [`HALF`] where the work
/// space has it; [`BACK`] and [`BACK_HALF`] for one that a worker gave back. Comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    from: u8,
) -> Outcome {
    let slot = if F::V6 { slow::FINISH6 } else { slow::FINISH4 };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU. The packet may be there already.
    unsafe {
        if !core::ptr::eq(packet, &raw const (*scratch).packet) {
            (*scratch).packet = *packet;
        }
        (*scratch).verdict = u64::from(from);
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
    let (packet, from) = unsafe { (&(*scratch).packet, (*scratch).verdict as u8) };
    let is_main = from != HALF && from != BACK_HALF;
    let flow = if is_main {
        // Removed in this very moment; whoever sends will send again.
        F::flow(&packet.key).ok_or(Reason::Internal)?
    } else {
        // SAFETY: this CPU's own entry; no other field of it is borrowed mutably.
        unsafe { &raw mut (*scratch).flow }
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    let is_back = from == BACK || from == BACK_HALF;
    if flow.nf & nf::INSPECT != 0
        && !is_back
        && is_here(skb, at)
        && let Some(done) = inspect::<F>(skb, at, cfg, packet, flow, is_main)?
    {
        return Ok(done);
    }
    deliver::<F, true>(skb, at, cfg, packet, flow)
}
