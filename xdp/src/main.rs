//! XDP program for devices that face the network: bad packets and denied peers are dropped before the
//! stack knows of them, trusted flows to an app of this node go past it. Everything else passes to TC.
//!
//! A packet's way: [`run`] parses it, asks the flags, looks its flow up; without one it asks the ACL; one
//! exit counts. Only redirected packets are counted in their flow: what passes is counted by TC.

#![no_std]
#![no_main]

mod ctx;
mod redirect;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use ctx::Frame;
use fsm_common::{
    bpf::{
        Dropped, Next, Place, Tables, count,
        judge::{ask_acl, early},
        judge_trusted,
        maps::{iface, xcfg},
        rejudge,
    },
    flow::{V4, V6, nf},
    maps::{IfaceEntry, Xcfg},
    parse::{self, Fragment, Parsed},
    policy::acl,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l2::EtherType,
};

/// The device that the frame is at, and how.
#[derive(Clone, Copy)]
struct At {
    iface: &'static IfaceEntry,
    place: Place,
}

/// From the device.
#[xdp(frags)]
pub fn fsm_xdp(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let Some((slot, iface)) = iface(frame.ifindex()) else {
        return XDP_PASS;
    };
    let at = At { iface, place: Place::new(iface, true) };
    let bytes = frame.frame_len() as u64;
    let (verdict, action) = match run(&frame, at) {
        Ok(done) => done,
        Err(reason) => {
            count::dropped(reason);
            (Verdict::Drop, XDP_DROP)
        }
    };
    count::packet(slot, Hook::Xdp, verdict, bytes);
    action
}

/// Where a device takes frames redirected to it: attached to an app's own device, so that it has NAPI.
#[xdp(frags)]
pub fn fsm_xdp_pass(_: XdpContext) -> u32 {
    XDP_PASS
}

#[inline(always)]
fn run(frame: &Frame, at: At) -> Result<(Verdict, u32), Dropped> {
    let cfg = xcfg().ok_or(Reason::Internal)?;
    let link = parse::link(frame)?;
    match link.ethertype {
        EtherType::IPV4 => packet::<V4>(frame, at, cfg, &parse::ipv4(frame, link.l3)?),
        EtherType::IPV6 => packet::<V6>(frame, at, cfg, &parse::ipv6(frame, link.l3)?),
        _ => Ok((Verdict::Pass, XDP_PASS)),
    }
}

#[inline(always)]
fn packet<F: Tables>(
    frame: &Frame,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
) -> Result<(Verdict, u32), Dropped> {
    const PASS: Result<(Verdict, u32), Dropped> = Ok((Verdict::Pass, XDP_PASS));
    if packet.is_neighbour_discovery() {
        return PASS;
    }
    if let Some(Next::Pass) = early(F::flags(cfg), packet.key.proto)? {
        return PASS;
    }
    let mut flow = F::flow(&packet.key);
    if flow.is_none() {
        match ask_acl::<F>(cfg, at.place, &packet.key) {
            Some(acl::DENY) => return Err(Reason::AclDeny.into()),
            // Fragments follow their flow in TC, which keeps track of them.
            Some(acl::TRUSTED) if packet.fragment as u8 == Fragment::Whole as u8 => {
                judge_trusted::<F, _>(frame, cfg, at.iface, at.place, packet).next()?;
                flow = F::flow(&packet.key);
            }
            _ => return PASS,
        }
    }
    let Some(flow) = flow else {
        return PASS;
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    if flow.generation != cfg.generation {
        rejudge::<F, _>(frame, cfg, at.iface, at.place, packet).next()?;
    }
    if flow.nf & nf::RDIR == 0 || packet.fragment as u8 != Fragment::Whole as u8 {
        return PASS;
    }
    Ok(redirect::to_app::<F>(frame, at.iface, packet, flow))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
