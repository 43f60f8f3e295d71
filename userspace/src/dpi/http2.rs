//! HTTP/2 with prior knowledge (RFC 9113): the preface, and the first request's and response's header block (HPACK, RFC
//! 7541, without its dynamic table's entries of later blocks). A request whose content is gRPC is `grpc`.

use super::{
    hpack,
    registry::{Head, Info, Parser, Probe, Reader, Side, Step, Transport},
};

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Kinds of frames.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// Flags of frames.
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// Frames that are looked through for headers.
const MAX_FRAMES: usize = 32;
/// The longest frame before a side has agreed to more.
const MAX_FRAME_BYTES: usize = 16 << 10;
/// Settings have numbers up to here (RFC 8441, RFC 9218 among them).
const MAX_SETTING: u16 = 0x10;

/// HTTP/2.
pub struct Http2;

impl Parser for Http2 {
    fn app(&self) -> &'static str {
        "http2"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match head.side {
            Side::Client => {
                let shown = head.bytes.len().min(PREFACE.len());
                match head.bytes[..shown] == PREFACE[..shown] {
                    false => Probe::No,
                    true if shown == PREFACE.len() => Probe::Yes,
                    true => head.more(),
                }
            }
            Side::Server => probe_settings(head),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let mut rest = Reader(head.bytes);
        if head.side == Side::Client && rest.take(PREFACE.len()).is_none() {
            return head.more_to_read();
        }
        for _ in 0..MAX_FRAMES {
            let Some(len) = rest.u24() else {
                return head.more_to_read();
            };
            if len > MAX_FRAME_BYTES {
                return Step::Done;
            }
            let (Some(kind), Some(flags), Some(_), Some(body)) =
                (rest.u8(), rest.u8(), rest.u32(), rest.take(len))
            else {
                return head.more_to_read();
            };
            if kind == HEADERS {
                let _ = headers(Reader(body), flags, head.side, info);
                return Step::Done;
            }
        }
        Step::Done
    }

    fn refine(&self, info: &Info) -> Option<&'static str> {
        let kind = info.get("content_type")?;
        kind.starts_with("application/grpc").then_some("grpc")
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// A server begins with settings.
fn probe_settings(head: &Head<'_>) -> Probe {
    let is_right = |(at, b): (usize, &u8)| match at {
        0 | 4..=8 => *b == 0,
        1 => *b == 0,
        2 => *b % 6 == 0 && *b <= 96,
        3 => *b == SETTINGS,
        _ => true,
    };
    if !head.bytes.iter().take(9).enumerate().all(is_right) {
        return Probe::No;
    }
    // Empty settings say too little.
    let len = match head.bytes.get(2) {
        Some(0) => return Probe::No,
        Some(len) => usize::from(*len),
        None => return head.more(),
    };
    match head.bytes.get(9..9 + len) {
        None => head.more(),
        Some(settings) => {
            let is_known = |setting: &[u8]| {
                matches!(
                    u16::from_be_bytes([setting[0], setting[1]]),
                    1..=MAX_SETTING
                )
            };
            match settings.chunks_exact(6).all(is_known) {
                true => Probe::Yes,
                false => Probe::No,
            }
        }
    }
}

fn headers(mut body: Reader<'_>, flags: u8, side: Side, info: &mut Info) -> Option<()> {
    if flags & PADDED != 0 {
        let padding = body.u8()?;
        body = Reader(body.0.get(..body.0.len().checked_sub(padding.into())?)?);
    }
    if flags & PRIORITY != 0 {
        body.take(5)?;
    }
    hpack::fields(body.0, &mut |name, value| match (side, name) {
        (Side::Client, b":method") => info.add("method", value),
        (Side::Client, b":authority" | b"host") => info.add("host", &value.to_ascii_lowercase()),
        (Side::Client, b":path") => info.add("path", value),
        (Side::Client, b"user-agent") => info.add("user_agent", value),
        (_, b"content-type") => info.add("content_type", value),
        (Side::Server, b":status") => info.add("status", value),
        _ => {}
    })
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "http2",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                    \0\0\x11\x01\x05\0\0\0\x01\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
                ),
                (Side::Server, b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\x01\x01\x04\0\0\0\x01\x88"),
            ],
            info: "method=GET path=/ host=www.example.com status=200",
        },
        Sample {
            app: "grpc",
            transport: Transport::Tcp,
            says: &[(
                Side::Client,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                \0\0\x1a\x01\x04\0\0\0\x01\x83\x86\x44\x04/a/B\x5f\x10application/grpc",
            )],
            info: "method=POST path=/a/B content_type=application/grpc",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        assert_eq!(
            probe_all(&Http2, b"PRI * HTTP/2.1\r\n", Side::Client),
            Probe::No
        );
        for bytes in [
            &b"\0\0\x06\x04\0\0\0\0\0\0\0\0\0\0\x64"[..],
            b"\0\0\x05\x04\0\0\0\0\0",
            b"\0\0\x06\x04\x01\0\0\0\0",
        ] {
            assert_eq!(probe_all(&Http2, bytes, Side::Server), Probe::No);
        }
    }
}
