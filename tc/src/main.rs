//! TC programs on apps' devices and uplinks: transparent NAT both ways, same-node redirects, the ACL for
//! whatever XDP did not see; and the cgroup program that answers SO_ORIGINAL_DST.
//!
//! A packet's way: [`run`] parses it, asks the flags, looks its flow up and, if there is none or policy has
//! changed, has it judged ([`fsm_common::bpf::judge`]); [`act`] translates or redirects; one exit counts.
//! What passes is TCX_NEXT, so that other programs on the device still run.

#![no_std]
#![no_main]

mod ctx;
mod origin;
mod probe;
mod redirect;
mod translate;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use ctx::Skb;
use fsm_common::{
    bpf::{
        Dropped, Next, Place, count,
        fib::Host as _,
        fragment, judge,
        judge::early,
        maps::{iface, xcfg},
        rejudge,
    },
    flow::{Flow, V4, V6, nf},
    maps::{IfaceEntry, MARK_REINJECTED, Xcfg},
    parse::{self, Parsed},
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l2::EtherType,
};

/// TCX_NEXT, and TC_ACT_UNSPEC under clsact: the next program decides.
const NEXT: i32 = -1;

/// The device that the packet is at, and how.
#[derive(Clone, Copy)]
struct At {
    iface: &'static IfaceEntry,
    place: Place,
}

/// From the device to the host.
#[classifier]
pub fn fsm_tc_ingress(ctx: TcContext) -> i32 {
    enter(ctx, Hook::TcIngress)
}

/// From the host to the device.
#[classifier]
pub fn fsm_tc_egress(ctx: TcContext) -> i32 {
    enter(ctx, Hook::TcEgress)
}

#[inline(always)]
fn enter(ctx: TcContext, hook: Hook) -> i32 {
    let skb = Skb::new(ctx);
    let Some((slot, iface)) = iface(skb.ifindex()) else {
        return NEXT;
    };
    let at = At { iface, place: Place::new(iface, hook as u8 == Hook::TcIngress as u8) };
    let bytes = skb.frame_len() as u64;
    let (verdict, action) = match run(&skb, at) {
        Ok(done) => done,
        Err(reason) => {
            count::dropped(reason);
            (Verdict::Drop, TC_ACT_SHOT)
        }
    };
    count::packet(slot, hook, verdict, bytes);
    action
}

#[inline(always)]
fn run(skb: &Skb, at: At) -> Result<(Verdict, i32), Dropped> {
    if skb.take_mark(MARK_REINJECTED) {
        return Ok((Verdict::Pass, NEXT));
    }
    skb.pull_headers();
    let cfg = xcfg().ok_or(Reason::Internal)?;
    let link = parse::link(skb)?;
    match link.ethertype {
        EtherType::IPV4 => packet(V4, skb, at, cfg, parse::ipv4(skb, link.l3)?),
        EtherType::IPV6 => packet(V6, skb, at, cfg, parse::ipv6(skb, link.l3)?),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}

#[inline(always)]
fn packet<F: translate::Apply>(
    family: F,
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    mut packet: Parsed<F::Addr>,
) -> Result<(Verdict, i32), Dropped> {
    if packet.is_neighbour_discovery() {
        return Ok((Verdict::Pass, NEXT));
    }
    if let Some(Next::Pass) = early(F::flags(cfg), packet.key.proto)? {
        return Ok((Verdict::Pass, NEXT));
    }
    fragment::resolve(&mut packet)?;
    let mut flow = F::flow(&packet.key);
    if needs_judgement(flow, at.place) {
        match judge::<F, _>(skb, cfg, at.iface, at.place, &packet).next()? {
            Next::Pass => return Ok((Verdict::Pass, NEXT)),
            Next::Flow => flow = F::flow(&packet.key),
        }
    }
    // Gone again between insert and look-up: the next packet finds or makes it.
    let Some(flow) = flow else {
        return Ok((Verdict::Pass, NEXT));
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    if flow.generation != cfg.generation {
        rejudge::<F, _>(skb, cfg, at.iface, at.place, &packet).next()?;
    }
    count::flow(
        flow,
        at.iface.ifindex,
        skb.now_ns(),
        skb.segments(),
        skb.frame_len() as u64,
        packet.tcp_flags,
    );
    act(family, skb, at, cfg, &packet, flow)
}

/// No flow yet, or one that the app's own device has still to judge.
#[inline(always)]
fn needs_judgement<A>(flow: Option<*mut Flow<A>>, place: Place) -> bool {
    match flow {
        None => true,
        // SAFETY: map value, readable until the program ends.
        Some(flow) => place == Place::EndpointOut && unsafe { (*flow).nf } & nf::PROVISIONAL != 0,
    }
}

#[inline(always)]
fn act<F: translate::Apply>(
    family: F,
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<(Verdict, i32), Dropped> {
    if flow.nf & nf::XNAT != 0 {
        translate::translate(family, skb, cfg, packet, flow)?;
        if at.place == Place::EndpointOut && flow.nf & nf::REPLY == 0 {
            return Ok(redirect::back_to_gateway(skb)?);
        }
        return Ok((Verdict::Nat, NEXT));
    }
    if flow.nf & nf::RDIR != 0 && (at.place == Place::UplinkIn || at.place == Place::EndpointIn) {
        return Ok(redirect::to_app(family, skb, packet, flow));
    }
    Ok((Verdict::Pass, NEXT))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
