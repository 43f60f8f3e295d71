//! What is kept of a flow until its protocol is known and both sides' heads are read: their first bytes, and what came
//! too early. Nothing is copied where one segment says it all.

use std::sync::LazyLock;

use super::registry::{Head, Info, PARSERS, Probe, Side, Step, Transport};

/// Bytes of a direction that are kept while its protocol is not known.
pub const MAX_PROBE_BYTES: usize = 2 << 10;
/// Bytes of a direction that are kept to read its head, once the protocol is known.
pub const MAX_READ_BYTES: usize = 16 << 10;
/// Packets with data after which a flow stays unknown, when one side has said what nobody recognises and the other
/// nothing.
const MAX_PACKETS: u16 = 16;
/// Datagrams of one direction in which a protocol is looked for.
const MAX_DATAGRAMS: u8 = 4;
/// Segments of a direction that are kept until what is missing before them has come.
const MAX_HELD: usize = 8;
/// Their bytes.
const MAX_HELD_BYTES: usize = 16 << 10;

struct Held {
    seq: u32,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Heard {
    /// Bits of [`PARSERS`] that have not said no.
    candidates: u64,
    head: Vec<u8>,
    /// Bytes of the head that have been looked at.
    seen: u32,
    datagrams: u8,
    held: Vec<Held>,
    /// Nothing more is wanted of this side.
    is_over: bool,
}

impl Heard {
    fn end(&mut self) {
        self.is_over = true;
        self.head = Vec::new();
        self.held = Vec::new();
    }

    fn bytes(&self) -> usize {
        self.head.capacity() + self.held.iter().map(|held| held.bytes.len()).sum::<usize>()
    }
}

/// The state of one flow's inspection.
pub struct Inspection {
    transport: Transport,
    /// Ports of client and server.
    ports: [u16; 2],
    parser: Option<usize>,
    sides: [Heard; 2],
    packets: u16,
    /// What was learned.
    pub info: Info,
}

impl Inspection {
    /// Of a flow of which nothing has been heard.
    pub fn new(transport: Transport, ports: [u16; 2]) -> Self {
        let all = candidates(transport);
        let heard = || Heard {
            candidates: all,
            ..Heard::default()
        };
        Self {
            transport,
            ports,
            parser: None,
            sides: [heard(), heard()],
            packets: 0,
            info: Info::default(),
        }
    }

    /// The protocol, as soon as it is known.
    pub fn app(&self) -> Option<&'static str> {
        let parser = PARSERS[self.parser?];
        Some(parser.refine(&self.info).unwrap_or(parser.app()))
    }

    /// Nothing more is to be learned.
    pub fn is_over(&self) -> bool {
        let [client, server] = &self.sides;
        // Of a silent side no more is expected; one that is half understood is heard out.
        let is_late = self.parser.is_none() && self.packets >= MAX_PACKETS;
        let is_enough = |heard: &Heard| heard.is_over || (is_late && heard.head.is_empty());
        (client.is_over || server.is_over) && is_enough(client) && is_enough(server)
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.sides.iter().map(Heard::bytes).sum()
    }

    /// Whether a side is still listened to.
    pub fn wants(&self, side: Side) -> bool {
        !self.sides[side as usize].is_over
    }

    /// The next bytes of a side, in order; without `has_room` what has been heard must do.
    pub fn hear(&mut self, side: Side, bytes: &[u8], has_room: bool) {
        self.packets = self.packets.saturating_add(1);
        let heard = &mut self.sides[side as usize];
        if heard.is_over || bytes.is_empty() {
            return;
        }
        let mut kept = std::mem::take(&mut heard.head);
        let is_first = kept.is_empty();
        let fresh = &bytes[..bytes
            .len()
            .min(MAX_READ_BYTES - kept.len().min(MAX_READ_BYTES))];
        if !is_first {
            kept.extend_from_slice(fresh);
        }
        let view = if is_first { fresh } else { &kept[..] };
        let is_over = match self.parser {
            Some(parser) => self.read(parser, side, view, has_room),
            None => self.probe(side, view, has_room),
        };
        let heard = &mut self.sides[side as usize];
        if is_over {
            heard.end();
        } else if self.transport == Transport::Tcp {
            heard.seen = view.len() as u32;
            heard.head = if is_first { fresh.to_vec() } else { kept };
        }
    }

    /// Bytes are missing for good: this side's head will not be read, unless it has been.
    pub fn lose(&mut self, side: Side) {
        self.sides[side as usize].end();
    }

    /// Keeps a segment that came too early; false when that cannot be.
    pub fn hold(&mut self, side: Side, seq: u32, bytes: &[u8], has_room: bool) -> bool {
        let held = &mut self.sides[side as usize].held;
        if held
            .iter()
            .any(|other| other.seq == seq && other.bytes.len() >= bytes.len())
        {
            return true;
        }
        let sum: usize = held.iter().map(|held| held.bytes.len()).sum();
        let is_room = has_room && held.len() < MAX_HELD && sum + bytes.len() <= MAX_HELD_BYTES;
        if is_room {
            held.push(Held {
                seq,
                bytes: bytes.to_vec(),
            });
        }
        is_room
    }

    /// A segment that is no longer too early.
    pub fn release(&mut self, side: Side, next: u32) -> Option<(u32, Vec<u8>)> {
        let held = &mut self.sides[side as usize].held;
        let at = held
            .iter()
            .position(|held| held.seq.wrapping_sub(next) as i32 <= 0)?;
        let held = held.swap_remove(at);
        Some((held.seq, held.bytes))
    }

    /// A side's head, with what is kept of the other's.
    fn head<'a>(&'a self, side: Side, bytes: &'a [u8], most: usize, has_room: bool) -> Head<'a> {
        Head {
            bytes,
            seen: self.sides[side as usize].seen as usize,
            is_last: self.transport == Transport::Udp || bytes.len() >= most || !has_room,
            side,
            transport: self.transport,
            ports: self.ports,
            other: &self.sides[side.other() as usize].head,
        }
    }

    /// Asks who is left; true when this side is done with.
    fn probe(&mut self, side: Side, bytes: &[u8], has_room: bool) -> bool {
        let head = self.head(side, bytes, MAX_PROBE_BYTES, has_room);
        let mut remaining = self.sides[side as usize].candidates;
        let mut found = None;
        let mut left = remaining;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            match PARSERS[at].probe(&head) {
                Probe::Yes => {
                    found = Some(at);
                    break;
                }
                Probe::More if !head.is_last => {}
                Probe::More | Probe::No => remaining &= !(1 << at),
            }
        }
        let heard = &mut self.sides[side as usize];
        heard.candidates = remaining;
        let Some(parser) = found else {
            if self.transport == Transport::Udp {
                // Each datagram may be it.
                heard.candidates = candidates(self.transport);
                heard.datagrams += 1;
                return heard.datagrams >= MAX_DATAGRAMS;
            }
            return heard.candidates == 0;
        };
        self.parser = Some(parser);
        let other = side.other();
        for heard in &mut self.sides {
            heard.seen = 0;
        }
        let kept = std::mem::take(&mut self.sides[other as usize].head);
        if !kept.is_empty() {
            match self.read(parser, other, &kept, has_room) {
                true => self.sides[other as usize].end(),
                false => {
                    self.sides[other as usize].seen = kept.len() as u32;
                    self.sides[other as usize].head = kept;
                }
            }
        }
        self.read(parser, side, bytes, has_room)
    }

    /// True when the side's head has been read.
    fn read(&mut self, parser: usize, side: Side, bytes: &[u8], has_room: bool) -> bool {
        let mut info = std::mem::take(&mut self.info);
        let head = self.head(side, bytes, MAX_READ_BYTES, has_room);
        let is_over = PARSERS[parser].read(&head, &mut info) == Step::Done || head.is_last;
        self.info = info;
        is_over
    }
}

/// Bits of [`PARSERS`] by what carries them: asked once, not for each flow.
static CANDIDATES: LazyLock<[u64; 2]> = LazyLock::new(|| {
    [Transport::Tcp, Transport::Udp].map(|transport| {
        let all = PARSERS.iter().enumerate();
        let over = all.filter(|(_, parser)| parser.is_over(transport));
        over.map(|(at, _)| 1 << at).sum()
    })
});

fn candidates(transport: Transport) -> u64 {
    let [tcp, udp] = *CANDIDATES;
    match transport {
        Transport::Tcp => tcp,
        Transport::Udp => udp,
    }
}

const _: () = assert!(PARSERS.len() <= 64, "a bit a parser");
const _: () = assert!(size_of::<Inspection>() == 176, "as docs/inspection.md says");
