//! Known flows for which the entry of the packet's direction alone does not do: half-open ones, those judged
//! under an older policy, opening, closing and resetting segments, and flows that may be over. Reached by
//! tail call; one program a family and table, for both directions.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        Next, again, count,
        fib::Host as _,
        half,
        judge::{HALF, READY, ask_acl},
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
    At, NEXT, Outcome,
    ctx::Skb,
    finish,
    slow::{call as call_judge, measure},
    translate::Apply,
};

/// IPv4, of the main table.
#[classifier]
#[inline(always)]
pub fn fsm_tc_known4(ctx: TcContext) -> i32 {
    enter::<V4, false>(ctx)
}

/// IPv6, of the main table.
#[classifier]
#[inline(always)]
pub fn fsm_tc_known6(ctx: TcContext) -> i32 {
    enter::<V6, false>(ctx)
}

/// IPv4, of the small table.
#[classifier]
#[inline(always)]
pub fn fsm_tc_half4(ctx: TcContext) -> i32 {
    enter::<V4, true>(ctx)
}

/// IPv6, of the small table.
#[classifier]
#[inline(always)]
pub fn fsm_tc_half6(ctx: TcContext) -> i32 {
    enter::<V6, true>(ctx)
}

/// Hands the packet over, with `AGAIN` or [`HALF`]; comes back only where that fails.
#[inline(always)]
pub fn call<F: Apply>(skb: &Skb, at: At, cfg: &Xcfg, packet: &Parsed<F::Addr>, why: u8) -> Outcome {
    let slot = match (why == HALF, F::V6) {
        (false, false) => slow::KNOWN4,
        (false, true) => slow::KNOWN6,
        (true, false) => slow::HALF4,
        (true, true) => slow::HALF6,
    };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU. The packet may be there already.
    unsafe {
        if !core::ptr::eq(packet, &raw const (*scratch).packet) {
            (*scratch).packet = *packet;
        }
        (*scratch).hook = at.hook as u64;
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Apply, const IS_HALF: bool>(ctx: TcContext) -> i32 {
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
    at.leave(run::<F, IS_HALF>(&skb, at), bytes)
}

#[inline(always)]
fn run<F: Apply, const IS_HALF: bool>(skb: &Skb, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let cfg = xcfg_at(unsafe { (*scratch).cfg }).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let packet = unsafe { &(*scratch).packet };
    measure(skb, packet, scratch);
    let judgement = if IS_HALF {
        half::<F, _>(skb, cfg, at.iface, at.place, packet)
    } else {
        again::<F, _>(skb, cfg, at.iface, at.place, packet)
    };
    match judgement.next() {
        // Counted already; the entry may be evicted at any moment, the copy of it in the work space is ours.
        Ok(Next::Flow) if IS_HALF => return finish::call::<F>(skb, at, cfg, packet, HALF),
        Ok(Next::Flow) => {
            if let Some(flow) = F::flow(&packet.key) {
                let (segments, bytes) = (skb.segments(), skb.frame_len() as u64);
                // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
                let flow = unsafe { &mut *flow };
                count::flow(flow, at.iface.ifindex, skb.now_ns(), segments, bytes);
                return finish::call::<F>(skb, at, cfg, packet, READY);
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
