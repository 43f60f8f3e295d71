//! XDP program for devices that face the network: bad packets and denied peers are dropped before the
//! stack knows of them, trusted flows to an app of this node go past it. Everything else passes to TC.
//!
//! A packet's way: [`run`] parses it, asks the flags, looks its flow up; without one it asks the ACL; one
//! exit counts. A trusted packet without a flow goes by tail call to [`slow`]. Only redirected packets are
//! counted in their flow: what passes is counted by TC.

#![no_std]
#![no_main]

mod cookie;
mod ctx;
mod dpi;
mod guard;
mod inspect;
mod known;
mod redirect;
mod slow;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use ctx::Frame;
use fsm_common::{
    bpf::{
        Dropped, Next, Place, Tables, count,
        fib::Host as _,
        judge::{AGAIN, HALF, ask_acl, early},
        maps::{iface, xcfg},
    },
    flow::{Flow, V4, V6, nf, opt},
    maps::{IfaceEntry, Xcfg, feature, iface_flag},
    parse::{self, Fragment, Parsed},
    policy::acl,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l2::EtherType,
};

/// What became of a frame, and what the kernel is told.
type Outcome = Result<(Verdict, u32), Dropped>;

const PASS: Outcome = Ok((Verdict::Pass, XDP_PASS));

/// The device that the frame is at, and how.
#[derive(Clone, Copy)]
struct At {
    iface: &'static IfaceEntry,
    slot: u32,
    place: Place,
}

impl At {
    #[inline(always)]
    fn new(frame: &Frame) -> Option<Self> {
        let (slot, iface) = iface(frame.ifindex())?;
        Some(Self {
            iface,
            slot,
            place: Place::new(iface, true),
        })
    }

    /// The one exit: counts, and gives the kernel its number.
    #[inline(always)]
    fn leave(self, outcome: Outcome, bytes: u64) -> u32 {
        let (verdict, action) = match outcome {
            Ok(done) => done,
            Err(reason) => {
                count::dropped(reason);
                (Verdict::Drop, XDP_DROP)
            }
        };
        count::packet(self.slot, Hook::Xdp, verdict, bytes);
        action
    }
}

/// From the device.
#[xdp(frags)]
#[inline(always)]
pub fn fsm_xdp(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx);
    let Some(at) = At::new(&frame) else {
        return XDP_PASS;
    };
    let bytes = frame.frame_len() as u64;
    at.leave(run(&frame, at), bytes)
}

#[inline(always)]
fn run(frame: &Frame, at: At) -> Outcome {
    let cfg = xcfg().ok_or(Reason::Internal)?;
    let link = parse::link(frame)?;
    match link.ethertype {
        EtherType::IPV4 => packet::<V4>(frame, at, cfg, &parse::ipv4(frame, link.l3)?),
        EtherType::IPV6 => packet::<V6>(frame, at, cfg, &parse::ipv6(frame, link.l3)?),
        _ => PASS,
    }
}

#[inline(always)]
fn packet<F: Tables>(frame: &Frame, at: At, cfg: &Xcfg, packet: &Parsed<F::Addr>) -> Outcome {
    if packet.is_neighbour_discovery() {
        return PASS;
    }
    if let Some(Next::Pass) = early(F::flags(cfg), packet.key.proto)? {
        return PASS;
    }
    // Fragments follow their flow in TC, which keeps track of them.
    let is_whole = packet.fragment as u8 == Fragment::Whole as u8;
    let key = F::pack(&packet.key);
    let Some(flow) = F::flow_at(&key) else {
        let verdict = ask_acl::<F, true>(cfg, at.place, &packet.key);
        if verdict == acl::DENY {
            return Err(Reason::AclDeny.into());
        }
        let is_trusted = verdict == acl::TRUSTED;
        if !is_whole || !(is_trusted || cfg.guard_kinds != 0) {
            return PASS;
        }
        // SAFETY: map value, readable until the program ends; only asked which way the flow goes.
        return match F::half_at(&key).map(|half| unsafe { &*half }) {
            Some(half) if half.nf & (nf::RDIR | nf::INSPECT) == nf::RDIR && is_trusted => {
                known::call::<F>(frame, cfg, packet, HALF)
            }
            Some(_) => PASS,
            // Inspected from its first packet on, which is TC's.
            None if is_trusted && cfg.features & feature::INSPECT_ALL != 0 => PASS,
            None if is_trusted => slow::call::<F>(frame, cfg, packet),
            None => guard::new_flow::<F>(frame, cfg, packet),
        };
    };
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    let flow = unsafe { &mut *flow };
    if flow.nf & nf::INSPECT != 0 {
        let is_plain = flow.generation == cfg.generation && is_whole && !packet.is_tcp_event();
        return if is_plain && at.iface.flags & iface_flag::ESCALATE != 0 {
            inspect::call::<F>(frame, cfg, packet)
        } else {
            PASS
        };
    }
    if flow.generation != cfg.generation {
        if flow.opt() & opt::RESET != 0 {
            // TC ends it, with an answer, where its endpoint is gone.
            return PASS;
        }
        return known::call::<F>(frame, cfg, packet, AGAIN);
    }
    if flow.nf & nf::RDIR == 0 || !is_whole {
        return PASS;
    }
    // Signed: the coarse clock of another CPU may be ahead.
    let idle_ns = frame.now_ns().wrapping_sub(flow.last_seen_ns) as i64;
    if packet.is_tcp_event() || idle_ns > cfg.idle_check_ns as i64 {
        return known::call::<F>(frame, cfg, packet, AGAIN);
    }
    to_app::<F, true>(frame, at, packet, flow)
}

/// Hands a frame to the app and then counts it in its flow; tracks it where that is left to do.
#[inline(always)]
fn to_app<F: Tables, const TRACK: bool>(
    frame: &Frame,
    at: At,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
) -> Outcome {
    if at.iface.flags & iface_flag::UNFINISHED != 0 {
        return PASS;
    }
    let bytes = frame.frame_len() as u64;
    let (verdict, action) = redirect::to_app::<F>(frame, packet, flow);
    if verdict as u8 == Verdict::Redirect as u8
        && count::flow(flow, at.iface.ifindex, frame.now_ns(), 1, bytes)
        && TRACK
        && packet.is_tcp()
    {
        flow.segment(&packet.segment());
    }
    Ok((verdict, action))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
