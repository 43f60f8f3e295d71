//! AMQP 0-9-1 and 1.0: the header that says the version, and the first method of a 0-9-1 server, in which it says what it
//! is.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of the header: a name and four numbers.
const HEADER_BYTES: usize = 8;
/// Its first bytes.
const NAME: &[u8] = b"AMQP";
/// A frame that holds a method, on channel 0; the method `Connection.Start` of version 0-9.
const METHOD: [u8; 3] = [1, 0, 0];
const START: [u8; 6] = [0, 10, 0, 10, 0, 9];
/// Pairs of a server's properties that are looked through.
const MAX_PROPERTIES: usize = 32;

/// AMQP.
pub struct Amqp;

impl Parser for Amqp {
    fn app(&self) -> &'static str {
        "amqp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let bytes = &head.bytes[..head.bytes.len().min(HEADER_BYTES)];
        let shown = bytes.len().min(NAME.len());
        if bytes[..shown] == NAME[..shown] {
            return match version(bytes) {
                Some(_) => Probe::Yes,
                None if bytes.len() < HEADER_BYTES => head.more(),
                None => Probe::No,
            };
        }
        let shown = bytes.len().min(METHOD.len());
        if head.side == Side::Client || bytes[..shown] != METHOD[..shown] {
            return Probe::No;
        }
        match head.bytes.get(7..13) {
            Some(start) if start == START && bytes[3] == 0 => Probe::Yes,
            Some(_) => Probe::No,
            None => head.more(),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.bytes.starts_with(NAME) {
            if head.bytes.len() < HEADER_BYTES {
                return head.more_to_read();
            }
            if let Some(version) = version(&head.bytes[..HEADER_BYTES]) {
                info.add_word("version", version.to_owned());
            }
            return Step::Done;
        }
        let mut rest = Reader(head.bytes);
        let body = rest.take(METHOD.len()).and_then(|_| rest.u32());
        let Some(body) = body.and_then(|len| rest.take(len as usize)) else {
            return head.more_to_read();
        };
        let _ = start(Reader(body), info);
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn version(header: &[u8]) -> Option<&'static str> {
    match header.strip_prefix(NAME)? {
        [0, 0, 9, 1] => Some("0-9-1"),
        [1, 1, 0, 9] | [1, 1, 9, 1] => Some("0-9"),
        [1, 1, 8, 0] => Some("0-8"),
        [1, 1, 0, 10] => Some("0-10"),
        // Plain, TLS first, SASL first.
        [0 | 2 | 3, 1, 0, 0] => Some("1.0"),
        _ => None,
    }
}

/// Product and version, of the server's properties.
fn start(mut rest: Reader<'_>, info: &mut Info) -> Option<()> {
    rest.take(START.len())?;
    let len = rest.u32()? as usize;
    let mut table = Reader(rest.take(len)?);
    let (mut product, mut version) = (&b""[..], &b""[..]);
    for _ in 0..MAX_PROPERTIES {
        let Some(name) = table.with_u8_len() else {
            break;
        };
        match table.u8()? {
            // A string, a table, an array.
            b'S' | b'F' | b'A' | b'x' => {
                let len = table.u32()? as usize;
                let value = table.take(len)?;
                match name.0 {
                    b"product" => product = value,
                    b"version" => version = value,
                    _ => {}
                }
            }
            b't' | b'b' | b'B' => {
                table.u8()?;
            }
            b'I' | b'i' | b'f' => {
                table.u32()?;
            }
            b'V' => {}
            _ => return None,
        }
    }
    info.add("software", [product, b" ", version].concat().trim_ascii());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "amqp",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"AMQP\0\0\x09\x01"),
                (
                    Side::Server,
                    b"\x01\0\0\0\0\0\x3c\0\x0a\0\x0a\0\x09\0\0\0\x29\
                    \x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x07\x33.12.14\0\0\0\x05PLAIN\0\0\0\0\xce",
                ),
            ],
            info: "version=0-9-1 software=RabbitMQ 3.12.14",
        },
        Sample {
            app: "amqp",
            transport: Transport::Tcp,
            says: &[(Side::Client, b"AMQP\x03\x01\0\0"), (Side::Server, b"AMQP\x03\x01\0\0")],
            info: "version=1.0",
        },
    ];

    #[test]
    fn versions_that_are_not() {
        for bytes in [&b"AMQP\0\0\x09\x02"[..], b"AMQP\x04\x01\0\0", b"AMQX"] {
            assert_eq!(probe_all(&Amqp, bytes, Side::Client), Probe::No);
        }
    }
}
