//! Oracle's TNS: the request for a connection and its answer.

use super::{
    lines::{contains, is_text},
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// Bytes of a packet's header: length, checksum, kind, a reserved byte, checksum.
const HEADER_BYTES: usize = 8;
/// Kinds of packets.
const CONNECT: u8 = 1;
const ACCEPT: u8 = 2;
const REFUSE: u8 = 4;
const REDIRECT: u8 = 5;
const RESEND: u8 = 11;
/// Versions: from 8 on.
const VERSIONS: std::ops::RangeInclusive<u16> = 300..=330;

/// TNS.
pub struct Tns;

impl Parser for Tns {
    fn app(&self) -> &'static str {
        "tns"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_kind = |kind: u8| match head.side {
            Side::Client => kind == CONNECT,
            Side::Server => matches!(kind, ACCEPT | REFUSE | REDIRECT | RESEND),
        };
        let is_right = |(at, b): (usize, &u8)| match at {
            2 | 3 | 6 | 7 => *b == 0,
            4 => is_kind(*b),
            5 => *b & 0xc0 == 0,
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
        let mut rest = Reader(head.bytes);
        let Some(len) = rest.u16() else {
            return head.more();
        };
        if len < HEADER_BYTES as u16 {
            return Probe::No;
        }
        if rest.take(HEADER_BYTES - 2).is_none() {
            return head.more();
        }
        if head.side == Side::Server {
            // Little is in it; the question counts.
            let is_asked =
                head.other.get(4) == Some(&CONNECT) && is_connect(head.other) == Some(true);
            return match head.bytes[4] {
                _ if !is_asked => Probe::No,
                RESEND if len == HEADER_BYTES as u16 => Probe::Yes,
                ACCEPT | REFUSE | REDIRECT if len > HEADER_BYTES as u16 => Probe::Yes,
                _ => Probe::No,
            };
        }
        match is_connect(head.bytes) {
            Some(true) => Probe::Yes,
            Some(false) => Probe::No,
            None => head.more(),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            return Step::Done;
        }
        let mut rest = Reader(head.bytes);
        let Some(len) = rest.u16().map(usize::from) else {
            return head.more_to_read();
        };
        if head.bytes.len() < len {
            return head.more_to_read();
        }
        let _ = connect(head.bytes, info);
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Whether versions and the place of what is asked for can be those of a request; `None` where they are not there yet.
fn is_connect(bytes: &[u8]) -> Option<bool> {
    let mut rest = Reader(bytes);
    let len = rest.u16()?;
    rest.take(HEADER_BYTES - 2)?;
    let (version, oldest) = (rest.u16()?, rest.u16()?);
    if !VERSIONS.contains(&version) || !VERSIONS.contains(&oldest) || oldest > version || len < 58 {
        return Some(false);
    }
    // It stands in this packet or follows it.
    let offset = u16::from_be_bytes([*bytes.get(26)?, *bytes.get(27)?]);
    Some((34..=512).contains(&offset))
}

fn connect(bytes: &[u8], info: &mut Info) -> Option<()> {
    let version = Reader(bytes.get(HEADER_BYTES..)?).u16()?;
    info.add_word("version", version.to_string());
    let mut place = Reader(bytes.get(24..)?);
    let (len, offset) = (usize::from(place.u16()?), usize::from(place.u16()?));
    let data = bytes.get(offset..)?;
    let data = &data[..data.len().min(len)];
    if !is_text(data) || !contains(data, b"(") {
        return None;
    }
    for (name, keys) in [
        ("database", [&b"(SERVICE_NAME="[..], b"(SID="]),
        ("user", [b"(USER=", b"(USER="]),
        ("client_software", [b"(PROGRAM=", b"(PROGRAM="]),
    ] {
        for key in keys {
            let at = data
                .windows(key.len())
                .position(|window| window.eq_ignore_ascii_case(key));
            if let Some(value) = at.and_then(|at| data.get(at + key.len()..)) {
                let end = value
                    .iter()
                    .position(|b| matches!(b, b')' | b'('))
                    .unwrap_or(value.len());
                info.add(name, &value[..end]);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    const CONNECT: &[u8] =
        b"\0\x8a\0\0\x01\0\0\0\x01\x3e\x01\x2c\0\0\x20\0\x7f\xff\x7f\x08\0\0\x01\0\
        \0\x50\0\x3a\0\0\x08\0\x41\x41\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        (DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=orders)(CID=(PROGRAM=app)(USER=shop))))";

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "tns",
        transport: Transport::Tcp,
        says: &[
            (Side::Client, CONNECT),
            (Side::Server, b"\0\x08\0\0\x0b\0\0\0"),
        ],
        info: "version=318 database=orders user=shop client_software=app",
    }];

    #[test]
    fn what_only_looks_like_it() {
        let mut bad = CONNECT.to_vec();
        bad[8] = 9;
        assert_eq!(probe_all(&Tns, &bad, Side::Client), Probe::No);
        assert_eq!(
            probe_all(&Tns, b"\0\x08\0\0\x0b\0\0\0", Side::Server),
            Probe::No
        );
    }
}
