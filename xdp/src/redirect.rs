//! The way from the wire into an app's device.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, helpers::generated::bpf_redirect};
use fsm_common::{
    bpf::{Tables, count, maps::iface},
    flow::Flow,
    maps::iface_flag,
    parse::Parsed,
    reason::Reason,
    rewrite::one_hop,
    stats::Verdict,
    view::PacketView as _,
    wire::l2::ETH_LEN,
};

use crate::ctx::Frame;

/// Hands a frame of a redirected flow to the app; what the stack must answer, or only it can deliver,
/// passes to it.
#[inline(always)]
pub fn to_app<F: Tables>(
    frame: &Frame,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> (Verdict, u32) {
    let (ifindex, dmac) = flow.redirect();
    let pass = |reason| {
        count::reason(reason);
        (Verdict::Pass, XDP_PASS)
    };
    let Some((_, app)) = iface(ifindex) else {
        return (Verdict::Pass, XDP_PASS);
    };
    if app.flags & iface_flag::XDP_TX == 0 {
        return pass(Reason::RedirectNoNapi);
    }
    if packet.hop_limit <= 1 {
        return pass(Reason::RedirectTtl);
    }
    let l3 = packet.l3_at();
    if frame.frame_len() - l3 > app.mtu as usize {
        return pass(Reason::RedirectMtu);
    }
    // A tag is the uplink's matter; the stack takes it off.
    if l3 != ETH_LEN
        || hop::<F>(frame, l3, packet.hop_limit).is_none()
        || ethernet(frame, dmac, app.mac).is_none()
    {
        return (Verdict::Pass, XDP_PASS);
    }
    // SAFETY: helper that only takes numbers.
    (Verdict::Redirect, unsafe { bpf_redirect(ifindex, 0) }
        as u32)
}

/// One hop less, as a router does.
#[inline(always)]
fn hop<F: Tables>(frame: &Frame, l3: usize, hop_limit: u8) -> Option<()> {
    if F::V6 {
        let [next, _] = frame.read::<2>(l3 + 6)?;
        return frame.write(l3 + 6, [next, hop_limit - 1]);
    }
    frame.write(l3 + 8, one_hop(frame.read::<4>(l3 + 8)?, hop_limit))
}

#[inline(always)]
fn ethernet(frame: &Frame, d: [u8; 6], s: [u8; 6]) -> Option<()> {
    frame.write(
        0,
        [
            d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5],
        ],
    )
}
