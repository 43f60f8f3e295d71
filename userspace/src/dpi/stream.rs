//! One direction of TCP: what of its segments is new, in order and once. Of overlaps the first copy counts.

use super::{inspect::Inspection, registry::Side};

/// Sequence numbers past the expected one at which an RST or FIN is still the connection's own: the largest window
/// without scaling. A wilder one changes nothing here.
const CONTROL_WINDOW: u32 = 0xffff;

/// One direction of TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Half {
    /// Sequence number of its SYN; meaningless without `is_opened`.
    isn: u32,
    /// The next byte's; meaningless without `is_known`.
    next: u32,
    /// Its SYN was seen.
    is_opened: bool,
    /// `next` is known.
    is_known: bool,
    /// Its FIN was seen.
    is_closed: bool,
    /// Payload bytes, each once.
    pub bytes: u64,
}

/// Where a segment's data stands.
enum Place {
    /// Already there.
    Old,
    /// New, but for so many bytes at its front.
    New(usize),
    /// Something is missing before it.
    Ahead,
}

impl Half {
    /// Where data at `seq` stands. The first ever seen is new.
    fn place(&mut self, seq: u32, len: usize) -> Place {
        if !self.is_known {
            self.resume(seq);
        }
        let ahead = seq.wrapping_sub(self.next) as i32;
        match ahead {
            1.. => Place::Ahead,
            _ => {
                let known = ahead.unsigned_abs() as usize;
                if known < len {
                    Place::New(known)
                } else {
                    Place::Old
                }
            }
        }
    }

    /// Takes data that is new: it ends at `end`.
    fn advance(&mut self, end: u32, len: usize) {
        self.next = end;
        self.bytes += len as u64;
    }

    /// Its SYN: data begins behind it. A second one is another try.
    pub fn open(&mut self, isn: u32) {
        if !self.is_opened_by(isn) {
            (self.isn, self.is_opened) = (isn, true);
            self.resume(isn.wrapping_add(1));
        }
    }

    /// Whether this is the sequence number of its SYN.
    pub fn is_opened_by(&self, isn: u32) -> bool {
        self.is_opened && self.isn == isn
    }

    /// The other end has taken its SYN, and says what it expects next. It may be another of several tries than the last;
    /// of data that came with the SYN it may have taken less.
    pub fn accepted(&mut self, ack: u32) {
        let is_seen = self.is_opened
            && ack.wrapping_sub(self.isn).wrapping_sub(1) < self.next.wrapping_sub(self.isn);
        if !is_seen {
            self.resume(ack);
        }
    }

    /// Its FIN; false where that is not the first.
    pub fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.is_closed, true)
    }

    /// Whether its FIN was seen.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether the next byte's number is known.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    fn resume(&mut self, seq: u32) {
        (self.next, self.is_known) = (seq, true);
    }

    /// Whether an RST or FIN there can be the connection's own.
    pub fn is_near(&self, seq: u32) -> bool {
        // One before is a keep-alive's.
        !self.is_known || seq.wrapping_sub(self.next.wrapping_sub(1)) <= CONTROL_WINDOW
    }
}

/// Follows a direction of TCP; what is new goes to the inspection, if there is one.
pub fn follow(
    half: &mut Half,
    mut inspection: Option<&mut Inspection>,
    side: Side,
    seq: u32,
    payload: &[u8],
    has_room: bool,
) {
    if payload.is_empty() {
        return;
    }
    let end = seq.wrapping_add(payload.len() as u32);
    match half.place(seq, payload.len()) {
        Place::Old => return,
        Place::New(skip) => {
            half.advance(end, payload.len() - skip);
            if let Some(inspection) = inspection.as_deref_mut() {
                inspection.hear(side, &payload[skip..], has_room);
            }
        }
        Place::Ahead => {
            if let Some(inspection) = inspection.as_deref_mut()
                && inspection.wants(side)
            {
                if inspection.hold(side, seq, payload, has_room) {
                    return;
                }
                inspection.lose(side);
            }
            half.advance(end, payload.len());
        }
    }
    let Some(inspection) = inspection else { return };
    while let Some((seq, bytes)) = inspection.release(side, half.next) {
        if let Place::New(skip) = half.place(seq, bytes.len()) {
            half.advance(seq.wrapping_add(bytes.len() as u32), bytes.len() - skip);
            inspection.hear(side, &bytes[skip..], has_room);
        }
    }
}
