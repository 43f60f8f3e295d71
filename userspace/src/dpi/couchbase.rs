//! Couchbase's key-value protocol: memcached's binary form with a HELLO, in which the client says who it is and lists the
//! features it knows.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a header, in both directions.
pub const HEADER_BYTES: usize = 24;
/// The command HELLO.
const HELLO: u8 = 0x1f;
/// The most that a client says of itself, and the most bytes of features.
const MAX_KEY_BYTES: u16 = 256;
const MAX_FEATURES_BYTES: u32 = 256;
/// Numbers of features stay below.
const MAX_FEATURE: u16 = 0x100;

/// Couchbase's protocol.
pub struct Couchbase;

/// A header: of a request, or of a response.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// The command.
    pub opcode: u8,
    /// Bytes of the key.
    pub key: u16,
    /// Bytes of what stands before the key.
    pub extras: u8,
    /// 0: bytes.
    pub data_type: u8,
    /// Of a response: how it went.
    pub status: u16,
    /// Bytes of extras, key and value.
    pub body: u32,
    /// Version of the item.
    pub cas: u64,
}

/// A header behind its magic byte.
pub fn header(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let mut rest = Reader(bytes);
    rest.u8()?;
    let header = Header {
        opcode: rest.u8()?,
        key: rest.u16()?,
        extras: rest.u8()?,
        data_type: rest.u8()?,
        status: rest.u16()?,
        body: rest.u32()?,
        cas: {
            rest.u32()?;
            rest.u64()?
        },
    };
    Some((header, rest.0))
}

impl Parser for Couchbase {
    fn app(&self) -> &'static str {
        "couchbase"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let magic = 0x80 | head.side as u8;
        if head.bytes.first() != Some(&magic) || head.bytes.get(1).is_some_and(|b| *b != HELLO) {
            return Probe::No;
        }
        let Some((header, body)) = header(head.bytes) else {
            return head.more();
        };
        let Some(value) = header.body.checked_sub(header.key.into()) else {
            return Probe::No;
        };
        let is_right = header.extras == 0
            && header.data_type == 0
            && header.cas == 0
            && header.key <= MAX_KEY_BYTES
            && value <= MAX_FEATURES_BYTES
            && value.is_multiple_of(2)
            && (header.status == 0 || head.side == Side::Client);
        if !is_right {
            return Probe::No;
        }
        match body.get(..header.body as usize) {
            None => head.more(),
            Some(body) => {
                let features = body[header.key.into()..].chunks_exact(2);
                let mut numbers = features.map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                match numbers.all(|number| number > 0 && number < MAX_FEATURE) && header.body > 0 {
                    true => Probe::Yes,
                    false => Probe::No,
                }
            }
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            return Step::Done;
        }
        let Some((header, body)) = header(head.bytes) else {
            return head.more_to_read();
        };
        match body.get(..header.key.into()) {
            Some(key) if header.opcode == HELLO => info.add("user_agent", key),
            Some(_) => {}
            None => return head.more_to_read(),
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "couchbase",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"\x80\x1f\0\x0b\0\0\0\0\0\0\0\x13\0\0\0\x01\0\0\0\0\0\0\0\0\
                {\"a\":\"cb1\"}\0\x06\0\x07\0\x08\0\x10",
            ),
            (
                Side::Server,
                b"\x81\x1f\0\0\0\0\0\0\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0\0\0\x06\0\x07",
            ),
        ],
        info: "user_agent={\"a\":\"cb1\"}",
    }];
}
