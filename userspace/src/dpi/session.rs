//! One flow: its ends, its state and timeout, what each side has sent, and what was decided.

use std::net::SocketAddr;

use fsm_common::wire::{l3::IpProto, l4::tcp_flag};

use super::{
    Event, SessionView, Verdict,
    decode::{Ends, Tcp},
    inspect::Inspection,
    policy::{Decision, Known},
    registry::Side,
    stream::Half,
    table::Key,
};

/// Nanoseconds without packets after which a SYN with another sequence number opens an established flow anew.
const REOPEN_IDLE_NS: u64 = 30_000_000_000;

/// Where a session is; it says how long it lasts without packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP before the client's ACK of the server's SYN.
    Opening,
    /// TCP without data.
    NoData,
    /// TCP with data.
    Active,
    /// TCP that one side has closed.
    HalfClosed,
    /// TCP that both sides have closed, or one has reset.
    Closing,
    /// Denied.
    Blocked,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// All else.
    Other,
}

impl State {
    /// Nanoseconds without a packet after which a session in this state is over.
    pub const fn timeout_ns(self) -> u64 {
        let seconds = match self {
            Self::Opening => 20,
            Self::NoData => 30,
            Self::Active => 1200,
            Self::HalfClosed => 90,
            Self::Closing => 15,
            Self::Blocked => 60,
            Self::Udp => 30,
            Self::Icmp => 5,
            Self::Other => 15,
        };
        seconds * 1_000_000_000
    }
}

/// One flow.
pub struct Session {
    /// The client is the key's lower end.
    is_low: bool,
    /// See [`State`].
    pub state: State,
    /// Its first packet.
    pub first_ns: u64,
    /// Its last packet.
    pub last_ns: u64,
    /// Packets from client and server.
    pub packets: [u64; 2],
    /// Their frame bytes.
    pub bytes: [u64; 2],
    /// TCP from client and server.
    pub halves: [Half; 2],
    /// Its protocol.
    pub app: Option<&'static str>,
    /// No more data is looked at.
    pub is_inspected: bool,
    /// While it is looked at, and data has come.
    pub inspection: Option<Box<Inspection>>,
    /// What the policy says.
    pub decision: Decision,
    /// What it was asked with: generation of the policy, and what was known.
    pub judged: Option<(u32, Known)>,
    /// Number of the policy that was reported against it.
    pub told: Option<u32>,
    /// What was said last.
    pub verdict: Verdict,
}

impl Session {
    /// Of a first packet, from the key's lower end or not.
    pub fn new(now_ns: u64, proto: u8, tcp: &Tcp, from_low: bool, is_reply: bool) -> Self {
        const SYN_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;
        let is_tcp = proto == IpProto::TCP.0;
        let opening = if is_tcp { tcp.flags & SYN_ACK } else { 0 };
        let from_client = match opening {
            tcp_flag::SYN => true,
            SYN_ACK => false,
            _ => !is_reply,
        };
        let state = match IpProto(proto) {
            IpProto::TCP if opening & tcp_flag::SYN != 0 => State::Opening,
            IpProto::TCP => State::NoData,
            IpProto::UDP => State::Udp,
            IpProto::ICMP | IpProto::ICMPV6 => State::Icmp,
            _ => State::Other,
        };
        Self {
            is_low: from_low == from_client,
            state,
            first_ns: now_ns,
            last_ns: now_ns,
            packets: [0; 2],
            bytes: [0; 2],
            halves: [Half::default(); 2],
            app: None,
            is_inspected: !is_tcp && proto != IpProto::UDP.0,
            inspection: None,
            decision: Decision::Undecided,
            judged: None,
            told: None,
            verdict: Verdict::Pass,
        }
    }

    /// Whose packet it is.
    pub fn side(&self, from_low: bool) -> Side {
        if from_low == self.is_low {
            Side::Client
        } else {
            Side::Server
        }
    }

    /// Client and server.
    pub fn ends(&self, key: &Key) -> Ends {
        key.ends(self.is_low)
    }

    /// When it is over, if no packet comes.
    pub fn due_ns(&self) -> u64 {
        self.last_ns.saturating_add(self.state.timeout_ns())
    }

    /// Whether a packet begins another flow with the same tuple: it is late, or a SYN of a new connection.
    pub fn is_followed_by(&self, now_ns: u64, tcp: &Tcp, side: Side) -> bool {
        if now_ns >= self.due_ns() {
            return true;
        }
        let is_syn = tcp.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN;
        let half = &self.halves[side as usize];
        is_syn
            && !half.is_opened_by(tcp.seq)
            && match self.state {
                State::Closing | State::Blocked => true,
                State::Opening => false,
                _ => now_ns.saturating_sub(self.last_ns) >= REOPEN_IDLE_NS,
            }
    }

    /// What a segment's flags and numbers change, before its data; true when the session has been answered by it.
    pub fn step(&mut self, side: Side, tcp: &Tcp, len: usize) -> bool {
        let (client, server) = (Side::Client as usize, Side::Server as usize);
        let was_opening = self.state == State::Opening;
        let half = &mut self.halves[side as usize];
        if tcp.flags & tcp_flag::RST != 0 {
            if half.is_near(tcp.seq) || was_opening {
                self.close();
            }
            return false;
        }
        if tcp.flags & tcp_flag::SYN != 0 {
            if was_opening {
                half.open(tcp.seq);
                if side == Side::Server && tcp.flags & tcp_flag::ACK != 0 {
                    self.halves[client].accepted(tcp.ack);
                }
            }
            return false;
        }
        let mut is_answered = false;
        if was_opening && side == Side::Client && self.halves[server].is_known() {
            self.state = State::NoData;
            is_answered = true;
        }
        if len > 0 && self.state == State::NoData {
            self.state = State::Active;
        }
        let half = &mut self.halves[side as usize];
        if tcp.flags & tcp_flag::FIN != 0
            && half.is_near(tcp.seq.wrapping_add(len as u32))
            && half.close()
            && self.state != State::Blocked
            && self.state != State::Closing
        {
            let is_both = self.halves.iter().all(Half::is_closed);
            self.state = if is_both {
                State::Closing
            } else {
                State::HalfClosed
            };
        }
        is_answered || (!was_opening && self.packets.iter().all(|packets| *packets > 0))
    }

    fn close(&mut self) {
        if self.state != State::Blocked {
            self.state = State::Closing;
        }
    }

    /// What policies may know of its protocol.
    pub fn known(&self) -> Known {
        match self.app {
            Some(app) => Known::App(app),
            None if self.is_inspected => Known::Never,
            None => Known::NotYet,
        }
    }

    /// The event of its end.
    pub fn ended(&self, key: &Key) -> Event {
        let (client, server) = self.sockets(key);
        Event::Flow {
            client,
            server,
            proto: key.proto(),
            app: self.app,
            packets: self.packets,
            bytes: self.bytes,
            span_ns: [self.first_ns, self.last_ns],
            verdict: self.verdict,
            is_closed: self.state == State::Closing,
        }
    }

    /// Client and server, for people.
    pub fn sockets(&self, key: &Key) -> (SocketAddr, SocketAddr) {
        let ends = self.ends(key);
        (ends.src(), ends.dst())
    }

    /// What `dpi sessions` shows.
    pub fn view(&self, key: &Key, now_ns: u64) -> SessionView {
        let (client, server) = self.sockets(key);
        SessionView {
            client,
            server,
            proto: key.proto(),
            app: self.app,
            packets: self.packets,
            bytes: self.bytes,
            verdict: self.verdict,
            idle_ns: now_ns.saturating_sub(self.last_ns),
        }
    }
}
