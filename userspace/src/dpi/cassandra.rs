//! Cassandra's CQL protocol, versions 3 to 5: OPTIONS and STARTUP, and what answers them.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a first frame.
const MAX_BODY_BYTES: u32 = 4096;
/// Kinds of frames.
const ERROR: u8 = 0;
const STARTUP: u8 = 1;
const READY: u8 = 2;
const AUTHENTICATE: u8 = 3;
const OPTIONS: u8 = 5;
const SUPPORTED: u8 = 6;
/// Frames of the client before the one that starts.
const MAX_FRAMES: usize = 3;

/// CQL.
pub struct Cassandra;

struct Frame<'a> {
    version: u8,
    flags: u8,
    opcode: u8,
    len: u32,
    /// As much as there is.
    body: &'a [u8],
}

/// The next frame; `None` where its header is not there.
fn frame<'a>(rest: &mut Reader<'a>) -> Option<Frame<'a>> {
    let (version, flags) = (rest.u8()?, rest.u8()?);
    rest.u16()?;
    let (opcode, len) = (rest.u8()?, rest.u32()?);
    let body = &rest.0[..rest.0.len().min(len as usize)];
    rest.take(body.len())?;
    Some(Frame {
        version,
        flags,
        opcode,
        len,
        body,
    })
}

impl Parser for Cassandra {
    fn app(&self) -> &'static str {
        "cassandra"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        // Version 5 answers with the version it has; 6 and 0x42 ("beta") are tried by new drivers.
        let version = head
            .bytes
            .first()
            .map(|version| version ^ (head.side as u8) << 7);
        let is_opcode = |opcode: &u8| match head.side {
            Side::Client => matches!(*opcode, STARTUP | OPTIONS),
            Side::Server => matches!(*opcode, ERROR | READY | AUTHENTICATE | SUPPORTED),
        };
        let is_right =
            matches!(version, Some(3..=6 | 0x42)) && head.bytes.get(4).is_none_or(is_opcode);
        if !is_right {
            return Probe::No;
        }
        let Some(frame) = frame(&mut Reader(head.bytes)) else {
            return head.more();
        };
        if frame.flags & !0x10 != 0 || frame.len > MAX_BODY_BYTES {
            return Probe::No;
        }
        let is_whole = frame.body.len() == frame.len as usize;
        match frame.opcode {
            OPTIONS if frame.len == 0 => Probe::Yes,
            STARTUP | SUPPORTED => match keys(frame.body) {
                Some(true) => Probe::Yes,
                Some(false) => Probe::No,
                None if is_whole => Probe::No,
                None => head.more(),
            },
            // What says little counts behind a question of the same protocol.
            READY if frame.len == 0 && head.other.get(4) == Some(&STARTUP) => Probe::Yes,
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let mut rest = Reader(head.bytes);
        for _ in 0..MAX_FRAMES {
            let Some(frame) = frame(&mut rest) else {
                return head.more_to_read();
            };
            if frame.body.len() < frame.len as usize {
                return head.more_to_read();
            }
            if head.side == Side::Server {
                info.add_word("version", (frame.version & 0x3f).to_string());
                return Step::Done;
            }
            if frame.opcode == STARTUP {
                let _ = startup(Reader(frame.body), info);
                return Step::Done;
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Whether the first of the names is one of the protocol's.
fn keys(body: &[u8]) -> Option<bool> {
    let mut rest = Reader(body);
    let count = rest.u16()?;
    if count == 0 || count > 32 {
        return Some(false);
    }
    let len: usize = rest.u16()?.into();
    if !(4..=64).contains(&len) {
        return Some(false);
    }
    let name = rest.take(len)?;
    Some(name.iter().all(|b| b.is_ascii_uppercase() || *b == b'_'))
}

fn startup(mut rest: Reader<'_>, info: &mut Info) -> Option<()> {
    for _ in 0..rest.u16()?.min(32) {
        let (name, value) = (rest.with_u16_len()?.0, rest.with_u16_len()?.0);
        match name {
            b"CQL_VERSION" => info.add("cql_version", value),
            b"DRIVER_NAME" => info.add("client_software", value),
            b"DRIVER_VERSION" => info.add("client_version", value),
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "cassandra",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"\x05\0\0\0\x05\0\0\0\0"),
                (Side::Server, b"\x85\0\0\0\x06\0\0\0\x18\0\x01\0\x0bCQL_VERSION\0\x01\0\x053.4.5"),
                (Side::Client, b"\x05\0\0\x01\x01\0\0\0\x16\0\x01\0\x0bCQL_VERSION\0\x053.4.5"),
            ],
            info: "version=5 cql_version=3.4.5",
        },
        Sample {
            app: "cassandra",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"\x04\0\0\0\x01\0\0\0\x2b\0\x02\0\x0bCQL_VERSION\0\x053.0.0\0\x0bDRIVER_NAME\0\x06python",
                ),
                (Side::Server, b"\x84\0\0\0\x02\0\0\0\0"),
            ],
            info: "cql_version=3.0.0 client_software=python version=4",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\x02\0\0\0\x05\0\0\0\0"[..],
            b"\x04\0\0\0\x05\0\0\0\x01",
            b"\x04\0\0\0\x01\0\0\0\x04\0\x01\0\0",
        ] {
            assert_eq!(probe_all(&Cassandra, bytes, Side::Client), Probe::No);
        }
    }
}
