//! Known flows for which the entry of the packet's direction alone does not do: half-open ones, those judged
//! under an older policy, opening, closing and resetting segments, and flows that may be over. Reached by
//! tail call; one program a family, for both directions.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        Next, again,
        fib::Host as _,
        half,
        judge::{AGAIN, READY, ask_acl},
        maps::{FSM_PROG, xcfg_at},
    },
    flow::{V4, V6},
    maps::{Xcfg, slow},
    parse::Parsed,
    policy::acl,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
};

use crate::{
    At, NEXT, Outcome, act,
    ctx::Skb,
    forward,
    slow::{call as call_judge, measure},
    translate::Apply,
};

/// IPv4.
#[classifier]
#[inline(always)]
pub fn fsm_tc_known4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[classifier]
#[inline(always)]
pub fn fsm_tc_known6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx)
}

/// Hands the packet over, with [`AGAIN`], `HALF` or [`READY`]; comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(skb: &Skb, at: At, cfg: &Xcfg, packet: &Parsed<F::Addr>, why: u8) -> Outcome {
    let slot = if F::V6 { slow::KNOWN6 } else { slow::KNOWN4 };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU. The packet may be there already.
    unsafe {
        if !core::ptr::eq(packet, &raw const (*scratch).packet) {
            (*scratch).packet = *packet;
        }
        (*scratch).verdict = u64::from(why);
        (*scratch).hook = at.hook as u64;
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Apply>(ctx: TcContext) -> i32 {
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
fn run<F: Apply>(skb: &Skb, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let cfg = xcfg_at(unsafe { (*scratch).cfg }).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let (packet, why) = unsafe { (&(*scratch).packet, (*scratch).verdict) };
    measure(skb, packet, scratch);
    if why == u64::from(READY) {
        let Some(flow) = F::flow(&packet.key) else {
            return Err(Reason::Internal.into());
        };
        // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
        let flow = unsafe { &mut *flow };
        return act::<F, true, true>(skb, at, cfg, packet, flow, skb.now_ns());
    }
    let is_half = why != u64::from(AGAIN);
    let judgement = if is_half {
        half::<F, _>(skb, cfg, at.iface, at.place, packet)
    } else {
        again::<F, _>(skb, cfg, at.iface, at.place, packet)
    };
    match judgement.next() {
        // Counted already; the entry may be evicted at any moment, this copy of it is ours.
        Ok(Next::Flow) if is_half => {
            // SAFETY: as above.
            return forward::<F>(skb, at, cfg, packet, unsafe { &(*scratch).flow });
        }
        Ok(Next::Flow) => {
            if let Some(flow) = F::flow(&packet.key) {
                // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
                let flow = unsafe { &mut *flow };
                return act::<F, false, true>(skb, at, cfg, packet, flow, skb.now_ns());
            }
        }
        Ok(Next::Pass) => return Ok((Verdict::Pass, NEXT)),
        Ok(Next::New) => {}
        Err(reason) => return Err(reason),
    }
    match ask_acl::<F, false>(cfg, at.place, &packet.key) {
        acl::DENY => Err(Reason::AclDeny.into()),
        verdict => call_judge::<F>(skb, at, cfg, packet, verdict),
    }
}
