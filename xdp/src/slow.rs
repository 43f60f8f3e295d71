//! Trusted packets without a flow, and flows under an older policy: reached by tail call.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use fsm_common::{
    bpf::{
        Next, Tables, judge_trusted,
        maps::{FSM_PROG_XDP, xcfg_at},
        rejudge,
    },
    flow::{V4, V6, nf},
    maps::{Xcfg, slow},
    parse::{Fragment, Parsed},
    reason::Reason,
    view::PacketView as _,
};

use crate::{At, Outcome, PASS, ctx::Frame, redirect};

/// IPv4.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp4(ctx: XdpContext) -> u32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp6(ctx: XdpContext) -> u32 {
    enter::<V6>(ctx)
}

/// Hands the frame over; comes back only where that fails.
#[inline(always)]
pub fn call<F: Tables>(frame: &Frame, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Outcome {
    let slot = if F::V6 { slow::XDP6 } else { slow::XDP4 };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe { ((*scratch).packet, (*scratch).cfg) = (*packet, u64::from(cfg.slot)) };
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG_XDP.tail_call(frame.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Tables>(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let Some(at) = At::new(&frame) else {
        return aya_ebpf::bindings::xdp_action::XDP_PASS;
    };
    let bytes = frame.frame_len() as u64;
    at.leave(run::<F>(&frame, at), bytes)
}

#[inline(always)]
fn run<F: Tables>(frame: &Frame, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let (packet, cfg) = unsafe { (&(*scratch).packet, (*scratch).cfg) };
    let cfg = xcfg_at(cfg).ok_or(Reason::Internal)?;
    let next = if F::flow(&packet.key).is_some() {
        rejudge::<F, _>(frame, cfg, at.iface, at.place, packet).next()?
    } else {
        judge_trusted::<F, _>(frame, cfg, at.iface, at.place, packet).next()?
    };
    let (Next::Flow, Some(flow)) = (next, F::flow(&packet.key)) else {
        return PASS;
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    let is_whole = packet.fragment as u8 == Fragment::Whole as u8;
    if flow.nf & nf::RDIR == 0 || !is_whole {
        return PASS;
    }
    Ok(redirect::to_app::<F>(frame, at.iface, packet, flow))
}
