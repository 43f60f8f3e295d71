//! The engine: frame → session → what was said → policy → verdict.

use std::sync::Arc;

use fsm_common::{
    parse::Fragment,
    wire::{l3::IpProto, l4::tcp_flag},
};

use super::{
    Engine, Event, Meta, SessionView, Stats, Verdict,
    decode::{Datagram, Ends, Undecoded, decode},
    inspect::Inspection,
    policy::{Decision, Flow, Policies},
    registry::{Side, Transport},
    session::{Session, State},
    stream,
    table::{Key, Table},
};
use crate::config::DpiMode;

/// Bytes that an engine keeps of streams until protocols are known. Beyond, what a flow has said must do.
pub const MAX_BUFFERED_BYTES: usize = 64 << 20;

/// Timers that one tick looks at, at most: the rest waits for the next, so that packets need not.
const TICK_LOOKS: usize = 16 << 10;
/// Those that a new session looks at: more than one, so that the old ones go at least as fast as new ones come.
const OPEN_LOOKS: usize = 3;

/// What an engine is made with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What it may do. In `off` it allows everything and keeps nothing.
    pub mode: DpiMode,
    /// Sessions at the same time. The table for as many is made at once, 5 to 10 bytes each; the sessions themselves
    /// ([`Inspector::SESSION_BYTES`]) as they come.
    pub max_sessions: usize,
    /// Payload bytes of a direction after which a flow is the kernel's alone, whatever is known of it.
    pub stream_depth: u64,
}

/// The engine of one worker.
pub struct Inspector {
    settings: Settings,
    policies: Arc<Policies>,
    /// Goes up with each change of policy or mode.
    generation: u32,
    table: Table<Session>,
    /// Bytes kept by all inspections.
    buffered: usize,
    stats: Stats,
}

impl Inspector {
    /// Bytes of a session, without the state of its inspection.
    pub const SESSION_BYTES: usize = Table::<Session>::entry_bytes();

    /// An engine without sessions; `seed` makes its hash unguessable.
    pub fn new(settings: Settings, policies: Arc<Policies>, seed: u64) -> Self {
        Self {
            settings,
            policies,
            generation: 0,
            table: Table::new(settings.max_sessions, seed),
            buffered: 0,
            stats: Stats::default(),
        }
    }

    /// Other policies: a session is judged by them at its next packet; what is known of its protocol stays.
    pub fn set_policy(&mut self, policies: Arc<Policies>) {
        self.policies = policies;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Another mode, likewise.
    pub fn set_mode(&mut self, mode: DpiMode) {
        self.settings.mode = mode;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Ends every session, as at the end of a capture.
    pub fn finish(&mut self, tell: &mut dyn FnMut(Event)) {
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(id) = self.table.find(&key) {
                self.end(id, true, tell);
            }
        }
    }

    /// Bytes that are kept of streams.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    fn is_protecting(&self) -> bool {
        self.settings.mode == DpiMode::Protect
    }

    fn undecoded(&mut self, why: Undecoded, tell: &mut dyn FnMut(Event)) -> Verdict {
        let Undecoded::BadTcpFlags(ends) = why else {
            self.stats.undecoded += 1;
            return Verdict::Pass;
        };
        if let Some(ends) = ends {
            tell(threat("tcp_bad_flags", IpProto::TCP.0, &ends));
        }
        match self.is_protecting() {
            true => Verdict::Drop,
            false => Verdict::Pass,
        }
    }

    /// The session of a packet: the one there is, or a new one; `None` when there is no room.
    fn session(
        &mut self,
        now_ns: u64,
        meta: &Meta,
        datagram: &Datagram<'_>,
        tell: &mut dyn FnMut(Event),
    ) -> Option<(u32, Side)> {
        let (key, from_low) = Key::new(&datagram.ends, datagram.proto);
        if let Some(id) = self.table.find(&key) {
            let session = self.table.get(id);
            let side = session.side(from_low);
            if !session.is_followed_by(now_ns, &datagram.tcp, side) {
                return Some((id, side));
            }
            self.end(id, true, tell);
        }
        self.expire(now_ns, OPEN_LOOKS, tell);
        if self.table.is_full() {
            match self.table.oldest_unanswered() {
                Some(id) => {
                    // One that nobody answered tells nothing: in a flood that would be an event a packet.
                    self.end(id, false, tell);
                    self.stats.evicted += 1;
                }
                None => {
                    self.stats.no_room += 1;
                    return None;
                }
            }
        }
        let session = Session::new(
            now_ns,
            datagram.proto,
            &datagram.tcp,
            from_low,
            meta.is_reply,
        );
        let (side, due_ns) = (session.side(from_low), session.due_ns());
        self.table.insert(key, session, due_ns).map(|id| (id, side))
    }

    /// Ends what is over, of so many sessions whose timers have rung.
    fn expire(&mut self, now_ns: u64, mut looks: usize, tell: &mut dyn FnMut(Event)) {
        while let Some(id) = self.table.due(now_ns, Session::due_ns, &mut looks) {
            self.end(id, true, tell);
        }
    }

    fn end(&mut self, id: u32, is_told: bool, tell: &mut dyn FnMut(Event)) {
        self.stop_inspection(id, is_told, tell);
        let none = Session::new(0, 0, &Default::default(), true, false);
        let (key, session) = self.table.remove(id, none);
        if is_told {
            tell(session.ended(&key));
        }
    }

    /// Drops what is kept for a session's inspection; what was learned is told.
    fn stop_inspection(&mut self, id: u32, is_told: bool, tell: &mut dyn FnMut(Event)) {
        let Some(inspection) = self.table.get_mut(id).inspection.take() else {
            return;
        };
        self.buffered = self.buffered.saturating_sub(inspection.bytes());
        let (key, session) = (self.table.key(id), self.table.get(id));
        if let (Some(app), true) = (session.app, is_told) {
            let (client, server) = session.sockets(key);
            tell(Event::App {
                client,
                server,
                proto: key.proto(),
                app,
                info: inspection.info.0,
            });
        }
    }

    /// Gives a packet's data to the session's inspection, in order.
    fn inspect(
        &mut self,
        id: u32,
        side: Side,
        datagram: &Datagram<'_>,
        tell: &mut dyn FnMut(Event),
    ) {
        let ends = self.table.get(id).ends(self.table.key(id));
        let session = self.table.get_mut(id);
        let transport = match IpProto(datagram.proto) {
            IpProto::TCP => Transport::Tcp,
            _ => Transport::Udp,
        };
        let is_wanted = !session.is_inspected && session.state != State::Blocked;
        if is_wanted && session.inspection.is_none() {
            let ports = [ends.sport, ends.dport];
            session.inspection = Some(Box::new(Inspection::new(transport, ports)));
        }
        let has_room = self.buffered < MAX_BUFFERED_BYTES;
        let half = &mut session.halves[side as usize];
        let before = session
            .inspection
            .as_ref()
            .map_or(0, |inspection| inspection.bytes());
        match (transport, session.inspection.as_deref_mut()) {
            (Transport::Tcp, inspection) => {
                // A SYN takes a sequence number of its own.
                let syn = u32::from(datagram.tcp.flags & tcp_flag::SYN != 0);
                let seq = datagram.tcp.seq.wrapping_add(syn);
                stream::follow(half, inspection, side, seq, datagram.payload, has_room);
            }
            (Transport::Udp, inspection) => {
                half.bytes += datagram.payload.len() as u64;
                if let Some(inspection) = inspection {
                    inspection.hear(side, datagram.payload, has_room);
                }
            }
        }
        let is_deep = half.bytes >= self.settings.stream_depth;
        let Some(inspection) = &session.inspection else {
            session.is_inspected |= is_deep;
            return;
        };
        self.buffered = (self.buffered + inspection.bytes()).saturating_sub(before);
        session.app = inspection.app().or(session.app);
        if inspection.is_over() || is_deep {
            session.is_inspected = true;
            self.stop_inspection(id, true, tell);
        }
    }

    /// What the policy says of a session; a verdict, and what is to be told.
    fn decide(&mut self, id: u32, tell: &mut dyn FnMut(Event)) -> Verdict {
        let key = *self.table.key(id);
        let session = self.table.get_mut(id);
        let asked = Some((self.generation, session.known()));
        if session.judged != asked {
            let ends = session.ends(&key);
            let flow = Flow {
                client: ends.src().ip(),
                server: ends.dst().ip(),
                port: ends.dport,
                proto: key.proto(),
                app: session.known(),
            };
            session.decision = self.policies.judge(&flow);
            session.judged = asked;
            if session.state == State::Blocked && !matches!(session.decision, Decision::Deny(_)) {
                session.state = match IpProto(key.proto()) {
                    IpProto::TCP => State::Active,
                    IpProto::UDP => State::Udp,
                    IpProto::ICMP | IpProto::ICMPV6 => State::Icmp,
                    _ => State::Other,
                };
            }
        }
        let is_protecting = self.settings.mode == DpiMode::Protect;
        let (policy, is_denied) = match session.decision {
            Decision::Undecided => return Verdict::Pass,
            Decision::Allow => (None, false),
            Decision::Violate(policy) => (Some(policy), false),
            Decision::Deny(policy) => (Some(policy), is_protecting),
        };
        let is_news =
            policy.is_some() && session.told != policy && self.settings.mode != DpiMode::Learn;
        if is_news {
            session.told = policy;
        }
        let (client, server) = session.sockets(&key);
        let app = session.app;
        let verdict = if is_denied {
            session.state = State::Blocked;
            match IpProto(key.proto()) {
                IpProto::TCP => Verdict::Reset,
                _ => Verdict::Deny,
            }
        } else if !session.is_inspected {
            Verdict::Pass
        } else if key.proto() == IpProto::UDP.0 && matches!(app, Some("dns" | "mdns")) {
            // A query and its answer: a verdict in the kernel would cost more than it saves.
            Verdict::Pass
        } else {
            Verdict::Allow
        };
        if is_denied {
            self.stop_inspection(id, true, tell);
        }
        if let (Some(policy), true) = (policy, is_news) {
            let (proto, policy) = (key.proto(), policy as usize);
            tell(Event::Violation {
                client,
                server,
                proto,
                app,
                policy,
                denied: is_denied,
            });
        }
        verdict
    }
}

fn threat(name: &'static str, proto: u8, ends: &Ends) -> Event {
    Event::Threat {
        from: ends.src(),
        to: ends.dst(),
        proto,
        name,
    }
}

impl Engine for Inspector {
    fn configure(&mut self, mode: DpiMode, policies: &Arc<Policies>) {
        self.set_mode(mode);
        self.set_policy(policies.clone());
    }

    fn judge(
        &mut self,
        now_ns: u64,
        meta: &Meta,
        frame: &[u8],
        tell: &mut dyn FnMut(Event),
    ) -> Verdict {
        if self.settings.mode == DpiMode::Off {
            return Verdict::Allow;
        }
        let datagram = match decode(frame) {
            Ok(datagram) => datagram,
            Err(why) => return self.undecoded(why, tell),
        };
        // A later fragment follows the first: without it nothing becomes of it.
        if datagram.is_neighbour_discovery || datagram.fragment == Fragment::Later {
            return Verdict::Pass;
        }
        if !datagram.is_sum_good {
            tell(threat("bad_checksum", datagram.proto, &datagram.ends));
            return Verdict::Pass;
        }
        let Some((id, side)) = self.session(now_ns, meta, &datagram, tell) else {
            return Verdict::Pass;
        };
        let session = self.table.get_mut(id);
        session.packets[side as usize] += 1;
        session.bytes[side as usize] += frame.len() as u64;
        session.last_ns = session.last_ns.max(now_ns);
        let timeout_ns = session.state.timeout_ns();
        let is_answered = match IpProto(datagram.proto) {
            IpProto::TCP => session.step(side, &datagram.tcp, datagram.payload.len()),
            _ => session.packets.iter().all(|packets| *packets > 0),
        };
        if is_answered {
            self.table.answered(id);
        }
        if !datagram.payload.is_empty() {
            self.inspect(id, side, &datagram, tell);
        }
        let verdict = self.decide(id, tell);
        let session = self.table.get_mut(id);
        session.verdict = verdict;
        if session.state.timeout_ns() < timeout_ns {
            let due_ns = session.due_ns();
            self.table.schedule(id, due_ns);
        }
        verdict
    }

    fn tick(&mut self, now_ns: u64, tell: &mut dyn FnMut(Event)) {
        self.expire(now_ns, TICK_LOOKS, tell);
    }

    fn stats(&self) -> Stats {
        Stats {
            sessions: self.table.len(),
            ..self.stats
        }
    }

    fn sessions(&self, now_ns: u64, limit: usize) -> Vec<SessionView> {
        let sessions = self.table.iter().take(limit);
        sessions
            .map(|(key, session)| session.view(key, now_ns))
            .collect()
    }
}
