//! Packets of flows under inspection. A worker's verdict decides; without one yet, a worker gets the packet, or a copy
//! of it.
//!
//! A packet is taken where it comes from a device of ours; one of this host itself where it leaves, after translation:
//! so a worker sees both directions as the flow's two ends do.

use aya_ebpf::helpers::generated::{bpf_clone_redirect, bpf_redirect};
use fsm_common::{
    bpf::{
        Dropped, count,
        fib::Host as _,
        inspect::{fold, forget_earlier, label, said, view},
        maps::{FSM_ESCALATED, iface},
    },
    escalate::verdict,
    flow::{Flow, FlowKey, nf},
    maps::{Xcfg, feature},
    parse::Parsed,
    reason::Reason,
    stats::Verdict,
};

use crate::{At, NEXT, ctx::Skb, reset, translate};

/// Whether this hook is the one that inspects: for a packet that came by a device of ours, that device's was.
#[inline(always)]
pub fn is_here(skb: &Skb, at: At) -> bool {
    let from = skb.arrived_on();
    !at.place.is_egress() || from == 0 || iface(from).is_none()
}

/// What becomes of the packet for its flow's verdict; `None` where it goes on. `is_main`: the flow is of the main
/// table.
#[inline(always)]
pub fn inspect<F: reset::Head>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    is_main: bool,
) -> Result<Option<(Verdict, i32)>, Dropped> {
    let view = view::<F>(at.place, &packet.key, flow);
    forget_earlier::<F>(packet, &view);
    match said::<F>(cfg, &view, flow) {
        verdict::ALLOW => {
            if is_main {
                fold(flow);
                count::reason(Reason::DpiAllowed);
            }
            Ok(None)
        }
        verdict::DENY => Err(Reason::DpiDeny.into()),
        verdict::RESET => {
            let action = reset::answer::<F>(skb, at, cfg, packet).ok_or(Reason::DpiReset)?;
            count::reason(Reason::DpiReset);
            Ok(Some((Verdict::Drop, action)))
        }
        _ => escalate::<F>(skb, at, cfg, packet, flow, &view),
    }
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
    view: &FlowKey<F::Addr>,
) -> Result<Option<(Verdict, i32)>, Dropped> {
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
    let is_translated = at.place.is_egress() && flow.nf & nf::XNAT != 0;
    if is_translated {
        translate::translate::<F>(skb, cfg, packet, flow)?;
    }
    if is_copy {
        // SAFETY: this CPU's own entry; the context is valid. `fsm_dpi_tx` runs before the helper returns.
        unsafe {
            *slot = label;
            bpf_clone_redirect(skb.helper_ctx(), cfg.dpi_ifindex, 0);
            (*slot).magic = 0;
        }
        skb.pull_headers();
        return Ok(is_translated.then_some((Verdict::Nat, NEXT)));
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
) -> Result<Option<(Verdict, i32)>, Dropped> {
    if cfg.fail_open == 0 && !is_copy {
        return Err(closed.into());
    }
    count::reason(open);
    Ok(None)
}
