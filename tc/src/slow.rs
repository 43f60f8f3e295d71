//! New flows, and flows under an older policy: reached by tail call, one program a direction and family.

use aya_ebpf::{macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        Next, judge,
        judge::AGAIN,
        maps::{FSM_PROG, xcfg_at},
        rejudge,
    },
    flow::{V4, V6},
    maps::{Xcfg, slow},
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
};

use crate::{At, NEXT, Outcome, act, ctx::Skb, translate::Apply};

/// IPv4 from the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_in4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx, Hook::TcIngress)
}

/// IPv6 from the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_in6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx, Hook::TcIngress)
}

/// IPv4 to the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_out4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx, Hook::TcEgress)
}

/// IPv6 to the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_out6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx, Hook::TcEgress)
}

/// Hands the packet over, with what the ACL says of it, or [`AGAIN`]; comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    verdict: u8,
) -> Outcome {
    let slot = match (at.hook as u8 == Hook::TcIngress as u8, F::V6) {
        (true, false) => slow::INGRESS4,
        (true, true) => slow::INGRESS6,
        (false, false) => slow::EGRESS4,
        (false, true) => slow::EGRESS6,
    };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe {
        ((*scratch).packet, (*scratch).verdict) = (*packet, u64::from(verdict));
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Apply>(ctx: TcContext, hook: Hook) -> i32 {
    let skb = Skb::new(ctx);
    let Some(at) = At::new(&skb, hook) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run::<F>(&skb, at), bytes)
}

#[inline(always)]
fn run<F: Apply>(skb: &Skb, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let (packet, verdict, cfg) =
        unsafe { (&(*scratch).packet, (*scratch).verdict, (*scratch).cfg) };
    let cfg = xcfg_at(cfg).ok_or(Reason::Internal)?;
    let next = if verdict == u64::from(AGAIN) {
        rejudge::<F, _>(skb, cfg, at.iface, at.place, packet).next()?
    } else {
        judge::<F, _>(skb, cfg, at.iface, at.place, packet).next()?
    };
    match (next, F::flow(&packet.key)) {
        // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
        (Next::Flow, Some(flow)) => act::<F>(skb, at, cfg, packet, unsafe { &mut *flow }),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}
