//! Ways past the stack: to an app of this node, and from an app's device back to the gateway.

use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_peer};
use fsm_common::{
    bpf::{count, fib::Host as _, maps::iface},
    flow::Flow,
    maps::{MARK_REINJECTED, iface_flag},
    parse::Parsed,
    reason::Reason,
    rewrite::one_hop,
    stats::Verdict,
    view::PacketView as _,
    wire::l2::ETH_LEN,
};

use crate::{NEXT, Outcome, ctx::Skb, translate::Apply};

/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;

/// Hands a packet of a redirected flow to the app; what the stack must answer passes to it.
#[inline(always)]
pub fn to_app<F: Apply>(
    skb: &Skb,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> (Verdict, i32) {
    let (ifindex, dmac) = flow.redirect();
    let pass = |reason| {
        count::reason(reason);
        (Verdict::Pass, NEXT)
    };
    let Some((_, app)) = iface(ifindex) else {
        return (Verdict::Pass, NEXT);
    };
    let (l3, l4) = (packet.l3_at(), packet.l4_at());
    // A tag is the device's matter; the stack takes it off.
    if l3 != ETH_LEN || skb.has_tag() {
        return (Verdict::Pass, NEXT);
    }
    if packet.hop_limit <= 1 {
        return pass(Reason::RedirectTtl);
    }
    if skb.wire_l3_len(l3, l4) > app.mtu as usize {
        return pass(Reason::RedirectMtu);
    }
    if hop::<F>(skb, l3, packet.hop_limit).is_none() || ethernet(skb, dmac, app.mac).is_none() {
        return (Verdict::Pass, NEXT);
    }
    // SAFETY: helpers that only take numbers.
    let action = unsafe {
        if app.flags & iface_flag::PEER != 0 {
            bpf_redirect_peer(ifindex, 0)
        } else {
            bpf_redirect(ifindex, 0)
        }
    };
    (Verdict::Redirect, action as i32)
}

/// One hop less, as a router does.
#[inline(always)]
pub fn hop<F: Apply>(skb: &Skb, l3: usize, hop_limit: u8) -> Option<()> {
    if F::V6 {
        let [next, _] = skb.read::<2>(l3 + 6)?;
        return skb.write(l3 + 6, [next, hop_limit - 1]);
    }
    skb.write(l3 + 8, one_hop(skb.read::<4>(l3 + 8)?, hop_limit))
}

/// Sets destination and source MAC.
#[inline(always)]
pub fn ethernet(skb: &Skb, d: [u8; 6], s: [u8; 6]) -> Option<()> {
    skb.write(
        0,
        [
            d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5],
        ],
    )
}

/// A packet translated on its way to an app goes back to the host, as if it had just arrived on the device
/// it came from: routing then takes it to the gateway, and reverse-path filters see what they expect.
#[inline(always)]
pub fn back_to_gateway(skb: &Skb) -> Outcome {
    let from = skb.arrived_on();
    let (_, device) = iface(from).ok_or(Reason::Internal)?;
    let m = device.mac;
    skb.write(0, [m[0], m[1], m[2], m[3], m[4], m[5]])
        .ok_or(Reason::Truncated)?;
    skb.set_mark(MARK_REINJECTED);
    count::reason(Reason::Reinjected);
    // SAFETY: helper that only takes numbers.
    Ok((Verdict::Nat, unsafe { bpf_redirect(from, INGRESS) } as i32))
}
