//! New flows: reached by tail call, one program a direction and family.

use aya_ebpf::{macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        Next, judge,
        judge::HALF,
        maps::{FSM_PROG, xcfg_at},
    },
    flow::{Address, V4, V6},
    maps::{Xcfg, slow},
    parse::{Parsed, window_scale},
    reason::Reason,
    scratch::Scratch,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l4::tcp_flag,
};

use crate::{At, NEXT, Outcome, ctx::Skb, finish, translate::Apply};

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

/// Hands the packet over, with what the ACL says of it; comes back only where that fails.
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
    // SAFETY: this CPU's own entry; a tail call stays on this CPU. The packet may be there already.
    unsafe {
        if !core::ptr::eq(packet, &raw const (*scratch).packet) {
            (*scratch).packet = *packet;
        }
        (*scratch).verdict = u64::from(verdict);
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
    // SAFETY: this CPU's own entry, filled by `call`; the packet in it stays as it is.
    let (packet, cfg) = unsafe { (&(*scratch).packet, (*scratch).cfg) };
    let cfg = xcfg_at(cfg).ok_or(Reason::Internal)?;
    measure(skb, packet, scratch);
    match judge::<F, _>(skb, cfg, at.iface, at.place, packet).next()? {
        // Counted already; the entry may be evicted at any moment, the copy of it in the work space is ours.
        Next::Flow => finish::call::<F>(skb, at, cfg, packet, HALF),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}

/// Leaves for the judges what only this program can read.
#[inline(always)]
pub fn measure<A: Address>(skb: &Skb, packet: &Parsed<A>, scratch: *mut Scratch<A>) {
    let scale = if packet.is_tcp() && packet.tcp_flags & tcp_flag::SYN != 0 {
        window_scale(skb, packet.l4_at())
    } else {
        0
    };
    let size = [skb.segments(), skb.frame_len() as u64, u64::from(scale)];
    // SAFETY: this CPU's own entry; nobody borrows this field.
    unsafe { (*scratch).size = size };
}
