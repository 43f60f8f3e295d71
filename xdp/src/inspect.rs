//! Packets of flows under inspection, those in the midst of a connection: what a worker has denied ends here, and what
//! nobody has judged yet goes to a worker without ever becoming an skb. The rest is TC's. Reached by tail call; one
//! program a family.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::XDP_PASS,
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_meta},
    macros::xdp,
    programs::XdpContext,
};
use fsm_common::{
    bpf::{
        Tables, count,
        fib::Host as _,
        inspect::{fold, label, said},
        maps::{FSM_PROG_XDP, xcfg_at},
    },
    escalate::{Escalated, HEAD, verdict},
    flow::{V4, V6},
    maps::{Xcfg, feature, slow},
    parse::Parsed,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
};

use crate::{At, Outcome, PASS, ctx::Frame};

/// IPv4.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_inspect4(ctx: XdpContext) -> u32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_inspect6(ctx: XdpContext) -> u32 {
    enter::<V6>(ctx)
}

/// Hands the frame over; comes back only where that fails.
#[inline(always)]
pub fn call<F: Tables>(frame: &Frame, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Outcome {
    let slot = if F::V6 {
        slow::XDP_INSPECT6
    } else {
        slow::XDP_INSPECT4
    };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe {
        (*scratch).packet = *packet;
        (*scratch).cfg = u64::from(cfg.slot);
    }
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG_XDP.tail_call(frame.tail_ctx(), slot) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn enter<F: Tables>(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let Some(at) = At::new(&frame) else {
        return XDP_PASS;
    };
    let bytes = frame.frame_len() as u64;
    at.leave(run::<F>(&frame, at), bytes)
}

#[inline(always)]
fn run<F: Tables>(frame: &Frame, at: At) -> Outcome {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`.
    let cfg = xcfg_at(unsafe { (*scratch).cfg }).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let packet = unsafe { &(*scratch).packet };
    let Some(flow) = F::flow(&packet.key) else {
        return PASS;
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    match said::<F>(cfg, &packet.key, flow) {
        verdict::ALLOW => {
            fold(flow);
            count::reason(Reason::DpiAllowed);
            return PASS;
        }
        verdict::DENY => return Err(Reason::DpiDeny.into()),
        // TC answers.
        verdict::RESET => return PASS,
        _ => {}
    }
    let bytes = frame.frame_len();
    // Copies, and what `node.fail` is about, are TC's.
    if cfg.features & feature::INSPECT_COPY != 0 || bytes > cfg.dpi_frame as usize {
        return PASS;
    }
    let Some(label) = label::<F>(cfg, &packet.key, flow, Hook::Xdp, at.iface.ifindex) else {
        return PASS;
    };
    if put(frame, label).is_none() {
        return PASS;
    }
    if count::flow(flow, at.iface.ifindex, frame.now_ns(), 1, bytes as u64) && packet.is_tcp() {
        flow.segment(&packet.segment());
    }
    // SAFETY: helper that only takes numbers.
    let action = unsafe { bpf_redirect(cfg.dpi_ifindex, 0) };
    Ok((Verdict::Escalate, action as u32))
}

/// Puts it in front of the frame, as metadata; `None` where the driver has no room for that.
#[inline(always)]
fn put(frame: &Frame, label: Escalated) -> Option<()> {
    let ctx = frame.tail_ctx();
    // SAFETY: the context is valid while the program runs.
    if unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -(HEAD as i32)) } != 0 {
        return None;
    }
    let at = ctx.metadata();
    if at + HEAD > ctx.data() {
        return None;
    }
    // SAFETY: compared with the frame's beginning just above.
    unsafe { (at as *mut Escalated).write_unaligned(label) };
    Some(())
}
