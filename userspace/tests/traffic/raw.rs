//! Raw frames from and to a host's device.

use std::io::Result;
use std::time::{Duration, Instant};

use fsm_fastpath::lab::wire::socket::{PacketSocket, mac_of};
use fsm_fastpath::lab::{Lab, Role};

use super::frame::Frame;
use super::on;

/// Longest frame that is read.
const FRAME_BYTES: usize = 70_000;

/// MAC address of a device.
pub fn mac(lab: &Lab, role: Role, device: &'static str) -> [u8; 6] {
    on(lab, role, move || mac_of(device)).unwrap()
}

/// Makes a frame one from `device` of this thread's namespace to `dmac`.
pub fn address(frame: Frame, device: &str, dmac: [u8; 6]) -> Frame {
    let smac = mac_of(device).unwrap();
    Frame {
        dmac,
        smac,
        ..frame
    }
}

/// A packet socket of this thread's namespace.
pub fn open(device: &str) -> PacketSocket {
    PacketSocket::open(device).unwrap_or_else(|e| panic!("{device}: {e}"))
}

/// Every frame that arrives within `limit`, until `enough` says so.
pub fn listen(
    socket: &PacketSocket,
    limit: Duration,
    mut enough: impl FnMut(&[u8]) -> bool,
) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; FRAME_BYTES];
    let end = Instant::now() + limit;
    loop {
        while let Some(frame) = socket.receive(&mut buffer)? {
            if enough(&frame) {
                return Ok(Some(frame));
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.wait(left);
    }
}

/// The parts of an untagged IPv4 frame without options that carries TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Source and destination address.
    pub ends: ([u8; 4], [u8; 4]),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Sequence and acknowledgement number.
    pub numbers: (u32, u32),
    /// Flags byte.
    pub flags: u8,
    /// Bytes of payload.
    pub payload: usize,
}

/// Reads a TCP segment over IPv4.
pub fn tcp4(frame: &[u8]) -> Option<Seen> {
    let four = |at: usize| frame.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    let two = |at: usize| {
        frame
            .get(at..at + 2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
    };
    if two(12)? != 0x0800 || *frame.get(14)? != 0x45 || *frame.get(23)? != 6 {
        return None;
    }
    let header = usize::from(*frame.get(46)? >> 4) * 4;
    Some(Seen {
        ends: (four(26)?, four(30)?),
        ports: (two(34)?, two(36)?),
        numbers: (u32::from_be_bytes(four(38)?), u32::from_be_bytes(four(42)?)),
        flags: *frame.get(47)?,
        payload: usize::from(two(16)?).checked_sub(20 + header)?,
    })
}
