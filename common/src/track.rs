//! TCP connection tracking: what is remembered of each direction, and the state that the two together mean.
//!
//! There is no state machine to fall out of step. A direction remembers the end of what it has sent, the
//! highest acknowledgement it has given and the largest window it has offered; SYN, FIN and RST are noted
//! only where these say that the connection's own end can have sent them (RFC 9293 §3.10, RFC 5961 §3, and
//! netfilter's `tcp_in_window`). The state follows from the two: [`state`].
//!
//! An ordinary segment touches the entry of its own direction alone ([`Flow::segment`]); SYN, FIN and RST
//! are compared with the other direction too ([`Flow::event`]), and come by the slow way.

use crate::{
    flow::Flow,
    wire::{
        l3::IpProto,
        l4::tcp_flag::{ACK, FIN, RST, SYN},
    },
};

/// What tracking needs of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number, host order.
    pub seq: u32,
    /// Acknowledgement number, host order; means nothing without the flag ACK.
    pub ack: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Window field, host order, not scaled.
    pub window: u16,
    /// Flags byte.
    pub flags: u8,
    /// Window scale option of a SYN (RFC 7323 §2.2), 0 to 14.
    pub scale: u8,
}

impl Segment {
    #[inline(always)]
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number after this segment; SYN and FIN count as one byte each.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let (syn, fin) = ((self.flags & SYN) >> 1, self.flags & FIN);
        self.seq
            .wrapping_add(self.len)
            .wrapping_add(syn as u32 + fin as u32)
    }
}

/// Bytes by which numbers may always be apart: windows before scaling reach no further.
const MIN_REACH: u32 = 1 << 16;
/// Bytes by which the two sides of a connection may be apart when it is first seen late.
const LATE_REACH: u32 = 1 << 26;
/// Bytes of the largest window (RFC 7323 §2.3).
const MAX_WINDOW: u32 = 1 << 30;
/// The largest scale (RFC 7323 §2.3), for connections whose SYN was not seen.
pub const MAX_SCALE: u8 = 14;

/// `a` is at or after `b` (RFC 9293 §3.4).
#[inline(always)]
pub const fn reached(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 >= 0
}

/// `a` and `b` are at most `reach` apart.
#[inline(always)]
const fn near(a: u32, b: u32, reach: u32) -> bool {
    a.wrapping_sub(b) <= reach || b.wrapping_sub(a) <= reach
}

impl<A> Flow<A> {
    #[inline(always)]
    const fn noted(&self, flag: u8) -> bool {
        self.tcp & flag != 0
    }

    /// Bytes that this direction has at most invited the other to send.
    #[inline(always)]
    fn reach(&self) -> u32 {
        let window = (self.window as u32) << self.scale();
        if window < MIN_REACH {
            MIN_REACH
        } else {
            window
        }
    }

    /// Notes a segment without SYN, FIN and RST. One whose acknowledgement lies further from the last one
    /// than the window that was offered, or whose bytes lie further from the last ones than any window, is not
    /// this connection's, and changes nothing. False for such.
    #[inline(always)]
    pub fn segment(&mut self, segment: &Segment) -> bool {
        if !self.noted(ACK) {
            return self.first_ack(segment);
        }
        let reach = self.reach();
        let end = segment.end();
        let ahead = end.wrapping_sub(self.seq_end);
        if ahead.wrapping_add(MAX_WINDOW) > 2 * MAX_WINDOW {
            return false;
        }
        if segment.ack.wrapping_sub(self.acked) <= reach {
            self.acked = segment.ack;
        } else if self.acked.wrapping_sub(segment.ack) > reach {
            return false;
        }
        // Nothing follows a FIN (RFC 9293 §3.6).
        if ahead as i32 > 0 && !self.noted(FIN) {
            self.seq_end = end;
        }
        if segment.window > self.window {
            self.window = segment.window;
        }
        true
    }

    /// The direction's first acknowledgement; of a connection seen late also its first segment.
    #[inline(always)]
    fn first_ack(&mut self, segment: &Segment) -> bool {
        if !segment.has(ACK) {
            return false;
        }
        if !self.noted(SYN) {
            self.seq_end = segment.end();
            self.set_scale(MAX_SCALE);
        }
        self.acked = segment.ack;
        self.window = segment.window;
        self.tcp |= ACK;
        true
    }

    /// Notes the first segment of a flow, of which nothing else is known; not a RST.
    #[inline(always)]
    pub fn first(&mut self, segment: &Segment) {
        if segment.has(SYN) {
            self.opened(segment);
        } else {
            self.first_ack(segment);
            self.tcp |= segment.flags & FIN;
        }
    }

    /// Notes any segment, with the other direction at hand. False where it cannot be the connection's own:
    /// then nothing has changed.
    #[inline(always)]
    pub fn event(&mut self, other: &Self, segment: &Segment) -> bool {
        if segment.has(RST) {
            return self.reset(other, segment);
        }
        if segment.has(SYN) {
            return self.syn(other, segment);
        }
        if !self.noted(ACK) && !self.may_begin(other, segment) {
            return false;
        }
        if segment.has(FIN) {
            let is_near = if other.noted(ACK) {
                near(segment.seq, other.acked, other.reach())
            } else {
                self.follows(segment)
            };
            if !is_near {
                return false;
            }
            if !self.segment(segment) {
                return false;
            }
            if !self.noted(FIN) {
                // The true end, whatever somebody has made of it before by a segment that nobody took.
                self.seq_end = segment.end();
                self.tcp |= FIN;
            }
            return true;
        }
        self.segment(segment)
    }

    /// Whether a segment stands where the direction's SYN leads to; true where none was seen.
    #[inline(always)]
    fn follows(&self, segment: &Segment) -> bool {
        !self.noted(SYN) || near(segment.seq, self.seq_end, LATE_REACH)
    }

    /// Whether a direction's first acknowledgement fits what the other has sent.
    #[inline(always)]
    fn may_begin(&self, other: &Self, segment: &Segment) -> bool {
        if other.noted(SYN) {
            acknowledges(other, segment) && self.follows(segment)
        } else if self.noted(SYN) && !other.noted(ACK) {
            // There is nothing to acknowledge: else a flood of a SYN and an ACK each got flows settled.
            false
        } else {
            // Seen late: what is under way may be as large as the window.
            !other.noted(ACK) || near(segment.ack, other.seq_end, LATE_REACH)
        }
    }

    /// Opens, or answers an opener; a copy of an earlier SYN changes nothing. An answer with another number
    /// counts for as long as the opener has acknowledged none (SYN cookies, a server that forgot).
    #[inline(always)]
    fn syn(&mut self, other: &Self, segment: &Segment) -> bool {
        let is_answer = segment.has(ACK);
        let is_copy = self.noted(SYN)
            && (self.noted(ACK) || !is_answer)
            && self.seq_end.wrapping_sub(segment.end()) <= MIN_REACH;
        if is_copy {
            return true;
        }
        let is_awaited = is_answer && other.noted(SYN) && !other.noted(ACK);
        let is_open = self.noted(ACK) && (self.noted(SYN) || other.noted(ACK));
        if is_open && !is_awaited {
            return self.noted(SYN) && reached(self.seq_end, segment.end());
        }
        // One that was answered, or that comes against a connection which is under way.
        if !is_answer && other.noted(ACK) {
            return false;
        }
        if is_answer {
            let fits = if other.noted(SYN) {
                acknowledges(other, segment)
            } else {
                // Nobody has asked this side, which has itself.
                !self.noted(SYN) && !other.noted(ACK)
            };
            if !fits {
                return false;
            }
        }
        self.opened(segment);
        true
    }

    #[inline(always)]
    fn opened(&mut self, segment: &Segment) {
        self.seq_end = segment.end();
        self.set_scale(segment.scale);
        self.tcp |= SYN;
        if segment.has(ACK) {
            self.acked = segment.ack;
            self.tcp |= ACK;
        }
    }

    /// RFC 5961 §3.2, as seen from the middle: a reset counts if it stands exactly where the other side
    /// expects the next byte, or right after what this side has sent within the other's window. A refusal
    /// of a SYN must acknowledge it (RFC 9293 §3.10.7.3).
    #[inline(always)]
    fn reset(&mut self, other: &Self, segment: &Segment) -> bool {
        let counts = if other.noted(ACK) {
            segment.seq == other.acked
                || (segment.seq == self.seq_end
                    && segment.seq.wrapping_sub(other.acked) <= other.reach())
        } else {
            // A refusal, or an opener that gives up.
            (segment.has(ACK) && other.noted(SYN) && segment.ack == other.seq_end)
                || (self.noted(SYN) && segment.seq == self.seq_end)
        };
        if counts {
            self.tcp |= RST;
        }
        counts
    }

    /// What [`state`] needs to know of this direction.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        Side {
            tcp: self.tcp,
            seq_end: self.seq_end,
            acked: self.acked,
            seen: self.packets != 0,
        }
    }
}

/// Whether a segment acknowledges what the opener `other` has sent: its SYN, and data with it or none
/// (RFC 7413).
#[inline(always)]
pub const fn acknowledges<A>(other: &Flow<A>, segment: &Segment) -> bool {
    segment.flags & ACK != 0 && other.seq_end.wrapping_sub(segment.ack) <= MIN_REACH
}

/// One direction, as far as the state depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// TCP flags noted in this direction.
    pub tcp: u8,
    /// After the last byte sent.
    pub seq_end: u32,
    /// Highest acknowledgement given, where `tcp` has ACK.
    pub acked: u32,
    /// A packet was seen.
    pub seen: bool,
}

/// State of a flow, by netfilter's names. The number is the index of its timeout in `fsm_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// TCP: the opener's SYN, no answer.
    SynSent = 0,
    /// TCP: SYN and SYN-ACK, the third segment is missing; also both sides' SYN (simultaneous open).
    SynRecv = 1,
    /// TCP: open; also a connection that was open before it was first seen.
    Established = 2,
    /// TCP: looks open, but nothing was ever seen of the other side.
    Unacknowledged = 3,
    /// TCP: one side has closed.
    FinWait = 4,
    /// TCP: the other side has acknowledged that.
    CloseWait = 5,
    /// TCP: both have closed, the last ACK is missing.
    LastAck = 6,
    /// TCP: both have closed.
    TimeWait = 7,
    /// TCP: reset.
    Close = 8,
    /// UDP: seen in one direction.
    Unreplied = 9,
    /// UDP: seen in both directions.
    Stream = 10,
    /// ICMP and ICMPv6 echo.
    Icmp = 11,
    /// Any other protocol.
    Generic = 12,
}

impl State {
    /// Every state, at its number.
    pub const ALL: [Self; 13] = [
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::Unacknowledged,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Unreplied,
        Self::Stream,
        Self::Icmp,
        Self::Generic,
    ];

    /// Whether a SYN in this state opens a new connection (RFC 9293 §3.6.1; a reset connection is over at
    /// once).
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close)
    }
}

/// The state of a flow from its two directions.
#[inline(always)]
pub const fn state(proto: u8, orig: Side, reply: Side) -> State {
    match IpProto(proto) {
        IpProto::TCP => tcp(orig, reply),
        IpProto::UDP if reply.seen => State::Stream,
        IpProto::UDP => State::Unreplied,
        IpProto::ICMP | IpProto::ICMPV6 => State::Icmp,
        _ => State::Generic,
    }
}

#[inline(always)]
const fn tcp(orig: Side, reply: Side) -> State {
    if (orig.tcp | reply.tcp) & RST != 0 {
        return State::Close;
    }
    let (orig_fin, reply_fin) = (orig.tcp & FIN != 0, reply.tcp & FIN != 0);
    if orig_fin || reply_fin {
        let orig_acked = orig_fin && has_acked(reply, orig);
        let reply_acked = reply_fin && has_acked(orig, reply);
        return if orig_fin && reply_fin {
            if orig_acked && reply_acked {
                State::TimeWait
            } else {
                State::LastAck
            }
        } else if orig_acked || reply_acked {
            State::CloseWait
        } else {
            State::FinWait
        };
    }
    if orig.tcp & (SYN | ACK) == SYN {
        return if reply.tcp & SYN != 0 {
            State::SynRecv
        } else {
            State::SynSent
        };
    }
    match reply.tcp & (SYN | ACK) {
        SYN => State::SynRecv,
        // Long timeouts are for connections that have two sides: else forged segments held an entry for days.
        0 => State::Unacknowledged,
        _ => State::Established,
    }
}

/// `side` has acknowledged all that `other` has sent.
#[inline(always)]
const fn has_acked(side: Side, other: Side) -> bool {
    side.tcp & ACK != 0 && reached(side.acked, other.seq_end)
}

/// Whether a flow may leave the small table of half-open and one-way flows. TCP: the opener has
/// acknowledged the answer, which only its true address can; of a connection seen late, both sides have
/// spoken. Anything else: both sides have spoken, and for `age` of at least two units of
/// [`crate::flow::CREATED_UNIT_NS`], so that questions with one answer stay where they are.
#[inline(always)]
pub const fn is_settled(proto: u8, orig: Side, reply: Side, age: u32) -> bool {
    if !reply.seen || !orig.seen {
        return false;
    }
    if proto == IpProto::TCP.0 {
        return orig.tcp & reply.tcp & ACK != 0 && (orig.tcp | reply.tcp) & RST == 0;
    }
    age >= 2
}
