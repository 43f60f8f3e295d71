//! A TCP that keeps to RFC 9293 as far as segments show it: states, sequence numbers, acknowledgements,
//! retransmission, fast open (RFC 7413), challenge ACKs (RFC 5961). Payload is a number of bytes; time does
//! not pass; what arrives out of order is not kept (§3.10.7.4 leaves that to the implementation).

use fsm_common::{
    track::Segment,
    wire::l4::tcp_flag::{ACK, FIN, PSH, RST, SYN},
};

/// RFC 9293 §3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rfc {
    Closed,
    Listen,
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
}

use Rfc::*;

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct End {
    pub state: Rfc,
    /// Oldest byte that is not acknowledged, and the next to send.
    pub una: u32,
    pub next: u32,
    /// Next byte expected.
    pub rcv_next: u32,
    /// Window field and scale that it offers.
    pub window: u16,
    pub scale: u8,
    /// Flags beside the others on data: PSH, ECE, CWR.
    pub extra: u8,
    /// Bytes that the peer's window takes.
    pub peer_window: u32,
    /// A reset was sent.
    pub has_reset: bool,
    iss: u32,
    /// Sent and not acknowledged.
    unacked: Vec<Segment>,
}

impl End {
    pub fn new(iss: u32, window: u16, scale: u8, extra: u8) -> Self {
        Self {
            state: Listen,
            una: iss,
            next: iss,
            rcv_next: 0,
            window,
            scale,
            extra: extra & (PSH | 0xc0),
            peer_window: 65535,
            has_reset: false,
            iss,
            unacked: Vec::new(),
        }
    }

    /// Neither side of this end has been closed or reset.
    pub fn is_open(&self) -> bool {
        matches!(self.state, Listen | SynSent | SynReceived | Established) && !self.has_reset
    }

    /// Everything sent was acknowledged.
    pub fn is_quiet(&self) -> bool {
        self.unacked.is_empty() || matches!(self.state, Closed | TimeWait)
    }

    fn segment(&mut self, flags: u8, len: u32) -> Segment {
        let segment = Segment {
            seq: self.next,
            ack: if flags & ACK != 0 { self.rcv_next } else { 0 },
            len,
            window: self.window,
            flags: flags | if len > 0 { self.extra } else { 0 },
            scale: if flags & SYN != 0 { self.scale } else { 0 },
        };
        self.next = segment.end();
        if segment.end() != segment.seq {
            self.unacked.push(segment);
        }
        segment
    }

    fn acknowledge(&mut self) -> Segment {
        self.segment(ACK, 0)
    }

    /// Opens actively, with so many bytes in the SYN.
    pub fn open(&mut self, len: u32) -> Segment {
        self.state = SynSent;
        self.segment(SYN, len)
    }

    fn room(&self, len: u32) -> u32 {
        len.min(
            self.peer_window
                .saturating_sub(self.next.wrapping_sub(self.una)),
        )
    }

    /// Sends data, where the state and the peer's window allow it.
    pub fn send(&mut self, len: u32) -> Option<Segment> {
        let len = self.room(len);
        (matches!(self.state, Established | CloseWait) && len > 0).then(|| self.segment(ACK, len))
    }

    /// Sends FIN, with so many bytes before it.
    pub fn close(&mut self, len: u32) -> Option<Segment> {
        let len = self.room(len);
        self.state = match self.state {
            Established => FinWait1,
            CloseWait => LastAck,
            _ => return None,
        };
        Some(self.segment(ACK | FIN, len))
    }

    /// Resets.
    pub fn abort(&mut self) -> Option<Segment> {
        if matches!(self.state, Closed | Listen | TimeWait | SynSent) {
            return None;
        }
        (self.state, self.has_reset) = (Closed, true);
        self.unacked.clear();
        Some(self.segment(RST | ACK, 0))
    }

    /// The oldest that is not acknowledged, once more.
    pub fn retransmit(&self) -> Option<Segment> {
        if self.is_quiet() {
            return None;
        }
        self.unacked.first().map(|segment| Segment {
            ack: if segment.flags & ACK != 0 {
                self.rcv_next
            } else {
                0
            },
            ..*segment
        })
    }

    fn reset(&mut self, segment: &Segment) -> Option<Segment> {
        if segment.flags & RST != 0 {
            return None;
        }
        self.has_reset = true;
        let (flags, seq, ack) = if segment.flags & ACK != 0 {
            (RST, segment.ack, 0)
        } else {
            (RST | ACK, 0, segment.end())
        };
        Some(Segment {
            seq,
            ack,
            len: 0,
            window: 0,
            flags,
            scale: 0,
        })
    }

    /// §3.10.7: gives the answer.
    pub fn receive(&mut self, segment: &Segment) -> Option<Segment> {
        let has = |flag| segment.flags & flag != 0;
        match self.state {
            Closed => self.reset(segment),
            Listen if has(RST) => None,
            Listen if has(ACK) => self.reset(segment),
            Listen => has(SYN).then(|| {
                self.rcv_next = segment.end();
                self.peer_window = segment.window.into();
                self.state = SynReceived;
                self.segment(SYN | ACK, 0)
            }),
            SynSent => self.in_syn_sent(segment),
            _ => self.in_order(segment),
        }
    }

    fn in_syn_sent(&mut self, segment: &Segment) -> Option<Segment> {
        let has = |flag| segment.flags & flag != 0;
        let sent = self.next.wrapping_sub(self.iss);
        let fits = has(ACK) && (1..=sent).contains(&segment.ack.wrapping_sub(self.iss));
        if has(ACK) && !fits {
            return self.reset(segment);
        }
        if has(RST) {
            if fits {
                self.state = Closed;
            }
            return None;
        }
        if !has(SYN) {
            return None;
        }
        self.rcv_next = segment.end();
        self.peer_window = segment.window.into();
        if !fits {
            // Simultaneous open: the SYN once more, now with an acknowledgement.
            self.state = SynReceived;
            for old in &mut self.unacked {
                old.flags |= ACK;
            }
            return self.retransmit();
        }
        self.state = Established;
        self.acked(segment.ack);
        // Data that the peer did not take with the SYN goes once more by itself.
        for old in &mut self.unacked {
            if old.flags & SYN != 0 {
                *old = Segment {
                    seq: old.seq.wrapping_add(1),
                    flags: ACK,
                    scale: 0,
                    ..*old
                };
            }
        }
        Some(self.acknowledge())
    }

    fn in_order(&mut self, segment: &Segment) -> Option<Segment> {
        let has = |flag| segment.flags & flag != 0;
        let ahead = segment.seq.wrapping_sub(self.rcv_next);
        let behind = self.rcv_next.wrapping_sub(segment.seq);
        let length = segment.end().wrapping_sub(segment.seq);
        let in_window = ahead < u32::from(self.window) << self.scale;
        if has(RST) {
            if ahead == 0 {
                self.state = Closed;
                return None;
            }
            return in_window.then(|| self.acknowledge());
        }
        // Crossing SYNs: the answer to ours has the SYN that was taken already.
        let crossed =
            self.state == SynReceived && has(SYN) && has(ACK) && segment.end() == self.rcv_next;
        // An empty one in the window is taken wherever it stands.
        let fits = ahead == 0
            || crossed
            || (length == 0 && in_window)
            || (behind < length && behind < 1 << 31);
        if !fits || (has(SYN) && !crossed) {
            return match self.state {
                // The SYN once more: so is the answer.
                SynReceived if has(SYN) && !has(ACK) => self.retransmit(),
                _ => Some(self.acknowledge()),
            };
        }
        if !has(ACK) {
            return None;
        }
        let sent = self.next.wrapping_sub(self.una);
        let ahead = segment.ack.wrapping_sub(self.una);
        if self.state == SynReceived {
            if ahead == 0 || ahead > sent {
                return self.reset(segment);
            }
            self.state = Established;
        }
        if ahead > sent {
            // Old, or of nothing that was sent.
            return (ahead < 1 << 31).then(|| self.acknowledge());
        }
        self.acked(segment.ack);
        self.take(
            segment,
            length,
            if crossed {
                0
            } else {
                length.wrapping_sub(behind)
            },
        )
    }

    /// What the peer has acknowledged.
    fn acked(&mut self, ack: u32) {
        self.una = ack;
        for old in &mut self.unacked {
            // A part of it is enough to send only the rest again.
            let done = ack.wrapping_sub(old.seq);
            if done <= old.end().wrapping_sub(old.seq) && done > 0 && old.flags & SYN == 0 {
                let bytes = done.min(old.len);
                (old.seq, old.len) = (old.seq.wrapping_add(bytes), old.len - bytes);
            }
        }
        self.unacked
            .retain(|old| ack.wrapping_sub(old.end()) as i32 > 0 || ack != old.end());
        self.unacked
            .retain(|old| (ack.wrapping_sub(old.end()) as i32) < 0);
        if self.una == self.next {
            self.state = match self.state {
                FinWait1 => FinWait2,
                Closing => TimeWait,
                LastAck => Closed,
                state => state,
            };
        }
    }

    /// The segment's new bytes.
    fn take(&mut self, segment: &Segment, length: u32, fresh: u32) -> Option<Segment> {
        let unscaled = u32::from(segment.window);
        self.peer_window = self.peer_window.max(unscaled);
        if length == 0 || fresh == 0 {
            return None;
        }
        if matches!(self.state, Closed) {
            return None;
        }
        self.rcv_next = segment.end();
        if segment.flags & FIN != 0 {
            self.state = match self.state {
                Established | SynReceived => CloseWait,
                FinWait1 => Closing,
                FinWait2 => TimeWait,
                state => state,
            };
        }
        Some(self.acknowledge())
    }
}
