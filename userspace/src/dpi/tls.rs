//! TLS (RFC 8446, RFC 5246; SSL 3 too): the two hellos, cut into records and segments as they may be.

use std::borrow::Cow;

use super::registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport};

/// Content type of a handshake record.
const HANDSHAKE: u8 = 22;
/// Bytes of a record's header.
const RECORD_HEAD_BYTES: usize = 5;
/// Bytes of a record that is not encrypted (RFC 8446 §5.1).
const MAX_RECORD_BYTES: usize = 1 << 14;
/// Records that a hello may be spread over.
const MAX_RECORDS: usize = 64;
/// Bytes of a hello that are believed.
const MAX_HELLO_BYTES: usize = 1 << 17;
/// Extensions of a hello that are looked at.
const MAX_EXTENSIONS: usize = 128;

/// Extensions that are read (IANA "TLS ExtensionType Values").
mod extension {
    pub const SERVER_NAME: u16 = 0;
    pub const ALPN: u16 = 16;
    pub const SUPPORTED_VERSIONS: u16 = 43;
}

/// TLS and SSL 3.
pub struct Tls;

impl Parser for Tls {
    fn app(&self) -> &'static str {
        "tls"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        probe(head.bytes, message_type(head.side))
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        match gather(head.bytes) {
            Gathered::More if !head.is_last => return Step::More,
            Gathered::Broken => {}
            Gathered::More => {
                // The front of a hello longer than what is kept.
                if let Some(Gathered::Message(part)) = head.bytes.get(RECORD_HEAD_BYTES..).map(cut)
                {
                    let _ = hello(&part, head.side, info);
                }
            }
            Gathered::Message(message) => {
                // A hello that ends too early has told what it had.
                let _ = hello(&message, head.side, info);
            }
        }
        Step::Done
    }
}

/// Handshake type of a side's hello.
fn message_type(side: Side) -> u8 {
    match side {
        Side::Client => 1,
        Side::Server => 2,
    }
}

fn probe(bytes: &[u8], message: u8) -> Probe {
    // Record: type, version 3.x, length; message: type, length, version 3.x.
    const LEN: usize = 11;
    let is_right = |(at, b): (usize, &u8)| match at {
        0 => *b == HANDSHAKE,
        1 | 9 => *b == 3,
        2 | 10 => *b <= 4,
        3 => usize::from(*b) << 8 <= MAX_RECORD_BYTES,
        5 => *b == message,
        6 => usize::from(*b) << 16 < MAX_HELLO_BYTES,
        _ => true,
    };
    // In a record shorter than this the version has not come yet.
    let end = match bytes {
        [_, _, _, 0, 0, ..] => return Probe::No,
        [_, _, _, 0, len, ..] => LEN.min(RECORD_HEAD_BYTES + usize::from(*len)),
        _ => LEN,
    };
    match bytes.iter().take(end).enumerate().all(is_right) {
        false => Probe::No,
        true if bytes.len() < end => Probe::More,
        true => Probe::Yes,
    }
}

enum Gathered<'a> {
    More,
    Broken,
    Message(Cow<'a, [u8]>),
}

fn cut(bytes: &[u8]) -> Gathered<'_> {
    Gathered::Message(bytes.into())
}

/// The first handshake message, out of as many records as it takes; borrowed where one holds it.
fn gather(bytes: &[u8]) -> Gathered<'_> {
    let mut records = Reader(bytes);
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for _ in 0..MAX_RECORDS {
        let (Some(kind), Some(_), Some(len)) = (records.u8(), records.u16(), records.u16()) else {
            return Gathered::More;
        };
        if kind != HANDSHAKE || len == 0 || usize::from(len) > MAX_RECORD_BYTES {
            return Gathered::Broken;
        }
        let Some(fragment) = records.take(len.into()) else {
            return Gathered::More;
        };
        match message.is_empty() {
            true => message = fragment.into(),
            false => message.to_mut().extend_from_slice(fragment),
        }
        let mut head = Reader(&message);
        if let (Some(_), Some(len)) = (head.u8(), head.u24()) {
            if len > MAX_HELLO_BYTES {
                return Gathered::Broken;
            }
            if message.len() >= 4 + len {
                return Gathered::Message(message);
            }
        }
    }
    Gathered::Broken
}

/// Takes a hello apart; `None` where it ends early.
fn hello(message: &[u8], side: Side, info: &mut Info) -> Option<()> {
    let mut rest = Reader(message);
    if rest.u8()? != message_type(side) {
        return None;
    }
    let len = rest.u24()?;
    let mut rest = Reader(rest.0.get(..len).unwrap_or(rest.0));
    let mut version = rest.u16()?;
    rest.take(32)?;
    rest.with_u8_len()?;
    match side {
        Side::Client => {
            rest.with_u16_len()?;
            rest.with_u8_len()?;
        }
        Side::Server => {
            rest.take(3)?;
        }
    }
    let is_cut = extensions(rest, side, &mut version, info).is_none();
    let key = match side {
        Side::Client => "client_version",
        Side::Server => "version",
    };
    info.add(key, version_name(version).as_bytes());
    (!is_cut).then_some(())
}

fn extensions(mut rest: Reader<'_>, side: Side, version: &mut u16, info: &mut Info) -> Option<()> {
    if rest.0.is_empty() {
        return Some(());
    }
    let len = usize::from(rest.u16()?);
    let mut rest = Reader(rest.0.get(..len).unwrap_or(rest.0));
    for _ in 0..MAX_EXTENSIONS {
        if rest.0.is_empty() {
            break;
        }
        let kind = rest.u16()?;
        let mut data = rest.with_u16_len()?;
        // One that is malformed says nothing; the next may.
        let _ = match kind {
            extension::SERVER_NAME if side == Side::Client => server_name(data, info),
            extension::ALPN => alpn(data, side, info),
            extension::SUPPORTED_VERSIONS if side == Side::Client => highest(data, version),
            extension::SUPPORTED_VERSIONS => data.u16().map(|chosen| *version = chosen),
            _ => None,
        };
    }
    Some(())
}

/// RFC 6066 §3.
fn server_name(mut data: Reader<'_>, info: &mut Info) -> Option<()> {
    let mut names = data.with_u16_len()?;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.with_u16_len()?;
        if kind == 0 {
            info.add("sni", &name.0.to_ascii_lowercase());
        }
    }
    Some(())
}

/// RFC 7301 §3.1: what the client offers, joined by commas; what the server took.
fn alpn(mut data: Reader<'_>, side: Side, info: &mut Info) -> Option<()> {
    let mut names = data.with_u16_len()?;
    let mut joined = Vec::new();
    while !names.0.is_empty() {
        let name = names.with_u8_len()?.0;
        if matches!(name, [a, b] if is_grease(u16::from_be_bytes([*a, *b]))) {
            continue;
        }
        if !joined.is_empty() {
            joined.push(b',');
        }
        joined.extend_from_slice(name);
    }
    let key = match side {
        Side::Client => "alpn",
        Side::Server => "alpn_selected",
    };
    info.add(key, &joined);
    Some(())
}

/// RFC 8446 §4.2.1.
fn highest(mut data: Reader<'_>, version: &mut u16) -> Option<()> {
    let mut offered = data.with_u8_len()?;
    while let Some(one) = offered.u16() {
        if !is_grease(one) {
            *version = one.max(*version);
        }
    }
    Some(())
}

/// Values that mean nothing, sent to keep peers tolerant (RFC 8701).
fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

fn version_name(version: u16) -> String {
    match version {
        0x0300 => "SSL 3.0".into(),
        0x0301 => "TLS 1.0".into(),
        0x0302 => "TLS 1.1".into(),
        0x0303 => "TLS 1.2".into(),
        0x0304 => "TLS 1.3".into(),
        other => format!("{other:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::check::*;
    use super::*;

    fn with_u16_len(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn ext(kind: u16, data: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), with_u16_len(data)].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as u32).to_be_bytes()[1..], body].concat()
    }

    /// The message in records of at most `most` bytes.
    fn records(message: &[u8], most: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1], &with_u16_len(part)[..]].concat();
        message.chunks(most).flat_map(record).collect()
    }

    fn client_hello() -> Vec<u8> {
        let sni = with_u16_len(&[&[0], &with_u16_len(b"Example.org")[..]].concat());
        let extensions = [
            ext(0x0a0a, &[]),
            ext(extension::SERVER_NAME, &sni),
            ext(
                extension::ALPN,
                &with_u16_len(b"\x02\x1a\x1a\x02h2\x08http/1.1"),
            ),
            ext(extension::SUPPORTED_VERSIONS, &[6, 0x7a, 0x7a, 3, 4, 3, 3]),
        ]
        .concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(with_u16_len(&extensions));
        message(1, &body)
    }

    fn server_hello() -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 0x01, 0]);
        body.extend(with_u16_len(&ext(extension::SUPPORTED_VERSIONS, &[3, 4])));
        message(2, &body)
    }

    #[test]
    fn hellos_in_records_of_any_size() {
        let want = [
            ("sni", "example.org"),
            ("alpn", "h2,http/1.1"),
            ("client_version", "TLS 1.3"),
        ];
        let want = want.map(|(name, value)| (name, value.to_owned()));
        for most in [2, 5, 6, 7, 50, 1000] {
            let bytes = records(
                &client_hello(),
                most.max(client_hello().len() / MAX_RECORDS + 1),
            );
            assert_eq!(probe_all(&Tls, &bytes, Side::Client), Probe::Yes);
            assert_eq!(
                read_all(&Tls, &bytes, Side::Client).unwrap().0,
                want,
                "records of {most}"
            );
        }
        let bytes = records(&server_hello(), 1000);
        assert_eq!(probe_all(&Tls, &bytes, Side::Server), Probe::Yes);
        let info = read_all(&Tls, &bytes, Side::Server).unwrap();
        assert_eq!(info.0, [("version", "TLS 1.3".to_owned())]);
    }

    #[test]
    fn a_hello_that_is_cut_tells_what_it_has() {
        let bytes = records(&client_hello(), 1000);
        let mut head = head(&bytes[..bytes.len() - 12], Side::Client, Transport::Tcp);
        let mut info = Info::default();
        assert_eq!(Tls.read(&head, &mut info), Step::More);
        head.is_last = true;
        assert_eq!(Tls.read(&head, &mut info), Step::Done);
        assert_eq!(info.0[0].1, "example.org");
    }

    #[test]
    fn other_handshakes_are_not_it() {
        let hello = records(&server_hello(), 1000);
        assert_eq!(probe_all(&Tls, &hello, Side::Client), Probe::No);
        for bytes in [
            &b"\x16\x03\x01\x00\x00\x01"[..],
            b"\x16\x02\x01\x00\x40\x01",
            b"\x16\x03\x01\xff\xff\x01",
        ] {
            assert_eq!(probe_all(&Tls, bytes, Side::Client), Probe::No);
        }
        // An alert in place of the server's hello: read, nothing learned.
        let alert = [21, 3, 1, 0, 2, 2, 40];
        assert_eq!(read_all(&Tls, &alert, Side::Server), Some(Info::default()));
    }
}
