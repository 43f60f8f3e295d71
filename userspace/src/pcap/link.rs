//! What was captured → what the engine takes: an Ethernet frame whose lengths and checksums are as on a wire.
//!
//! Other link types get an Ethernet header. Captures are often taken before a card has done its part: a checksum that
//! is not finished yet (the pseudo header's sum alone, as Linux leaves it) is finished, an IPv4 length of 0
//! (segmentation left to the card) is filled in. A packet that was cut by the capture (`tcpdump -s`) becomes a shorter
//! one, so that its beginning can be looked at.

use fsm_common::{
    parse::{self, Fragment, Packet, Parsed},
    wire::{l2::EtherType, l3::IpProto},
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Link types that are understood, as users are told.
pub const SUPPORTED: &str = "Ethernet, raw IP, Linux cooked (v1, v2), loopback";

/// Which checksums count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// All but those that a card was to finish.
    Finished,
    /// None: every packet gets the one that it should have.
    None,
}

/// What is in front of a network header.
enum Front {
    /// Ethernet, as it is.
    Frame,
    /// So many bytes that stand for this EtherType.
    Bytes(usize, u16),
}

/// Makes frames; keeps its buffer.
#[derive(Debug)]
pub struct Framer {
    checksums: Checksums,
    frame: Vec<u8>,
}

/// A link type that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownLink(pub u32);

impl Framer {
    /// With an empty buffer.
    pub fn new(checksums: Checksums) -> Self {
        Self {
            checksums,
            frame: Vec::with_capacity(2048),
        }
    }

    /// The frame of a packet of this link type; `is_cut` where less was captured than was on the wire.
    ///
    /// # Errors
    /// The link type is not understood.
    pub fn frame(&mut self, link: u32, bytes: &[u8], is_cut: bool) -> Result<&[u8], UnknownLink> {
        self.frame.clear();
        match front(link, bytes)? {
            Front::Frame => self.frame.extend_from_slice(bytes),
            Front::Bytes(len, ethertype) => {
                self.frame.extend_from_slice(&[0; 12]);
                self.frame.extend_from_slice(&ethertype.to_be_bytes());
                self.frame
                    .extend_from_slice(bytes.get(len..).unwrap_or_default());
            }
        }
        self.lengths(is_cut);
        self.sums(is_cut);
        Ok(&self.frame)
    }

    /// Sets IP lengths that are not there yet, or no longer right.
    fn lengths(&mut self, is_cut: bool) -> Option<()> {
        let link = parse::link(self.frame.as_slice()).ok()?;
        let l3 = usize::from(link.l3);
        let room = self.frame.len().checked_sub(l3)?;
        // Total length of IPv4; payload length of IPv6.
        let (at, head) = match link.ethertype {
            EtherType::IPV4 => (l3 + 2, 0),
            EtherType::IPV6 => (l3 + 4, 40),
            _ => return None,
        };
        let room = room.checked_sub(head)?;
        let field = self.frame.get_mut(at..at + 2)?;
        let said = usize::from(u16::from_be_bytes([field[0], field[1]]));
        let is_unset = said == 0 && head == 0;
        if (is_unset || (is_cut && said > room)) && room <= 0xffff {
            field.copy_from_slice(&(room as u16).to_be_bytes());
        }
        Some(())
    }

    fn sums(&mut self, is_cut: bool) -> Option<()> {
        match parse::parse(self.frame.as_slice()).ok()? {
            Packet::V4(parsed) => self.sum(&parsed, is_cut),
            Packet::V6(parsed) => self.sum(&parsed, is_cut),
            Packet::Other(_) => None,
        }
    }

    fn sum<A: AsRef<[u8]>>(&mut self, parsed: &Parsed<A>, is_cut: bool) -> Option<()> {
        if parsed.fragment != Fragment::Whole {
            return None;
        }
        let l4 = usize::from(parsed.l4);
        let (check_at, end) = match IpProto(parsed.key.proto) {
            IpProto::TCP => {
                let head = usize::from(self.frame.get(l4 + 12)? >> 4) * 4;
                (16, l4 + head + parsed.payload as usize)
            }
            IpProto::UDP => {
                // Padding of short Ethernet frames is no part of the datagram.
                let room = self.ip_end(parsed).checked_sub(l4)?;
                let field = self.frame.get_mut(l4 + 4..l4 + 6)?;
                let mut len = usize::from(u16::from_be_bytes([field[0], field[1]]));
                if is_cut && len > room {
                    len = room;
                    field.copy_from_slice(&(len as u16).to_be_bytes());
                }
                (6, l4 + len)
            }
            _ => return None,
        };
        let segment = self.frame.get_mut(l4..end)?;
        let check = [*segment.get(check_at)?, *segment.get(check_at + 1)?];
        if parsed.key.proto == IpProto::UDP.0 && check == [0, 0] {
            return None;
        }
        let pseudo = words(parsed.key.saddr.as_ref())
            + words(parsed.key.daddr.as_ref())
            + u64::from(parsed.key.proto)
            + segment.len() as u64;
        let is_unfinished = u16::from_be_bytes(check) == carried(pseudo);
        if is_cut || is_unfinished || self.checksums == Checksums::None {
            segment[check_at..check_at + 2].fill(0);
            let sum = match !carried(pseudo + words(segment)) {
                0 => 0xffff,
                sum => sum,
            };
            segment[check_at..check_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Some(())
    }

    /// Where the IP packet ends in the frame.
    fn ip_end<A: AsRef<[u8]>>(&self, parsed: &Parsed<A>) -> usize {
        let l3 = usize::from(parsed.l3);
        let (at, head) = match parsed.key.saddr.as_ref().len() {
            4 => (l3 + 2, 0),
            _ => (l3 + 4, 40),
        };
        let said = match self.frame.get(at..at + 2) {
            Some(field) => usize::from(u16::from_be_bytes([field[0], field[1]])),
            None => 0,
        };
        (l3 + head + said).min(self.frame.len())
    }
}

/// What a link type puts in front (<https://www.tcpdump.org/linktypes.html>).
fn front(link: u32, bytes: &[u8]) -> Result<Front, UnknownLink> {
    let field = |at: usize| match bytes.get(at..at + 2) {
        Some(field) => u16::from_be_bytes([field[0], field[1]]),
        None => 0,
    };
    Ok(match link {
        // ETHERNET
        1 => Front::Frame,
        // RAW, and what it was called in files of some systems; IPV4, IPV6
        12 | 14 | 101 | 228 | 229 => Front::Bytes(0, by_version(bytes)),
        // LINUX_SLL: type of packet, hardware, address, then the protocol
        113 => Front::Bytes(16, field(14)),
        // LINUX_SLL2: the protocol first
        276 => Front::Bytes(20, field(0)),
        // NULL and LOOP: an address family of the host that captured; the version says the same everywhere
        0 | 108 => Front::Bytes(4, by_version(bytes.get(4..).unwrap_or_default())),
        other => return Err(UnknownLink(other)),
    })
}

/// EtherType of an IP packet; 0 for what is none.
fn by_version(bytes: &[u8]) -> u16 {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => IPV4,
        Some(6) => IPV6,
        _ => 0,
    }
}

/// Sum of big-endian words; an odd last byte is a high one.
fn words(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// With carries added in.
fn carried(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
