//! A packet without a flow, or one judged under an older policy: flags, ACL, NAT, and two flow entries.

use super::{
    count,
    fib::{Host, Route, route},
    maps::{Acl, FSM_SKIP_PORT, FSM_XOPT, Nat, Tables},
};
use crate::{
    checksum, flags,
    flow::{Address, Flow, FlowKey, nf},
    maps::{IfaceEntry, Origin, OriginKey, Xcfg, feature, iface_flag, role, skip, sys},
    nat::{self, MAGLEV_SLOTS, NatKey, NatValue, dir, select},
    parse::Parsed,
    policy::{self, acl},
    reason::Reason,
    scratch::{FibLookup, Scratch},
    wire::{l3::IpProto, l4::tcp_flag},
};

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;
/// `-EEXIST`.
const EEXIST: i32 = -17;
/// Source ports tried for a flow whose answer would meet another's.
const PORT_TRIES: u32 = 16;

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

    #[inline(always)]
    fn is_egress(self) -> bool {
        self == Self::UplinkOut || self == Self::EndpointOut
    }
}

/// What a judgement means for the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Goes on as it came; no flow is kept.
    Pass,
    /// A flow is stored: treat the packet as one of it.
    Flow,
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

/// A `Result<Next, Reason>` in one register, which is all that a BPF subprogram returns: 0 and 1 are
/// [`Next`], from 2 on reasons.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Judgement(u32);

const FIRST_REASON: u32 = 2;

impl Judgement {
    #[inline(always)]
    fn new(result: Result<Next, Reason>) -> Self {
        Self(match result {
            Ok(Next::Pass) => 0,
            Ok(Next::Flow) => 1,
            Err(reason) => FIRST_REASON + reason as u32,
        })
    }

    /// The next step, or why the packet is dropped.
    #[inline(always)]
    pub fn next(self) -> Result<Next, Dropped> {
        match self.0 {
            0 => Ok(Next::Pass),
            1 => Ok(Next::Flow),
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

/// What the ACL says of the tuple's peer: one of [`acl`].
#[inline(always)]
pub fn ask_acl<F: Tables>(cfg: &Xcfg, place: Place, key: &FlowKey<F::Addr>) -> u8 {
    if F::flags(cfg) & flags::ACL_ON == 0 || cfg.acl_kinds == 0 {
        return acl::SILENT;
    }
    let (addr, port) = if place.peer_is_source() {
        (&key.saddr, key.sport)
    } else {
        (&key.daddr, key.dport)
    };
    match policy::decide(&(Acl(cfg.acl_kinds), F::ITSELF), addr, port, key.proto) {
        Some(value) => value.acl,
        None => acl::SILENT,
    }
}

/// In the place of an ACL verdict: the flow is known, and only judged under an older policy.
pub const AGAIN: u8 = 0xff;

/// Judges a live flow again after a change of policy or of routes. What the rules now deny is dropped; a
/// translated connection goes on as it was, since it cannot change its other end; a trusted one gets its
/// redirect made anew.
///
/// A denied flow's entry stays as it is, so that each further packet is dropped the same way.
#[inline(never)]
pub fn rejudge<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
) -> Judgement {
    Judgement::new(match (F::flow(&packet.key), F::scratch()) {
        (Some(flow), Some(scratch)) => {
            // SAFETY: map values; the flow's fields have one writer, the work space is this CPU's own.
            let (flow, fib) = unsafe { (&mut *flow, &mut (*scratch).fib) };
            judge_again::<F, H>(host, cfg, iface, place, packet, flow, fib)
        }
        _ => Ok(Next::Pass),
    })
}

#[inline(always)]
fn judge_again<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    iface: &IfaceEntry,
    place: Place,
    packet: &Parsed<F::Addr>,
    flow: &mut Flow<F::Addr>,
    fib: &mut FibLookup,
) -> Result<Next, Reason> {
    let key = &packet.key;
    // On the way out the peer is seen after translation back.
    let verdict = if place.is_egress() {
        ask_acl::<F>(cfg, place, &flow.translated(key))
    } else {
        ask_acl::<F>(cfg, place, key)
    };
    if verdict == acl::DENY {
        return Err(Reason::AclDeny);
    }
    count::reason(Reason::FlowRejudged);
    flow.generation = cfg.generation;
    if flow.nf & nf::XNAT != 0 || place.is_egress() {
        return Ok(Next::Flow);
    }
    // An entry may name one side's port only: then the answer is trusted as its flow was.
    let trusted = verdict == acl::TRUSTED
        || (verdict == acl::SILENT && flow.nf & (nf::TRUST | nf::REPLY) == nf::TRUST | nf::REPLY);
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
    Judgement::new(judge_new::<F, H>(host, cfg, iface, place, packet))
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
    let scratch = scratch::<F, H>(host, cfg, key)?;
    if verdict == acl::TRUSTED {
        return trust::<F, H>(host, cfg, iface, place, packet, scratch);
    }
    if place == Place::UplinkOut || (place == Place::EndpointOut && host.arrived_on() == 0) {
        return store::<F>(cfg, key, scratch, 0);
    }
    if place == Place::EndpointIn
        && let Some(steered) = steer::<F>(cfg, packet, scratch, dir::EGRESS)?
    {
        return Ok(steered);
    }
    let to_app = match place {
        Place::EndpointOut => true,
        _ => match route::<F, H>(host, iface.ifindex, packet, &mut scratch.fib) {
            Route::App { .. } => true,
            Route::Local => false,
            Route::Away => {
                // A bridge may stand between: the app's device, if there is one, judges again.
                scratch.flow.nf |= nf::PROVISIONAL;
                false
            }
        },
    };
    if to_app && let Some(steered) = steer::<F>(cfg, packet, scratch, dir::INGRESS)? {
        return Ok(steered);
    }
    store::<F>(cfg, key, scratch, 0)
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
    if is_untracked(packet) {
        return Judgement::new(Ok(Next::Pass));
    }
    Judgement::new(
        scratch::<F, H>(host, cfg, &packet.key)
            .and_then(|scratch| trust::<F, H>(host, cfg, iface, place, packet, scratch)),
    )
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

/// This CPU's work space, with a flow for `key` that passes unchanged.
#[inline(always)]
fn scratch<F: Tables, H: Host>(
    host: &H,
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
) -> Result<&'static mut Scratch<F::Addr>, Reason> {
    let scratch = F::scratch().ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own entry, and no other program runs on this CPU before this one ends.
    let scratch = unsafe { &mut *scratch };
    scratch.flow.start(key, cfg.generation, host.now_ns());
    Ok(scratch)
}

/// Stores a trusted flow, redirected where it leads to an app of this node.
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
    }
    store::<F>(cfg, &packet.key, scratch, 0)
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

/// NAT to this node's listeners: `None` where the packet is none of NAT's business.
#[inline(always)]
fn steer<F: Tables>(
    cfg: &Xcfg,
    packet: &Parsed<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    dir: u8,
) -> Result<Option<Next>, Reason> {
    let key = &packet.key;
    let is_udp = key.proto == IpProto::UDP.0;
    let kinds = cfg.nat_kinds >> nat::kind::shift(dir, is_udp, F::V6) & 0xf;
    if kinds == 0 || is_excluded::<F>(cfg, key, dir) {
        return Ok(None);
    }
    let flags = F::flags(cfg);
    scratch.nat = NatKey {
        proto: key.proto,
        dir,
        v6: F::V6 as u8,
        sys: sys::MESH,
        ..NatKey::ZERO
    };
    let kinds = kinds & enabled(flags, is_udp);
    let Some(entry) = nat::lookup(&Nat, kinds, &mut scratch.nat, key.daddr, key.dport) else {
        let escape = if is_udp {
            flags::UDP_ESCAPE
        } else {
            flags::TCP_ESCAPE
        };
        return if flags & escape != 0 {
            Ok(None)
        } else {
            Err(Reason::NatMiss)
        };
    };
    // SAFETY: map value, readable until the program ends.
    let entry = unsafe { &mut *entry };
    if entry.usable == 0 {
        return if cfg.fail_open != 0 {
            count::reason(Reason::NatNoEndpointOpen);
            Ok(None)
        } else {
            Err(Reason::NatNoEndpoint)
        };
    }
    let to = &mut scratch.forward;
    *to = *key;
    let endpoint = &entry.endpoints[choose(entry, key) & (nat::MAX_ENDPOINTS - 1)];
    if endpoint.addr != [0; 16] {
        to.daddr = F::Addr::narrow(endpoint.addr);
    }
    if endpoint.port != [0; 2] {
        to.dport = endpoint.port;
    }
    let inbound = if dir == nat::dir::INGRESS {
        nf::INBOUND
    } else {
        0
    };
    scratch.flow.nf |= nf::XNAT | inbound;
    scratch.flow.nf &= !nf::PROVISIONAL;
    scratch.flow.set_translation(key, &scratch.forward);
    let next = store::<F>(cfg, key, scratch, 1)?;
    Ok(Some(next))
}

/// The kinds of NAT entry that the flags leave on.
#[inline(always)]
fn enabled(flags: u64, is_udp: bool) -> u32 {
    let on = |flag: u64, kind: u32| if flags & flag != 0 { kind } else { 0 };
    let not = |flag: u64, kind: u32| if flags & flag == 0 { kind } else { 0 };
    use nat::kind::{ADDR, ADDR_PORT, ANY, PORT};
    if is_udp {
        on(flags::UDP_BY_IP_PORT, ADDR_PORT)
            | on(flags::UDP_BY_IP, ADDR)
            | on(flags::UDP_BY_PORT, PORT)
            | not(flags::UDP_ANY_OFF, ANY)
    } else {
        on(flags::TCP_BY_IP_PORT, ADDR_PORT)
            | on(flags::TCP_BY_IP, ADDR)
            | PORT
            | not(flags::TCP_ANY_OFF, ANY)
    }
}

/// `exclude_*` of the configuration: wins over every NAT entry.
#[inline(always)]
fn is_excluded<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, dir: u8) -> bool {
    let bit = if dir == nat::dir::INGRESS {
        skip::INBOUND
    } else {
        skip::OUTBOUND
    };
    if cfg.features & feature::SKIP_PORT != 0
        && let Some(bits) = FSM_SKIP_PORT.get(u32::from(u16::from_be_bytes(key.dport)))
        && bits & bit != 0
    {
        return true;
    }
    let cidrs = if F::V6 {
        feature::SKIP_CIDR6
    } else {
        feature::SKIP_CIDR4
    };
    cfg.features & cidrs != 0 && F::skip(&key.daddr) & u64::from(bit) != 0
}

#[inline(always)]
fn choose<A: Address>(entry: &mut NatValue, key: &FlowKey<A>) -> usize {
    if entry.ep_cnt <= 1 {
        return 0;
    }
    let at = if entry.select == select::ROUND_ROBIN {
        // Two CPUs may take the same turn; the shares stay even.
        let turn = if entry.ep_sel >= MAGLEV_SLOTS {
            0
        } else {
            entry.ep_sel
        };
        entry.ep_sel = turn + 1;
        turn
    } else {
        nat::slot(nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport))
    };
    usize::from(entry.table[at as usize])
}

/// Stores both directions of the flow in `scratch`, the answer first: a flow without its answer would
/// send packets out that nobody translates back.
#[inline(always)]
fn store<F: Tables>(
    cfg: &Xcfg,
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    is_nat: u8,
) -> Result<Next, Reason> {
    if store_reply::<F>(key, scratch, is_nat)? {
        if is_nat != 0 {
            record_origin::<F>(cfg, key, scratch);
        }
        if F::insert(key, &scratch.flow, 0).is_ok() {
            count::reason(Reason::FlowNew);
            return Ok(Next::Flow);
        }
        F::remove(&scratch.reply_key);
    }
    if cfg.fail_open == 0 {
        return Err(Reason::TableFull);
    }
    count::reason(Reason::TableFullOpen);
    Ok(Next::Pass)
}

/// Inserts the answering direction; a translated flow whose answer would meet another's gets a source
/// port of its own. `false` where the table is full.
#[inline(always)]
fn store_reply<F: Tables>(
    key: &FlowKey<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    is_nat: u8,
) -> Result<bool, Reason> {
    let hash = nat::flow_hash(key.saddr, key.daddr, key.sport, key.dport);
    if scratch.flow.nf & nf::XNAT == 0 {
        scratch.forward = *key;
    }
    for attempt in 0..PORT_TRIES {
        if attempt > 0 {
            let pick = hash.wrapping_add(attempt.wrapping_mul(7919)) & 0xffff;
            // 1024 to 65535: never a privileged port
            scratch.forward.sport = (1024 + ((pick * 64512) >> 16) as u16).to_be_bytes();
            scratch.flow.set_translation(key, &scratch.forward);
        }
        scratch.reply_key.set_reversed(&scratch.forward);
        let reply = &mut scratch.reply;
        reply.start(
            &scratch.reply_key,
            scratch.flow.generation,
            scratch.flow.last_seen_ns,
        );
        if scratch.flow.nf & nf::TRUST != 0 {
            // Judged at its own device by its first packet, for a redirect of its own.
            reply.generation = reply.generation.wrapping_sub(1);
        }
        (reply.to_saddr, reply.to_daddr) = (key.daddr, key.saddr);
        (reply.to_sport, reply.to_dport) = (key.dport, key.sport);
        reply.addr_delta = checksum::opposite(scratch.flow.addr_delta);
        reply.port_delta = checksum::opposite(scratch.flow.port_delta);
        reply.nf = scratch.flow.nf & !(nf::RDIR | nf::PROVISIONAL) | nf::REPLY;
        match F::insert(&scratch.reply_key, &scratch.reply, NOEXIST) {
            Ok(()) => {
                if attempt > 0 {
                    count::reason(Reason::NatPortMoved);
                }
                return Ok(true);
            }
            Err(EEXIST) if is_nat == 0 || is_own::<F>(&scratch.reply_key, key) => return Ok(true),
            Err(EEXIST) => {}
            Err(_) => return Ok(false),
        }
    }
    Err(Reason::NatNoPort)
}

/// Whether the answering entry already there belongs to this very flow.
#[inline(always)]
fn is_own<F: Tables>(reply_key: &FlowKey<F::Addr>, key: &FlowKey<F::Addr>) -> bool {
    F::flow(reply_key).is_some_and(|entry| {
        // SAFETY: map value, readable until the program ends.
        let entry = unsafe { &*entry };
        entry.to_saddr.same(&key.daddr)
            && entry.to_daddr.same(&key.saddr)
            && entry.to_sport == key.dport
            && entry.to_dport == key.sport
    })
}

/// Tells programs on this node what the gateway will be asked for.
#[inline(always)]
fn record_origin<F: Tables>(cfg: &Xcfg, key: &FlowKey<F::Addr>, scratch: &mut Scratch<F::Addr>) {
    let flags = F::flags(cfg);
    let (on, with_addr, with_port) = if key.proto == IpProto::UDP.0 {
        (flags::UDP_OPT, flags::UDP_OPT_LADDR, flags::UDP_OPT_LPORT)
    } else {
        (flags::TCP_OPT, flags::TCP_OPT_LADDR, flags::TCP_OPT_LPORT)
    };
    if flags & on == 0 {
        return;
    }
    let seen = &scratch.flow;
    let (origin_key, origin) = &mut scratch.origin;
    *origin_key = OriginKey {
        laddr: if flags & with_addr != 0 {
            seen.to_daddr.widen()
        } else {
            [0; 16]
        },
        raddr: seen.to_saddr.widen(),
        lport: if flags & with_port != 0 {
            seen.to_dport
        } else {
            [0; 2]
        },
        rport: seen.to_sport,
        proto: key.proto,
        v6: F::V6 as u8,
        sys: sys::MESH,
        pad: 0,
    };
    *origin = Origin {
        daddr: key.daddr.widen(),
        saddr: key.saddr.widen(),
        dport: key.dport,
        sport: key.sport,
        proto: key.proto,
        v6: F::V6 as u8,
        pad: [0; 2],
    };
    let _ = FSM_XOPT.insert(&*origin_key, &*origin, 0);
}
