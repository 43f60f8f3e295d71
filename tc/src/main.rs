//! TC programs on apps' devices and uplinks: transparent NAT both ways, same-node redirects, the ACL for
//! whatever XDP did not see; and the cgroup program that answers SO_ORIGINAL_DST.
//!
//! A packet's way: [`run`] parses it, asks the flags and looks its flow up; [`act`] translates or redirects;
//! one exit counts. Where there is no flow, a tail call goes to [`slow`], which has it judged
//! ([`fsm_common::bpf::judge`]); where the flow's entry alone does not do, to [`known`]; both then act alike. What passes is TCX_NEXT, so that other
//! programs on the device still run.

#![no_std]
#![no_main]

mod balance;
mod ctx;
mod dpi;
mod ended;
mod finish;
mod icmp;
mod inspect;
mod judged;
mod known;
mod origin;
mod probe;
mod redirect;
mod reset;
mod slow;
mod translate;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use ctx::Skb;
use fsm_common::{
    bpf::{
        Dropped, Next, Place, count,
        fib::Host as _,
        fragment,
        judge::{AGAIN, HALF, READY, ask_acl, early},
        maps::{iface, xcfg},
    },
    escalate::MARK_JUDGED,
    flow::{Flow, V4, V6, nf, opt},
    maps::{IfaceEntry, MARK_REINJECTED, Xcfg, feature},
    parse::{self, Parsed},
    policy::acl,
    reason::Reason,
    stats::{Hook, Verdict},
    view::PacketView as _,
    wire::l2::EtherType,
};
use translate::Apply;

/// TCX_NEXT, and TC_ACT_UNSPEC under clsact: the next program decides.
const NEXT: i32 = -1;

/// What became of a packet, and what the kernel is told.
type Outcome = Result<(Verdict, i32), Dropped>;

/// The device that the packet is at, and how.
#[derive(Clone, Copy)]
struct At {
    iface: &'static IfaceEntry,
    slot: u32,
    hook: Hook,
    place: Place,
}

impl At {
    #[inline(always)]
    fn new(skb: &Skb, hook: Hook) -> Option<Self> {
        let (slot, iface) = iface(skb.ifindex())?;
        let place = Place::new(iface, hook as u8 == Hook::TcIngress as u8);
        Some(Self {
            iface,
            slot,
            hook,
            place,
        })
    }

    /// The one exit: counts, and gives the kernel its number.
    #[inline(always)]
    fn leave(self, outcome: Outcome, bytes: u64) -> i32 {
        let (verdict, action) = match outcome {
            Ok(done) => done,
            Err(reason) => {
                count::dropped(reason);
                (Verdict::Drop, TC_ACT_SHOT)
            }
        };
        count::packet(self.slot, self.hook, verdict, bytes);
        action
    }
}

/// From the device to the host.
#[classifier]
#[inline(always)]
pub fn fsm_tc_ingress(ctx: TcContext) -> i32 {
    enter(ctx, Hook::TcIngress)
}

/// From the host to the device.
#[classifier]
#[inline(always)]
pub fn fsm_tc_egress(ctx: TcContext) -> i32 {
    enter(ctx, Hook::TcEgress)
}

#[inline(always)]
fn enter(ctx: TcContext, hook: Hook) -> i32 {
    let skb = Skb::new(ctx);
    let Some(at) = At::new(&skb, hook) else {
        return NEXT;
    };
    let bytes = skb.frame_len() as u64;
    at.leave(run(&skb, at), bytes)
}

#[inline(always)]
fn run(skb: &Skb, at: At) -> Outcome {
    if skb.mark() & MARK_REINJECTED != 0
        && let Some(outcome) = marked(skb, at)
    {
        return outcome;
    }
    skb.pull_headers();
    let cfg = xcfg().ok_or(Reason::Internal)?;
    if cfg.features & feature::E4LB != 0 && balance::was_sent_on(skb, at) {
        return Ok((Verdict::Pass, NEXT));
    }
    let link = parse::link(skb)?;
    match link.ethertype {
        EtherType::IPV4 => packet::<V4>(skb, at, cfg, parse::ipv4(skb, link.l3)?),
        EtherType::IPV6 => packet::<V6>(skb, at, cfg, parse::ipv6(skb, link.l3)?),
        _ => Ok((Verdict::Pass, NEXT)),
    }
}

/// A packet that has been here before: given back by a worker, or by the app's device.
#[inline(always)]
fn marked(skb: &Skb, at: At) -> Option<Outcome> {
    let is_arriving = at.hook as u8 == Hook::TcIngress as u8;
    if skb.mark() == MARK_JUDGED {
        skb.clear_mark();
        // On the way out it was translated before it was taken.
        return Some(if is_arriving {
            judged::call(skb)
        } else {
            Ok((Verdict::Pass, NEXT))
        });
    }
    // Only on arrival, where nobody else has had the packet: marks of packets that leave are others' too.
    (is_arriving && skb.take_mark(MARK_REINJECTED)).then_some(Ok((Verdict::Pass, NEXT)))
}

#[inline(always)]
fn packet<F: reset::Head>(skb: &Skb, at: At, cfg: &Xcfg, mut packet: Parsed<F::Addr>) -> Outcome {
    if packet.is_neighbour_discovery() {
        return Ok((Verdict::Pass, NEXT));
    }
    if let Some(Next::Pass) = early(F::flags(cfg), packet.key.proto)? {
        return Ok((Verdict::Pass, NEXT));
    }
    if packet.is_icmp_error() {
        if ask_acl::<F, false>(cfg, at.place, &packet.key) == acl::DENY {
            return Err(Reason::AclDeny.into());
        }
        return icmp::call::<F>(skb, at, cfg, &packet);
    }
    fragment::resolve(&mut packet)?;
    let key = F::pack(&packet.key);
    // SAFETY: map value, readable until the program ends; fields have one writer (see `flow`).
    if let Some(flow) = F::flow_at(&key).map(|flow| unsafe { &mut *flow }) {
        let is_provisional = at.place == Place::EndpointOut && flow.nf & nf::PROVISIONAL != 0;
        if !is_provisional {
            let now_ns = skb.now_ns();
            // Signed: the coarse clock of another CPU may be ahead.
            let idle_ns = now_ns.wrapping_sub(flow.last_seen_ns) as i64;
            if flow.generation == cfg.generation
                && !packet.is_tcp_event()
                && idle_ns <= cfg.idle_check_ns as i64
            {
                return act::<F>(skb, at, cfg, &packet, flow, now_ns);
            }
            if flow.generation != cfg.generation && flow.opt() & opt::RESET != 0 {
                return ended::call::<F>(skb, at, cfg, &packet, AGAIN);
            }
            return known::call::<F>(skb, at, cfg, &packet, AGAIN);
        }
    }
    let verdict = ask_acl::<F, false>(cfg, at.place, &packet.key);
    if verdict == acl::DENY {
        return Err(Reason::AclDeny.into());
    }
    // SAFETY: map value, readable until the program ends; only asked whether it is to end.
    if let Some(half) = F::half_at(&key).map(|half| unsafe { &*half }) {
        if half.generation != cfg.generation && half.opt() & opt::RESET != 0 {
            return ended::call::<F>(skb, at, cfg, &packet, HALF);
        }
        return known::call::<F>(skb, at, cfg, &packet, HALF);
    }
    slow::call::<F>(skb, at, cfg, &packet, verdict)
}

/// Counts and tracks a packet in its flow, and does with it what that says; by [`finish`] where that is more than
/// translating.
#[inline(always)]
fn act<F: Apply>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    now_ns: u64,
) -> Outcome {
    let (segments, bytes) = (skb.segments(), skb.frame_len() as u64);
    let is_mine = count::flow(flow, at.iface.ifindex, now_ns, segments, bytes);
    if is_mine && packet.is_tcp() {
        flow.segment(&packet.segment());
    }
    // Full NAT asks the routing table; its code would cost every other packet registers.
    if flow.nf & nf::INSPECT != 0 || flow.opt() & opt::FULL_NAT != 0 {
        return finish::call::<F>(skb, at, cfg, packet, READY);
    }
    deliver::<F, false>(skb, at, cfg, packet, flow)
}

/// Does with a packet what its flow says; full NAT in the slow programs (`SLOW`) only.
#[inline(always)]
fn deliver<F: Apply, const SLOW: bool>(
    skb: &Skb,
    at: At,
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Outcome {
    if flow.nf & nf::XNAT != 0 {
        let is_balanced = flow.opt() & opt::BALANCED != 0;
        if is_balanced && balance::waits(at, packet, flow)? {
            return Ok((Verdict::Pass, NEXT));
        }
        let is_back = !is_balanced && at.place == Place::EndpointOut && flow.nf & nf::REPLY == 0;
        // The host's own packet, in the name of one whom the flow takes to the gateway: there is no device to
        // send it back by.
        if is_back && skb.arrived_on() == 0 {
            return Ok((Verdict::Pass, NEXT));
        }
        translate::translate::<F>(skb, cfg, packet, flow)?;
        if is_balanced {
            return balance::send::<F, SLOW>(skb, at, packet, flow);
        }
        if is_back {
            return redirect::back_to_gateway(skb);
        }
        return Ok((Verdict::Nat, NEXT));
    }
    if flow.nf & nf::RDIR != 0 && (at.place == Place::UplinkIn || at.place == Place::EndpointIn) {
        return Ok(redirect::to_app::<F>(skb, packet, flow));
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
