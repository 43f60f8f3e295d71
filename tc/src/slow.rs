//! New flows, flows under an older policy, and full NAT: reached by tail call, one program a direction and family.

use aya_ebpf::{macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        Next, count, judge,
        judge::{AGAIN, READY},
        maps::{FSM_PROG, xcfg},
        rejudge,
    },
    flow::{V4, V6},
    maps::slow,
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
};

use crate::{At, NEXT, Outcome, act, ctx::Skb, reset, translate::Apply};

/// IPv4 from the device.
#[classifier]
pub fn fsm_tc_in4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx, Hook::TcIngress)
}

/// IPv6 from the device.
#[classifier]
pub fn fsm_tc_in6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx, Hook::TcIngress)
}

/// IPv4 to the device.
#[classifier]
pub fn fsm_tc_out4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx, Hook::TcEgress)
}

/// IPv6 to the device.
#[classifier]
pub fn fsm_tc_out6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx, Hook::TcEgress)
}

/// Hands the packet over, with what the ACL says of it, [`AGAIN`] or [`READY`]; comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(skb: &Skb, at: At, packet: &Parsed<F::Addr>, verdict: u8) -> Outcome {
    let slot = match (at.hook as u8 == Hook::TcIngress as u8, F::V6) {
        (true, false) => slow::INGRESS4,
        (true, true) => slow::INGRESS6,
        (false, false) => slow::EGRESS4,
        (false, true) => slow::EGRESS6,
    };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe { ((*scratch).packet, (*scratch).verdict) = (*packet, u64::from(verdict)) };
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: reset::Head>(ctx: TcContext, hook: Hook) -> i32 {
    let skb = Skb::new(ctx);
    let Some(at) = At::new(&skb, hook) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run::<F>(&skb, at), bytes)
}

#[inline(always)]
fn run<F: reset::Head>(skb: &Skb, at: At) -> Outcome {
    let cfg = xcfg().ok_or(Reason::Internal)?;
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let (packet, verdict) = unsafe { (&(*scratch).packet, (*scratch).verdict) };
    let mut next = Next::Anew;
    if verdict == u64::from(READY) {
        next = Next::Flow;
    } else if verdict == u64::from(AGAIN) {
        match rejudge::<F, _>(skb, cfg, at.iface, at.place, packet).next() {
            Ok(judged) => next = judged,
            Err(reason) if reason.is(Reason::NatTargetGone) => {
                let action = reset::answer::<F>(skb, at, cfg, packet).ok_or(reason)?;
                count::dropped(reason);
                return Ok((Verdict::Drop, action));
            }
            Err(reason) => return Err(reason),
        }
    }
    if next == Next::Anew {
        next = judge::<F, _>(skb, cfg, at.iface, at.place, packet).next()?;
    }
    match (next, F::flow(&packet.key)) {
        // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
        (Next::Flow, Some(flow)) => act::<F, true>(skb, at, cfg, packet, unsafe { &mut *flow }),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}
