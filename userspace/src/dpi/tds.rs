//! TDS (Microsoft SQL Server, Sybase): the exchange before the login, or a plain login. Of a login nothing is read.

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Bytes of a packet's header: kind, status, length, process, number, window.
const HEADER_BYTES: usize = 8;
/// Bytes of a first packet.
const MAX_BYTES: u16 = 4096;
/// Kinds of packets.
const ANSWER: u8 = 4;
const LOGIN: u8 = 0x10;
const PRELOGIN: u8 = 0x12;
/// The last of a message.
const LAST: u8 = 1;
/// The first option is the version, of six bytes; no option is above seven.
const VERSION_BYTES: u16 = 6;
const MAX_OPTION: u8 = 7;
const END: u8 = 0xff;
/// Encryption, and what is said of it.
const ENCRYPTION: u8 = 1;
const ENCRYPTIONS: [&str; 4] = ["off", "on", "not-supported", "required"];

/// TDS.
pub struct Tds;

impl Parser for Tds {
    fn app(&self) -> &'static str {
        "tds"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_right = |(at, b): (usize, &u8)| match (at, head.side) {
            (0, Side::Client) => matches!(*b, PRELOGIN | LOGIN),
            (0, Side::Server) => *b == ANSWER,
            (1, _) => *b == LAST,
            (6, _) => *b <= 1,
            (7, _) => *b == 0,
            _ => true,
        };
        if !head
            .bytes
            .iter()
            .take(HEADER_BYTES)
            .enumerate()
            .all(is_right)
        {
            return Probe::No;
        }
        let len = match head.bytes {
            [_, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
            _ => return head.more(),
        };
        if !(HEADER_BYTES as u16 + 12..=MAX_BYTES).contains(&len) {
            return Probe::No;
        }
        if head.bytes[0] == LOGIN {
            // It says its length again, and a version from 7.0 to 7.4 or 8.0.
            let mut rest = Reader(head.bytes.get(HEADER_BYTES..).unwrap_or_default());
            return match (rest.u32_le(), rest.u32_le()) {
                (Some(inner), Some(version)) => {
                    let is_login = inner + HEADER_BYTES as u32 == u32::from(len)
                        && matches!(version >> 24, 0x70..=0x74 | 8);
                    if is_login { Probe::Yes } else { Probe::No }
                }
                _ => head.more(),
            };
        }
        match head.bytes.get(HEADER_BYTES..len.into()) {
            None => head.more(),
            Some(body) => match is_prelogin(body) {
                Some(true) => Probe::Yes,
                _ => Probe::No,
            },
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let len = match head.bytes {
            [_, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return head.more_to_read(),
        };
        let Some(body) = head.bytes.get(HEADER_BYTES..len) else {
            return if len < HEADER_BYTES {
                Step::Done
            } else {
                head.more_to_read()
            };
        };
        if matches!(head.bytes[0], PRELOGIN | ANSWER) && is_prelogin(body) == Some(true) {
            let (version, encryption) = match head.side {
                Side::Client => ("client_version", "client_encryption"),
                Side::Server => ("version", "encryption"),
            };
            for (option, value) in options(body) {
                match (option, value) {
                    (0, [major, minor, high, low, ..]) => {
                        let build = u16::from_be_bytes([*high, *low]);
                        info.add_word(version, format!("{major}.{minor}.{build}"));
                    }
                    (ENCRYPTION, [how @ 0..=3, ..]) => {
                        info.add_word(encryption, ENCRYPTIONS[usize::from(*how)].to_owned());
                    }
                    _ => {}
                }
            }
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Whether it is a list of options, each within the body, the first the version.
fn is_prelogin(body: &[u8]) -> Option<bool> {
    let mut rest = Reader(body);
    for at in 0..=MAX_OPTION {
        let option = rest.u8()?;
        if option == END {
            return Some(at > 0);
        }
        let (offset, len) = (rest.u16()?, rest.u16()?);
        let is_inside = usize::from(offset) + usize::from(len) <= body.len();
        let is_version = at > 0 || (option == 0 && len == VERSION_BYTES);
        if !is_inside || !is_version || option > MAX_OPTION {
            return Some(false);
        }
    }
    Some(rest.u8()? == END)
}

fn options(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = Reader(body);
    std::iter::from_fn(move || {
        let option = rest.u8().filter(|option| *option != END)?;
        let (offset, len) = (usize::from(rest.u16()?), usize::from(rest.u16()?));
        Some((option, body.get(offset..offset + len)?))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "tds",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"\x12\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x0f\0\x07\xd0\0\0\x01",
            ),
            (
                Side::Server,
                b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\x03\xe8\0\0\x03",
            ),
        ],
        info: "client_version=15.0.2000 client_encryption=on version=16.0.1000 encryption=required",
    }];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"\x12\x01\0\x1a\0\0\x01\0\0\0\x1b\0\x06\x01\0\x11\0\x01\xff\x0f\0\x07\xd0\0\0\x01"[..],
            b"\x12\x01\0\x1a\0\0\x01\x01",
            b"\x10\x01\0\x90\0\0\x01\0\x88\0\0\0\x04\0\0\x64",
        ] {
            assert_eq!(probe_all(&Tds, bytes, Side::Client), Probe::No);
        }
    }
}
