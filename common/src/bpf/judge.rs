//! A packet without a flow, or one judged under an older policy: flags, ACL, and then NAT (`steer`), a
//! redirect, or neither; in the end two flow entries (`store`).

use super::{
    balance::{balance, is_virtual},
    count,
    fib::{Host, Route, route},
    inspect,
    maps::{self, Acl, Tables},
    steer::steer,
    store::store,
};
use crate::{
    flags,
    flow::{Address, Flow, FlowKey, nf, opt},
    maps::{IfaceEntry, Xcfg, feature, iface_flag, role},
    nat::dir,
    parse::{Parsed, has_ports},
    policy::{self, acl},
    reason::Reason,
    scratch::{FibLookup, Scratch},
    track::Segment,
    wire::{l3::IpProto, l4::tcp_flag},
};

/// Which way a packet goes at which kind of device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From the network.
    UplinkIn,
    /// To the network.
    UplinkOut,
    /// From an app.
    EndpointIn,
    /// To an app.
    EndpointOut,
}

impl Place {
    /// Of a device's role and the hook's direction, as the host sees it.
    #[inline(always)]
    pub fn new(iface: &IfaceEntry, ingress: bool) -> Self {
        match (iface.role == role::ENDPOINT, ingress) {
            (true, true) => Self::EndpointIn,
            (true, false) => Self::EndpointOut,
            (false, true) => Self::UplinkIn,
            (false, false) => Self::UplinkOut,
        }
    }

    /// Whether the peer, whom the ACL is about, is the packet's source.
    #[inline(always)]
    fn peer_is_source(self) -> bool {
        self == Self::UplinkIn || self == Self::EndpointOut
    }

    /// To the device.
    #[inline(always)]
    pub fn is_egress(self) -> bool {
        self == Self::UplinkOut || self == Self::EndpointOut
    }
}

/// What a judgement means for the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Goes on as it came; no flow is kept.
    Pass,
    /// The packet is one of a flow that is stored.
    Flow,
    /// It has none (any more): to be judged as the first of one.
    New,
}

/// Number of the [`Reason`] for which a packet is dropped.
#[derive(Clone, Copy)]
pub struct Dropped(pub u32);

impl From<Reason> for Dropped {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self(reason as u32)
    }
}

/// A `Result<Next, Reason>` in one register, which is all that a BPF subprogram returns: 0 to 2 are
/// [`Next`], from 3 on reasons.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Judgement(u32);

const FIRST_REASON: u32 = 3;

impl Judgement {
    #[inline(always)]
    pub(super) fn new(result: Result<Next, Reason>) -> Self {
        Self(match result {
            Ok(Next::Pass) => 0,
            Ok(Next::Flow) => 1,
            Ok(Next::New) => 2,
            Err(reason) => FIRST_REASON + reason as u32,
        })
    }

    /// The next step, or why the packet is dropped.
    #[inline(always)]
    pub fn next(self) -> Result<Next, Dropped> {
        match self.0 {
            0 => Ok(Next::Pass),
            1 => Ok(Next::Flow),
            2 => Ok(Next::New),
            code => Err(Dropped(code - FIRST_REASON)),
        }
    }
}

/// The flags that decide without looking further; `None` where they leave it to the ACL.
///
/// # Errors
/// The reason of the drop.
#[inline(always)]
pub fn early(flags: u64, proto: u8) -> Result<Option<Next>, Reason> {
    let (deny, allow) = match IpProto(proto) {
        IpProto::TCP => (flags::TCP_DENY, flags::TCP_ALLOW),
        IpProto::UDP => (flags::UDP_DENY, flags::UDP_ALLOW),
        _ => (flags::OTH_DENY, 0),
    };
    if flags & (flags::DENY_ALL | flags::ALLOW_ALL | deny | allow) == 0 {
        return Ok(None);
    }
    if flags & flags::DENY_ALL != 0 {
        Err(Reason::DenyAll)
    } else if flags & flags::ALLOW_ALL != 0 {
        Ok(Some(Next::Pass))
    } else if flags & deny != 0 {
        Err(Reason::ProtoDeny)
    } else {
        Ok(Some(Next::Pass))
    }
}

/// What the ACL says of the tuple's peer: one of [`acl`]. `INLINE`: see [`Tables::acl`].
#[inline(always)]
pub fn ask_acl<F: Tables, const INLINE: bool>(
    cfg: &Xcfg,
    place: Place,
    key: &FlowKey<F::Addr>,
) -> u8 {
    if F::flags(cfg) & flags::ACL_ON == 0 || cfg.acl_kinds == 0 {
        return acl::SILENT;
    }
    let (addr, port) = if place.peer_is_source() {
        (&key.saddr, key.sport)
    } else {
        (&key.daddr, key.dport)
    };
    // What stands there for an echo is its identifier.
    let port = if has_ports(key.proto) { port } else { [0; 2] };
    policy::decide(&(Acl::<INLINE>(cfg), F::ITSELF), addr, port, key.proto)
}

/// In the place of an ACL verdict: the flow is known, and its entry alone does not do for the packet
/// ([`super::again`]).
pub const AGAIN: u8 = 0xff;
/// The same for a flow in the small table ([`super::half`]).
pub const HALF: u8 = 0xfe;
/// The packet is counted, and its flow says what is to become of it.
pub const READY: u8 = 0xfd;
/// The same for a packet that a worker gave back.
pub const BACK: u8 = 0xfc;
/// The same, where its flow is in the small table: a copy of it is in the work space.
pub const BACK_HALF: u8 = 0xfb;

/// Judges a live flow again after a change of policy or of routes. What the rules now deny is dropped; a
/// translated connection goes on as it was, since it cannot change its other end; a trusted one gets its
/// redirect made anew.
///
/// A denied flow's entry stays as it is, so that each further packet is dropped the same way.
#[inline(always)]
pub(super) fn rejudge<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    fib: &mut FibLookup,
) -> Result<Next, Reason> {
    if flow.generation == cfg.generation {
        return Ok(Next::Flow);
    }
    let key = &packet.key;
    // On the way out the peer is seen after translation back.
    let verdict = if place.is_egress() {
        ask_acl::<F, false>(cfg, place, &flow.translated(key))
    } else {
        ask_acl::<F, false>(cfg, place, key)
    };
    if verdict == acl::DENY {
        return Err(Reason::AclDeny);
    }
    count::reason(Reason::FlowRejudged);
    flow.generation = cfg.generation;
    // An entry may name one side's port only: then the answer is trusted as its flow was.
    let trusted = verdict == acl::TRUSTED
        || (verdict == acl::SILENT && flow.nf & (nf::TRUST | nf::REPLY) == nf::TRUST | nf::REPLY);
    inspect::decide(cfg, flow, u32::from(trusted));
    if flow.nf & nf::XNAT != 0 || place.is_egress() {
        return Ok(Next::Flow);
    }
    flow.pass_unchanged(key);
    if trusted {
        plan_redirect::<F, H>(host, cfg, iface, packet, flow, fib);
    } else {
        flow.nf &= !nf::TRUST;
    }
    Ok(Next::Flow)
}

/// Judges a packet that has no flow and stores one for it. A subprogram of its own, so that the way of an
/// established packet stays short.
#[inline(never)]
pub fn judge<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Judgement {
    Judgement::new(stored::<F>(
        cfg,
        packet,
        judge_new::<F, H>(host, cfg, iface, place, packet),
    ))
}

/// Stores the flow in the work space where there is to be one. In one place: the verifier walks through it
/// once for each way that leads there.
#[inline(always)]
fn stored<F: Tables>(
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    judged: Result<Next, Reason>,
) -> Result<Next, Reason> {
    if judged? != Next::Flow {
        return judged;
    }
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends.
    let scratch = unsafe { &mut *scratch };
    let trusted = u32::from(scratch.flow.nf >> nf::TRUST.trailing_zeros() & 1);
    inspect::decide(cfg, &mut scratch.flow, trusted);
    store::<F>(cfg, &packet.key, scratch)
}

#[inline(always)]
fn judge_new<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Result<Next, Reason> {
    let key = &packet.key;
    let asked = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, filled by the program that called.
    let verdict = unsafe { (*asked).verdict } as u8;
    if verdict == acl::DENY {
        return Err(Reason::AclDeny);
    }
    if is_untracked(packet) {
        return Ok(Next::Pass);
    }
    if verdict != acl::TRUSTED && is_listeners_answer::<F, H>(host, cfg, place, packet) {
        // Untranslated its receiver would answer with a RST, and the listener's connection be over.
        return if packet.is_tcp() {
            Err(Reason::AnswerOrphan)
        } else {
            Ok(Next::Pass)
        };
    }
    let scratch = scratch::<F, H>(host, cfg, iface, packet)?;
    if place.is_egress() && host.arrived_on() == 0 {
        scratch.flow.add_opt(opt::HOST);
    }
    if place == Place::EndpointOut && F::flow(key).is_some() {
        // Only provisional, and would hide what is stored now.
        F::remove(key);
    }
    // Before trust: a virtual address has nobody behind it.
    if place == Place::UplinkIn
        && cfg.features & feature::E4LB != 0
        && let Some(balanced) = balance::<F, H>(host, cfg, iface, packet, scratch)?
    {
        return Ok(balanced);
    }
    if verdict == acl::TRUSTED {
        return trust::<F, H>(host, cfg, iface, place, packet, scratch);
    }
    if place == Place::UplinkOut || (place == Place::EndpointOut && host.arrived_on() == 0) {
        return Ok(Next::Flow);
    }
    let is_late = packet.is_tcp() && !is_opener(packet);
    if place == Place::EndpointIn && is_late && host.has_connection::<F>(key) {
        // An app's answer to this host itself, whose flow is gone: to the gateway's own connection.
        return Ok(Next::Flow);
    }
    if place == Place::EndpointIn
        && let Some(steered) = steer::<F>(cfg, packet, scratch, dir::EGRESS)?
    {
        return Ok(steered);
    }
    let to_app = match place {
        // Sent back by the device it came from; one that is not ours takes nothing back.
        Place::EndpointOut => maps::iface(host.arrived_on()).is_some(),
        _ => match route::<F, H>(host, iface.ifindex, packet, &mut scratch.fib) {
            Route::App { .. } => true,
            // A bridge may stand between: the app's device, if there is one, judges again. The kernel says
            // the same of what is for this host and of what no route leads to.
            Route::Local | Route::Away => {
                scratch.flow.nf |= nf::PROVISIONAL;
                false
            }
        },
    };
    if to_app && let Some(steered) = steer::<F>(cfg, packet, scratch, dir::INGRESS)? {
        return Ok(steered);
    }
    Ok(Next::Flow)
}

/// The short way of [`judge`] for a packet whose peer the ACL has called trusted (XDP).
#[inline(never)]
pub fn judge_trusted<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Judgement {
    let is_balanced = place == Place::UplinkIn
        && cfg.features & feature::E4LB != 0
        && is_virtual::<F>(cfg, &packet.key);
    if is_balanced || is_untracked(packet) {
        return Judgement::new(Ok(Next::Pass));
    }
    let judged = scratch::<F, H>(host, cfg, iface, packet)
        .and_then(|scratch| trust::<F, H>(host, cfg, iface, place, packet, scratch));
    Judgement::new(stored::<F>(cfg, packet, judged))
}

/// What has no flow, or whose flow has ended: an answer to a late RST would only make a new one.
#[inline(always)]
fn is_untracked<A: Address>(packet: &Parsed<A>) -> bool {
    let is_reset = packet.key.proto == IpProto::TCP.0 && packet.tcp_flags & tcp_flag::RST != 0;
    !packet.is_flow()
        || is_reset
        || packet.key.daddr.is_local_scope()
        || packet.key.saddr.is_local_scope()
}

/// Whether a listener of this node's gateway sends to somebody whose flow is not (any more) known. Listeners
/// are what exact entries of the ACL audit on an address of this node; they answer and never open.
#[inline(always)]
fn is_listeners_answer<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> bool {
    let key = &packet.key;
    if !place.is_egress()
        || host.arrived_on() != 0
        || !has_ports(key.proto)
        || packet.is_tcp() && is_opener(packet)
        || F::flags(cfg) & flags::ACL_ON == 0
        || cfg.acl_kinds == 0
    {
        return false;
    }
    F::acl::<false>(cfg.policy, &key.saddr, key.sport, policy::class(key.proto)) == acl::AUDIT
}

/// A TCP segment that opens a connection.
#[inline(always)]
fn is_opener<A: Address>(packet: &Parsed<A>) -> bool {
    packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
}

/// This CPU's work space, with a flow for the packet that passes unchanged.
#[inline(always)]
fn scratch<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    packet: &Parsed<F::Addr>,
) -> Result<&'static mut Scratch<F::Addr>, Reason> {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends.
    let scratch = unsafe { &mut *scratch };
    let now_ns = host.now_ns();
    scratch.flow.start(&packet.key, cfg.generation, now_ns);
    if H::COUNTS {
        open(packet, scratch);
        let [segments, bytes, _] = scratch.size;
        count::flow(&mut scratch.flow, iface.ifindex, now_ns, segments, bytes);
    }
    Ok(scratch)
}

/// Tracks the first segment of a flow.
#[inline(always)]
fn open<A: Address>(packet: &Parsed<A>, scratch: &mut Scratch<A>) {
    if packet.is_tcp() {
        let segment = Segment {
            scale: scratch.size[2] as u8,
            ..packet.segment()
        };
        scratch.flow.first(&segment);
    }
}

/// A trusted flow, redirected where it leads to an app of this node.
#[inline(always)]
fn trust<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, Reason> {
    scratch.flow.nf |= nf::TRUST;
    if !place.is_egress() {
        plan_redirect::<F, H>(
            host,
            cfg,
            iface,
            packet,
            &mut scratch.flow,
            &mut scratch.fib,
        );
        if !H::COUNTS && scratch.flow.nf & nf::RDIR != 0 {
            open(packet, scratch);
        }
    }
    Ok(Next::Flow)
}

/// Makes a flow a redirected one where it leads to an app of this node and that can be done.
#[inline(always)]
fn plan_redirect<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    fib: &mut FibLookup,
) {
    let Route::App { iface: app, dmac } = route::<F, H>(host, iface.ifindex, packet, fib) else {
        return;
    };
    if app.flags & iface_flag::REDIRECT == 0 {
        return;
    }
    match dmac {
        Some(dmac) => flow.set_redirect(app.ifindex, dmac),
        // Stays of an older generation, so that the next packet tries again.
        None => {
            count::reason(Reason::RedirectNoNeigh);
            flow.generation = cfg.generation.wrapping_sub(1);
        }
    }
}
