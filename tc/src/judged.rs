//! Packets that a worker gave back, at the hook that took them on arrival: counted and tracked already, they go on as
//! their flow says. Reached by tail call; one program for both families.

use aya_ebpf::{macros::classifier, programs::TcContext};
use fsm_common::{
    bpf::{
        fragment,
        judge::{BACK, BACK_HALF, ask_acl},
        maps::{FSM_PROG, xcfg},
    },
    flow::{V4, V6},
    maps::{Xcfg, slow},
    parse::{self, Parsed},
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l2::EtherType,
};

use crate::{At, NEXT, Outcome, ctx::Skb, finish, slow::call as call_judge, translate::Apply};

/// From a worker, as if from the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_judged(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let Some(at) = At::new(&skb, Hook::TcIngress) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run(&skb, at), bytes)
}

/// Hands the packet over; comes back only where that fails.
#[inline(always)]
pub fn call(skb: &Skb) -> Outcome {
    // SAFETY: the context is this program's own.
    unsafe { FSM_PROG.tail_call(skb.tail_ctx(), slow::JUDGED) };
    Err(Reason::Internal.into())
}

#[inline(always)]
fn run(skb: &Skb, at: At) -> Outcome {
    skb.pull_headers();
    let cfg = xcfg().ok_or(Reason::Internal)?;
    let link = parse::link(skb)?;
    match link.ethertype {
        EtherType::IPV4 => packet::<V4>(skb, at, cfg, parse::ipv4(skb, link.l3)?),
        EtherType::IPV6 => packet::<V6>(skb, at, cfg, parse::ipv6(skb, link.l3)?),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}

#[inline(always)]
fn packet<F: Apply>(skb: &Skb, at: At, cfg: &Xcfg, mut packet: Parsed<F::Addr>) -> Outcome {
    fragment::resolve(&mut packet)?;
    let key = F::pack(&packet.key);
    if F::flow_at(&key).is_some() {
        return finish::call::<F>(skb, at, cfg, &packet, BACK);
    }
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    if let Some(entry) = F::half_at(&key) {
        // SAFETY: map value, and this CPU's own entry; whose the value was, is asked afterwards (see `bpf::half`).
        unsafe { (*scratch).flow = *entry };
        if F::half_at(&key) == Some(entry) {
            return finish::call::<F>(skb, at, cfg, &packet, BACK_HALF);
        }
    }
    // Its flow is gone meanwhile: it begins another one.
    let verdict = ask_acl::<F, false>(cfg, at.place, &packet.key);
    call_judge::<F>(skb, at, cfg, &packet, verdict)
}
