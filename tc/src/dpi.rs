//! TC on `dpi0`, the data path's end of the pair to the workers: what goes out gets its [`Escalated`] in front,
//! what comes back goes on where it was taken.

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    helpers::generated::{
        bpf_redirect, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    macros::classifier,
    programs::TcContext,
};
use fsm_common::{
    bpf::{
        count,
        maps::{FSM_ESCALATED, xcfg},
    },
    escalate::{BACK, HEAD, MARK_JUDGED, Returned, TAKEN, TRAILER, owner, taken},
    reason::Reason,
    stats::Hook,
    view::PacketView as _,
    wire::l2::{ETH_LEN, EtherType},
};

use crate::{NEXT, ctx::Skb};

/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;

/// To the workers.
#[classifier]
#[inline(always)]
pub fn fsm_dpi_tx(ctx: TcContext) -> i32 {
    or_lost(send(&Skb::new(ctx)))
}

/// From the workers.
#[classifier]
#[inline(always)]
pub fn fsm_dpi_back(ctx: TcContext) -> i32 {
    or_lost(back(&Skb::new(ctx)))
}

#[inline(always)]
fn or_lost(action: Option<i32>) -> i32 {
    match action {
        Some(action) => action,
        None => {
            count::reason(Reason::EscalationLost);
            TC_ACT_SHOT
        }
    }
}

/// The program that took the packet has filled this CPU's `fsm_escalated` and is still running: a redirect and a
/// clone are sent before anything else runs here. Whatever the host itself sends finds it empty.
#[inline(always)]
fn send(skb: &Skb) -> Option<i32> {
    let slot = FSM_ESCALATED.get_ptr_mut(0)?;
    // SAFETY: this CPU's own entry.
    let mut said = unsafe {
        let said = *slot;
        (*slot).magic = 0;
        said
    };
    if said.magic != TAKEN {
        return None;
    }
    if let Some((tci, is_ad)) = skb.tag() {
        said.vlan = tci;
        said.flags |= taken::TAGGED | if is_ad { taken::TAG_AD } else { 0 };
        // SAFETY: the context is valid.
        let popped = unsafe { bpf_skb_vlan_pop(skb.helper_ctx()) };
        // A tag inside the frame takes its place, and would be put back into our head.
        if popped != 0 || skb.has_tag() {
            return None;
        }
    }
    if said.flags & taken::COPY != 0 {
        let snap = usize::from(xcfg()?.snap);
        if snap != 0 && skb.frame_len() > snap {
            // SAFETY: the context is valid.
            unsafe { bpf_skb_change_tail(skb.helper_ctx(), snap as u32, 0) };
        }
    }
    // To its worker at once, so that none has to hand it on.
    let workers = u32::from(xcfg()?.workers);
    if workers > 1 {
        skb.set_queue(owner(said.hash, workers));
    }
    // SAFETY: the context is valid.
    if unsafe { bpf_skb_change_head(skb.helper_ctx(), HEAD as u32, 0) } != 0 {
        return None;
    }
    // SAFETY: same size, integers only.
    let bytes: [u8; HEAD] = unsafe { core::mem::transmute(said) };
    skb.write(0, bytes)?;
    Some(NEXT)
}

#[inline(always)]
fn back(skb: &Skb) -> Option<i32> {
    let len = skb.frame_len().checked_sub(TRAILER)?;
    if len < ETH_LEN {
        return None;
    }
    let mut said = Returned::ZERO;
    // SAFETY: the context is valid, and the destination has that many bytes.
    let (loaded, cut) = unsafe {
        let to = (&raw mut said).cast();
        let loaded = bpf_skb_load_bytes(skb.helper_ctx().cast(), len as u32, to, TRAILER as u32);
        (loaded, bpf_skb_change_tail(skb.helper_ctx(), len as u32, 0))
    };
    if loaded != 0 || cut != 0 || said.magic != BACK {
        return None;
    }
    if said.flags & taken::TAGGED != 0 {
        let proto = if said.flags & taken::TAG_AD != 0 {
            EtherType::QINQ
        } else {
            EtherType::VLAN
        };
        // SAFETY: the context is valid.
        if unsafe { bpf_skb_vlan_push(skb.helper_ctx(), proto.0.to_be(), said.vlan) } != 0 {
            return None;
        }
    }
    skb.set_mark(MARK_JUDGED);
    let way = if said.hook == Hook::TcEgress as u8 {
        0
    } else {
        INGRESS
    };
    // SAFETY: helper that only takes numbers.
    Some(unsafe { bpf_redirect(said.ifindex, way) } as i32)
}
