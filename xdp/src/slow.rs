//! Trusted packets without a flow: reached by tail call.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use fsm_common::{
    bpf::{
        Next, Tables, judge_trusted,
        maps::{FSM_PROG_XDP, xcfg_at},
    },
    flow::{Address, V4, V6, nf},
    maps::{Xcfg, slow},
    parse::{Fragment, Parsed, window_scale},
    reason::Reason,
    scratch::Scratch,
    view::PacketView as _,
    wire::l4::tcp_flag,
};

use crate::{At, Outcome, PASS, ctx::Frame, to_app};

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
    // SAFETY: this CPU's own entry; a tail call stays on this CPU. The packet may be there already.
    unsafe {
        if !core::ptr::eq(packet, &raw const (*scratch).packet) {
            (*scratch).packet = *packet;
        }
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
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let (packet, cfg) = unsafe { (&(*scratch).packet, (*scratch).cfg) };
    let cfg = xcfg_at(cfg).ok_or(Reason::Internal)?;
    measure(frame, packet, scratch);
    match judge_trusted::<F, _>(frame, cfg, at.iface, at.place, packet).next()? {
        Next::Flow => stored::<F>(frame, at, packet),
        _ => PASS,
    }
}

/// Leaves for the judges what only this program can read.
#[inline(always)]
pub fn measure<A: Address>(frame: &Frame, packet: &Parsed<A>, scratch: *mut Scratch<A>) {
    let scale = if packet.is_tcp() && packet.tcp_flags & tcp_flag::SYN != 0 {
        window_scale(frame, packet.l4_at())
    } else {
        0
    };
    let size = [1, frame.frame_len() as u64, u64::from(scale)];
    // SAFETY: this CPU's own entry; nobody borrows this field.
    unsafe { (*scratch).size = size };
}

/// Treats a frame by its flow, whichever table that is in.
#[inline(always)]
pub fn stored<F: Tables>(frame: &Frame, at: At, packet: &Parsed<F::Addr>) -> Outcome {
    let Some(flow) = F::find(&packet.key) else {
        return PASS;
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    let is_whole = packet.fragment as u8 == Fragment::Whole as u8;
    if flow.nf & (nf::RDIR | nf::INSPECT) != nf::RDIR || !is_whole {
        return PASS;
    }
    to_app::<F, false>(frame, at, packet, flow)
}
