//! What the kernel is told of flows: `fsm_verdict` and `fsm_verdict6`, both directions of a flow at once.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use fsm_common::{
    escalate::Judged,
    flow::FlowKey,
    maps::name,
    parse::{Fragment, Packet, Parsed, parse},
    view::PacketView,
};

/// A packet's tuple, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuple {
    /// IPv4.
    V4(FlowKey<[u8; 4]>),
    /// IPv6.
    V6(FlowKey<[u8; 16]>),
}

impl Tuple {
    /// Of a frame; `None` where it belongs to no flow, or does not say to which (a later fragment). Of a copy the
    /// end may be missing.
    pub fn of(frame: &[u8], is_copy: bool) -> Option<Self> {
        fn key<A: Copy>(parsed: &Parsed<A>) -> Option<FlowKey<A>> {
            (parsed.is_flow() && parsed.fragment != Fragment::Later).then_some(parsed.key)
        }
        let parsed = match is_copy {
            true => parse(&Cut(frame)),
            false => parse(frame),
        };
        match parsed.ok()? {
            Packet::V4(parsed) => key(&parsed).map(Self::V4),
            Packet::V6(parsed) => key(&parsed).map(Self::V6),
            Packet::Other(_) => None,
        }
    }
}

/// A frame whose end was cut off: as long as any packet, as far as its headers are concerned.
struct Cut<'a>(&'a [u8]);

impl PacketView for Cut<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    fn frame_len(&self) -> usize {
        self.0.len().max(usize::from(u16::MAX))
    }
}

/// A flow and what is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling {
    /// One direction; the other one is told the same.
    pub tuple: Tuple,
    /// What.
    pub judged: Judged,
}

/// The two maps.
#[derive(Debug)]
pub struct Verdicts {
    v4: HashMap<MapData, FlowKey<[u8; 4]>, Judged>,
    v6: HashMap<MapData, FlowKey<[u8; 16]>, Judged>,
}

impl Verdicts {
    /// Opens the pins.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(pins: &Path) -> Result<Self, MapError> {
        let open = |name| MapData::from_pin(pins.join(name)).map(Map::LruHashMap);
        Ok(Self {
            v4: open(name::FSM_VERDICT)?.try_into()?,
            v6: open(name::FSM_VERDICT6)?.try_into()?,
        })
    }

    /// Tells the kernel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&mut self, ruling: &Ruling) -> Result<(), MapError> {
        let judged = ruling.judged;
        match ruling.tuple {
            Tuple::V4(key) => {
                self.v4.insert(key, judged, 0)?;
                self.v4.insert(key.reversed(), judged, 0)
            }
            Tuple::V6(key) => {
                self.v6.insert(key, judged, 0)?;
                self.v6.insert(key.reversed(), judged, 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{ACK, fragment_header, icmp, tcp, udp};

    #[test]
    fn a_copy_says_whose_it_is_without_its_end() {
        for ends in [["10.0.0.1:1", "10.0.0.2:2"], ["[fd00::1]:1", "[fd00::2]:2"]] {
            let [from, to] = ends;
            for frame in [tcp(from, to, ACK), udp(from, to)] {
                let whole = frame.payload(&[7; 500]).bytes();
                let expected = Tuple::of(&whole, false);
                assert!(expected.is_some());
                assert_eq!(Tuple::of(&whole[..128], true), expected);
                assert_eq!(Tuple::of(&whole[..128], false), None);
                assert_eq!(Tuple::of(&whole[..36], true), None);
            }
        }
    }

    #[test]
    fn what_belongs_to_no_flow_has_no_tuple() {
        let [from, to] = ["[fd00::1]:1", "[fd00::2]:2"];
        let later = udp(from, to).ext(fragment_header(1, 8, false)).bytes();
        assert_eq!(Tuple::of(&later, false), None);
        assert_eq!(
            Tuple::of(&icmp("10.0.0.1", "10.0.0.2", 3).bytes(), false),
            None
        );
        assert!(Tuple::of(&icmp("10.0.0.1", "10.0.0.2", 8).bytes(), false).is_some());
        assert_eq!(Tuple::of(&[], true), None);
    }
}
