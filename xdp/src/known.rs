//! Known flows for which their entry alone does not do, as `known.rs` of TC has it: reached by tail call.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use fsm_common::{
    bpf::{
        Next, Tables, again, half,
        judge::{AGAIN, ask_acl},
        maps::{FSM_PROG_XDP, xcfg_at},
    },
    flow::{V4, V6},
    maps::{Xcfg, slow},
    parse::Parsed,
    policy::acl,
    reason::Reason,
    view::PacketView as _,
};

use crate::{
    At, Outcome, PASS,
    ctx::Frame,
    slow::{call as call_judge, measure, stored},
};

/// IPv4.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_known4(ctx: XdpContext) -> u32 {
    enter::<V4>(ctx)
}

/// IPv6.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp_known6(ctx: XdpContext) -> u32 {
    enter::<V6>(ctx)
}

/// Hands the frame over, with [`AGAIN`] or `HALF`; comes back only where that fails.
#[inline(always)]
pub fn call<F: Tables>(frame: &Frame, cfg: &Xcfg, packet: &Parsed<F::Addr>, why: u8) -> Outcome {
    let slot = if F::V6 {
        slow::XDP_KNOWN6
    } else {
        slow::XDP_KNOWN4
    };
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry; a tail call stays on this CPU.
    unsafe {
        ((*scratch).packet, (*scratch).verdict) = (*packet, u64::from(why));
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
        return aya_ebpf::bindings::xdp_action::XDP_PASS;
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
    let (packet, why) = unsafe { (&(*scratch).packet, (*scratch).verdict) };
    measure(frame, packet, scratch);
    let next = if why == u64::from(AGAIN) {
        again::<F, _>(frame, cfg, at.iface, at.place, packet).next()?
    } else {
        half::<F, _>(frame, cfg, at.iface, at.place, packet).next()?
    };
    match next {
        Next::Flow => return stored::<F>(frame, at, packet),
        Next::Pass => return PASS,
        Next::New => {}
    }
    match ask_acl::<F, true>(cfg, at.place, &packet.key) {
        acl::DENY => Err(Reason::AclDeny.into()),
        acl::TRUSTED => call_judge::<F>(frame, cfg, packet),
        _ => PASS,
    }
}
