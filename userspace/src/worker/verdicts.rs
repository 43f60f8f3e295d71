//! What the kernel is told of flows: `fsm_verdict` and `fsm_verdict6`, both directions of a flow at once.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use fsm_common::{
    escalate::Judged,
    flow::FlowKey,
    maps::name,
    parse::{Fragment, Packet, Parsed, parse},
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
    /// Of a frame; `None` where it belongs to no flow, or does not say to which (a later fragment).
    pub fn of(frame: &[u8]) -> Option<Self> {
        fn key<A: Copy>(parsed: &Parsed<A>) -> Option<FlowKey<A>> {
            (parsed.is_flow() && parsed.fragment != Fragment::Later).then_some(parsed.key)
        }
        match parse(frame).ok()? {
            Packet::V4(parsed) => key(&parsed).map(Self::V4),
            Packet::V6(parsed) => key(&parsed).map(Self::V6),
            Packet::Other(_) => None,
        }
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
