//! SIP (RFC 3261), over UDP and TCP.

use super::{
    lines::{end_of_head, header, is_word, line, may_start},
    registry::{Head, Info, Parser, Probe, Step, Transport},
};

/// Bytes of a first line.
const MAX_LINE_BYTES: usize = 1024;
/// Bytes of a method.
const MAX_METHOD_BYTES: usize = 16;
/// The version, at one end of a first line.
const VERSION: &[u8] = b"SIP/2.0";

/// SIP.
pub struct Sip;

impl Parser for Sip {
    fn app(&self) -> &'static str {
        "sip"
    }

    fn is_over(&self, _: Transport) -> bool {
        true
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        probe(
            head,
            VERSION,
            &[b"sip:", b"sips:", b"tel:", b"urn:", b"im:", b"pres:"],
        )
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let end = match end_of_head(head.bytes) {
            Some(end) => end,
            None if head.is_last => head.bytes.len(),
            None => return Step::More,
        };
        let Some((first, rest)) = line(&head.bytes[..end]) else {
            return Step::Done;
        };
        let mut words = first.split(|b| *b == b' ');
        let (start, target) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        if start == VERSION {
            info.add("status", target);
            return Step::Done;
        }
        info.add("method", start);
        info.add("uri", target);
        for (name, fields) in [("from", [&b"from"[..], b"f"]), ("to", [b"to", b"t"])] {
            let value = fields.iter().find_map(|field| header(rest, field));
            info.add(name, value.map(address).unwrap_or_default());
        }
        info.add(
            "user_agent",
            header(rest, b"user-agent").unwrap_or_default(),
        );
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// `sip:a@b` of `"A" <sip:a@b>;tag=1`.
fn address(value: &[u8]) -> &[u8] {
    let start = value.iter().position(|b| *b == b'<').map_or(0, |at| at + 1);
    let rest = &value[start..];
    let end = rest
        .iter()
        .position(|b| matches!(b, b'>' | b';'))
        .unwrap_or(rest.len());
    &rest[..end]
}

/// Whether it begins with a request or a status line of a protocol like HTTP; what is asked for begins with one of
/// `schemes`, or is `*`.
pub fn probe(head: &Head<'_>, version: &[u8], schemes: &[&[u8]]) -> Probe {
    let bytes = head.bytes;
    if bytes.is_empty() {
        return head.more();
    }
    if may_start(bytes, version) {
        // As `SIP/2.0 200 OK`.
        let rest = &bytes[bytes.len().min(version.len())..];
        let is_right = |(at, b): (usize, &u8)| match at {
            0 | 4 => *b == b' ',
            1 => matches!(b, b'1'..=b'6'),
            _ => b.is_ascii_digit(),
        };
        return match rest.iter().take(5).enumerate().all(is_right) {
            false => Probe::No,
            true if rest.len() < 5 => head.more(),
            true => Probe::Yes,
        };
    }
    let is_method = |b: &u8| b.is_ascii_uppercase() || *b == b'_';
    let method = bytes.iter().take_while(|b| is_method(b)).count();
    if method > MAX_METHOD_BYTES {
        return Probe::No;
    }
    let target = match bytes.get(method..) {
        None | Some([]) => return head.more(),
        Some([b' ', target @ ..]) if method >= 3 => target,
        _ => return Probe::No,
    };
    if !schemes
        .iter()
        .chain(&[&b"* "[..]])
        .any(|scheme| may_start(target, scheme))
    {
        return Probe::No;
    }
    match line(target) {
        Some((rest, _)) => {
            let mut words = rest.split(|b| *b == b' ');
            let (uri, last) = (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            );
            match is_word(uri) && last == version && words.next().is_none() {
                true => Probe::Yes,
                false => Probe::No,
            }
        }
        None if bytes.len() < MAX_LINE_BYTES => head.more(),
        None => Probe::No,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        registry::{Side, check::*},
        samples::Sample,
    };
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "sip",
            transport: Transport::Udp,
            says: &[
                (
                    Side::Client,
                    b"INVITE sip:bob@b.example SIP/2.0\r\nVia: SIP/2.0/UDP a.example;branch=z9hG4bK77\r\n\
                    From: \"Alice\" <sip:alice@a.example>;tag=88\r\nTo: Bob <sip:bob@b.example>\r\nUser-Agent: phone/1\r\n\r\n",
                ),
                (Side::Server, b"SIP/2.0 180 Ringing\r\nContent-Length: 0\r\n\r\n"),
            ],
            info: "method=INVITE uri=sip:bob@b.example from=sip:alice@a.example to=sip:bob@b.example user_agent=phone/1 status=180",
        },
        Sample {
            app: "sip",
            transport: Transport::Tcp,
            says: &[(Side::Client, b"REGISTER sips:b.example SIP/2.0\r\nf: <sip:a@b.example>\r\n\r\n")],
            info: "method=REGISTER uri=sips:b.example from=sip:a@b.example",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"OPTIONS * HTTP/1.1\r\n\r\n"[..],
            b"INVITE sip:a SIP/3.0\r\n",
            b"INVITE http://a SIP/2.0\r\n",
            b"SIP/2.0 999 x\r\n",
        ] {
            assert_eq!(probe_all(&Sip, bytes, Side::Client), Probe::No);
        }
    }
}
