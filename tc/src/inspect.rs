//! Packets of flows under inspection: reached by tail call, one program a family, for both directions. A worker's
//! verdict decides; without one yet, a worker gets the packet, or a copy of it.
//!
//! A packet is taken where it comes from a device of ours; one of this host itself where it leaves, after translation:
//! so a worker sees both directions as the flow's two ends do.

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    helpers::generated::{bpf_clone_redirect, bpf_redirect},
    macros::classifier,
    programs::TcContext,
};
use fsm_common::{
    bpf::{
        count,
        fib::Host as _,
        inspect::{fold, forget_earlier, label, said, view},
        judge::READY,
        maps::{FSM_ESCALATED, FSM_PROG, iface, xcfg_at},
    },
    escalate::verdict,
    flow::{Flow, V4, V6, nf},
    maps::{Xcfg, feature, slow},
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
};

use crate::{At, NEXT, Outcome, ctx::Skb, deliver, reset, translate};

/// IPv4.
#[classifier]
#[inline(always)]
pub fn fsm_tc_inspect4(ctx: TcContext) -> i32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[classifier]
#[inline(always)]
pub fn fsm_tc_inspect6(ctx: TcContext) -> i32 {
    enter::<V6>(ctx)
}

/// Whether this hook is the one that inspects: for a packet that came by a device of ours, that device's was.
#[inline(always)]
pub fn is_here(skb: &Skb, at: At) -> bool {
    let from = skb.arrived_on();
    !at.place.is_egress() || from == 0 || iface(from).is_none()
}

/// Hands the packet over: [`READY`] where its flow is in the main table, `HALF` where the work space has it. Comes
/// back only where that fails.
#[inline(always)]
pub fn call<F: translate::Apply>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    from: u8,
) -> Outcome {
    let slot = if F::V6 {
        slow::INSPECT6
    } else {
        slow::INSPECT4
    };
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
    let (packet, from) = unsafe { (&(*scratch).packet, (*scratch).verdict) };
    let main = F::flow(&packet.key);
    let flow = match main {
        Some(flow) => flow,
        None if from == u64::from(READY) => return Err(Reason::EscalationLost.into()),
        // SAFETY: this CPU's own entry; no other field of it is borrowed mutably.
        None => unsafe { &raw mut (*scratch).flow },
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    let view = view::<F>(at.place, &packet.key, flow);
    forget_earlier::<F>(packet, &view);
    match said::<F>(cfg, &view, flow) {
        verdict::ALLOW => {
            if main.is_some() {
                fold(flow);
                count::reason(Reason::DpiAllowed);
            }
        }
        verdict::DENY => return Err(Reason::DpiDeny.into()),
        verdict::RESET => {
            let action = reset::answer::<F>(skb, at, cfg, packet).ok_or(Reason::DpiReset)?;
            count::reason(Reason::DpiReset);
            return Ok((Verdict::Drop, action));
        }
        _ => {
            if let Some(outcome) = escalate::<F>(skb, at, cfg, packet, flow, &view)? {
                return Ok(outcome);
            }
        }
    }
    deliver::<F, true>(skb, at, cfg, packet, flow)
}

/// Gives a worker the packet; `None` where that goes on by itself: a worker has a copy, or there is none and that is
/// to be let through.
#[inline(always)]
fn escalate<F: reset::Head>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
    view: &fsm_common::flow::FlowKey<F::Addr>,
) -> Result<Option<(Verdict, i32)>, fsm_common::bpf::Dropped> {
    let is_copy = cfg.features & feature::INSPECT_COPY != 0;
    let slot = FSM_ESCALATED.get_ptr_mut(0).ok_or(Reason::Internal)?;
    let Some(label) = label::<F>(cfg, view, flow, at.hook, at.iface.ifindex) else {
        let reasons = (Reason::DpiNoWorker, Reason::DpiNoWorkerOpen);
        return without(cfg, is_copy, reasons);
    };
    let (l3, l4) = (packet.l3_at(), packet.l4_at());
    if l3 + skb.wire_l3_len(l3, l4) > cfg.dpi_frame as usize {
        let reasons = (Reason::DpiTooLarge, Reason::DpiTooLargeOpen);
        return without(cfg, is_copy, reasons);
    }
    if is_copy {
        // SAFETY: this CPU's own entry; the context is valid. `fsm_dpi_tx` runs before the helper returns.
        unsafe {
            *slot = label;
            bpf_clone_redirect(skb.helper_ctx(), cfg.dpi_ifindex, 0);
            (*slot).magic = 0;
        }
        skb.pull_headers();
        return Ok(None);
    }
    if at.place.is_egress() && flow.nf & nf::XNAT != 0 {
        translate::translate::<F>(skb, cfg, packet, flow)?;
    }
    // SAFETY: this CPU's own entry; the helper only takes numbers. `fsm_dpi_tx` runs as this program returns.
    let action = unsafe {
        *slot = label;
        bpf_redirect(cfg.dpi_ifindex, 0)
    };
    Ok(Some((Verdict::Escalate, action as i32)))
}

/// What `node.fail` says of a packet that cannot be inspected.
#[inline(always)]
fn without(
    cfg: &Xcfg,
    is_copy: bool,
    (closed, open): (Reason, Reason),
) -> Result<Option<(Verdict, i32)>, fsm_common::bpf::Dropped> {
    if cfg.fail_open == 0 && !is_copy {
        return Err(closed.into());
    }
    count::reason(open);
    Ok(None)
}
