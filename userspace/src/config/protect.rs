//! `[[protect]]`: destinations that a flood must not reach.

use serde::Serialize;

use super::nat::{NatProto, NatTarget};
use super::reader::Table;
use super::values::{number, parsed};

/// `[[protect]]`: more new flows a second than this do not pass. It acts where packets come in by an uplink with
/// XDP; the most exact entry alone counts a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Protect {
    /// The destination, as clients have it. Required.
    pub to: NatTarget,
    /// Its protocol. Required.
    pub proto: NatProto,
    /// New flows a second that pass as they are, 1 to 10000000. Above it TCP is answered with SYN cookies, UDP is
    /// dropped. Required.
    pub new_per_s: u32,
}

impl Protect {
    /// Kept to the nanosecond from one flow to the next, a rate is within 1 % up to here.
    const MAX_RATE: u32 = 10_000_000;

    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let to = table.need("to", parsed);
        let proto = table.need("proto", parsed);
        let new_per_s = table.need("new_per_s", |value| number(value, &(1..=Self::MAX_RATE)));
        Some(Self {
            to: to?,
            proto: proto?,
            new_per_s: new_per_s?,
        })
    }
}
