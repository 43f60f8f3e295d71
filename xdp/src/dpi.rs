//! XDP on `dpi1`, the workers' end of the pair: each frame goes to the AF_XDP socket of its queue, with what was said
//! of it as metadata. A frame that XDP took has that already; one that TC took has it in its head.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        xdp_action::{XDP_DROP, XDP_REDIRECT},
        xdp_md,
    },
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta},
    macros::xdp,
    programs::XdpContext,
};
use fsm_common::{
    bpf::{
        count,
        maps::{FSM_WORKER, FSM_XSK, xcfg},
    },
    escalate::{HEAD, TAKEN, owner},
    reason::Reason,
};

/// From `dpi0`.
#[xdp]
#[inline(always)]
pub fn fsm_dpi_rx(ctx: XdpContext) -> u32 {
    match receive(&ctx) {
        Some(action) => action,
        None => {
            count::reason(Reason::EscalationLost);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn receive(ctx: &XdpContext) -> Option<u32> {
    let raw: *mut xdp_md = ctx.as_ptr().cast();
    let [first, _, _, _] = match metadata(ctx) {
        Some(words) => words,
        None => {
            let head = head(ctx)?;
            // SAFETY: the context is valid; the head that is cut off here stays where it is, as metadata.
            unsafe {
                if bpf_xdp_adjust_head(raw, HEAD as i32) != 0
                    || bpf_xdp_adjust_meta(raw, -(HEAD as i32)) != 0
                {
                    return None;
                }
            }
            head
        }
    };
    if first as u32 != TAKEN {
        return None;
    }
    // SAFETY: the context is valid while the program runs.
    let queue = unsafe { (*raw).rx_queue_index };
    if let Ok(XDP_REDIRECT) = FSM_XSK.redirect(queue, 0) {
        return Some(XDP_REDIRECT);
    }
    gone(ctx, queue);
    None
}

/// Nobody listens: told at once, so that the next packet is not sent here.
#[inline(always)]
fn gone(ctx: &XdpContext, queue: u32) {
    let workers = xcfg().map_or(0, |cfg| u32::from(cfg.workers));
    let hash = metadata(ctx).map_or(0, |[_, _, third, _]| (third >> 32) as u32);
    for worker in [queue, owner(hash, workers)] {
        if let Some(word) = FSM_WORKER.get_ptr_mut(worker) {
            // SAFETY: map value; whoever lives writes its word again.
            unsafe { (&raw mut (*word).alive_ns).write_volatile(0) };
        }
    }
}

#[inline(always)]
fn metadata(ctx: &XdpContext) -> Option<[u64; 4]> {
    let at = ctx.metadata();
    if at + HEAD > ctx.data() {
        return None;
    }
    // SAFETY: compared with the frame's beginning just above; metadata is aligned to four bytes only.
    Some(unsafe { (at as *const [u64; 4]).read_unaligned() })
}

#[inline(always)]
fn head(ctx: &XdpContext) -> Option<[u64; 4]> {
    let at = ctx.data();
    if at + HEAD > ctx.data_end() {
        return None;
    }
    // SAFETY: compared with the frame's end just above.
    Some(unsafe { (at as *const [u64; 4]).read_unaligned() })
}
