//! HTTP/1 (RFC 9112): the first request's and the first response's head.

use super::{
    lines,
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// The longest method: a token in capitals (RFC 9110 §9; the longest registered is `UPDATEREDIRECTREF`).
const MAX_METHOD_BYTES: usize = 20;
/// Empty lines before a request line, which a server is told to skip (RFC 9112 §2.2).
const MAX_EMPTY_LINES: usize = 2;
/// Lines of a head that are looked at.
const MAX_LINES: usize = 200;
/// What the version begins with, in both kinds of first line.
const VERSION: &[u8] = b"HTTP/1.";

/// HTTP/1.0 and 1.1.
pub struct Http;

impl Parser for Http {
    fn app(&self) -> &'static str {
        "http"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match head.side {
            Side::Client => probe_request(skip_empty_lines(head.bytes), head.is_last),
            Side::Server => probe_response(head.bytes),
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let end = match end_of_head(head) {
            Some(end) => end,
            None if head.is_last => head.bytes.len(),
            None => return Step::More,
        };
        let bytes = head.bytes.get(..end).unwrap_or_default();
        match head.side {
            Side::Client => request(skip_empty_lines(bytes), info),
            Side::Server => {
                let (first, _) = line(bytes);
                if first.starts_with(VERSION) {
                    let status = first.get(9..12).unwrap_or_default();
                    info.add("status", status);
                    if status == b"101" {
                        let upgrade = lines::header(bytes, b"upgrade").unwrap_or_default();
                        info.add("upgrade", &upgrade.to_ascii_lowercase());
                    }
                }
            }
        }
        Step::Done
    }

    fn refine(&self, info: &Info) -> Option<&'static str> {
        // What the client asks for changes nothing; the server must agree.
        match info.get("upgrade")? {
            "websocket" => Some("websocket"),
            "h2c" => Some("http2"),
            _ => None,
        }
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    for _ in 0..MAX_EMPTY_LINES {
        bytes = match bytes {
            [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => rest,
            _ => break,
        };
    }
    bytes
}

fn probe_request(bytes: &[u8], is_last: bool) -> Probe {
    let more = if is_last { Probe::No } else { Probe::More };
    if bytes == b"\r" {
        return more;
    }
    let is_method = |b: &u8| b.is_ascii_uppercase() || matches!(b, b'-' | b'_');
    let method = bytes.iter().take_while(|b| is_method(b)).count();
    if method > MAX_METHOD_BYTES {
        return Probe::No;
    }
    let target = match bytes.get(method..) {
        None | Some([]) => return more,
        Some([b' ', rest @ ..]) if method >= 3 => rest,
        _ => return Probe::No,
    };
    // RFC 9112 §3.2: a path, an absolute URI, host:port, or *
    let is_start = |b: u8| b == b'/' || b == b'*' || b == b'[' || b.is_ascii_alphanumeric();
    if target.first().is_some_and(|b| !is_start(*b)) {
        return Probe::No;
    }
    let is_target = |b: &u8| *b > b' ' && *b != 0x7f;
    let len = target.iter().take_while(|b| is_target(b)).count();
    match target.get(len..) {
        // A target longer than what is kept: method and path are all there is to tell by.
        None | Some([]) if is_last && len > 0 && target[0] == b'/' => Probe::Yes,
        None | Some([]) => more,
        Some([b' ', version @ ..]) if len > 0 => match version.get(..VERSION.len()) {
            Some(VERSION) => match version.get(VERSION.len()..VERSION.len() + 2) {
                Some([b'0' | b'1', b'\r' | b'\n']) => Probe::Yes,
                Some(_) => Probe::No,
                None => more,
            },
            None if VERSION.starts_with(version) => more,
            _ => Probe::No,
        },
        Some(_) => Probe::No,
    }
}

fn probe_response(bytes: &[u8]) -> Probe {
    // As `HTTP/1.1 200`; a space or the line's end follows.
    const LEN: usize = 13;
    let is_right = |(at, b): (usize, &u8)| match at {
        0..=6 => *b == VERSION[at],
        7 => matches!(b, b'0' | b'1'),
        8 => *b == b' ',
        9 => matches!(b, b'1'..=b'5'),
        10 | 11 => b.is_ascii_digit(),
        _ => matches!(b, b' ' | b'\r' | b'\n'),
    };
    match bytes.iter().take(LEN).enumerate().all(is_right) {
        false => Probe::No,
        true if bytes.len() < LEN => Probe::More,
        true => Probe::Yes,
    }
}

/// Offset behind the empty line that ends a head; bare line feeds count too, as servers take them.
fn end_of_head(head: &Head<'_>) -> Option<usize> {
    // Three bytes of the end may have been seen before.
    let mut at = head.seen.saturating_sub(3);
    if head.side == Side::Client {
        at = at.max(head.bytes.len() - skip_empty_lines(head.bytes).len());
    }
    while let Some(found) = head.bytes.get(at..)?.iter().position(|b| *b == b'\n') {
        at += found + 1;
        match head.bytes.get(at..)? {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|b| *b == b'\n') {
        Some(at) => {
            let line = &bytes[..at];
            (line.strip_suffix(b"\r").unwrap_or(line), &bytes[at + 1..])
        }
        None => (bytes, &[]),
    }
}

fn request(bytes: &[u8], info: &mut Info) {
    let (first, mut rest) = line(bytes);
    let mut words = first.split(|b| *b == b' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let version = words.next().unwrap_or_default();
    info.add("method", method);
    let mut host: &[u8] = &[];
    let mut path = target;
    // RFC 9112 §3.2.2: a host in the target goes before the header's
    for scheme in [&b"http://"[..], b"https://"] {
        if let Some(absolute) = target.strip_prefix(scheme) {
            let end = absolute
                .iter()
                .position(|b| *b == b'/')
                .unwrap_or(absolute.len());
            (host, path) = absolute.split_at(end);
        }
    }
    if method == b"CONNECT" {
        (host, path) = (target, &[]);
    }
    let mut agent: &[u8] = &[];
    for _ in 0..MAX_LINES {
        let (header, after) = line(rest);
        if header.is_empty() {
            break;
        }
        rest = after;
        let Some(colon) = header.iter().position(|b| *b == b':') else {
            continue;
        };
        let (name, value) = (&header[..colon], header[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") && host.is_empty() {
            host = value;
        } else if name.eq_ignore_ascii_case(b"user-agent") && agent.is_empty() {
            agent = value;
        }
    }
    info.add("host", &host.to_ascii_lowercase());
    info.add("path", path);
    info.add("user_agent", agent);
    info.add(
        "version",
        version.strip_prefix(b"HTTP/").unwrap_or_default(),
    );
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "websocket",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
                ),
                (
                    Side::Server,
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi",
                ),
            ],
            info: "method=GET host=a path=/chat version=1.1 status=101 upgrade=websocket",
        },
        Sample {
            app: "http2",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Client,
                    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
                ),
                (
                    Side::Server,
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
                ),
            ],
            info: "method=GET host=a path=/ version=1.1 status=101 upgrade=h2c",
        },
        Sample {
            app: "http",
            transport: Transport::Tcp,
            says: &[
                (Side::Client, b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"),
                (Side::Server, b"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\n\r\n"),
            ],
            info: "method=GET host=a path=/ version=1.1 status=200",
        },
    ];

    const GET: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: Example.org\r\nUser-Agent: t/1\r\n\r\nrest";

    #[test]
    fn a_request_and_its_response() {
        assert_eq!(probe_all(&Http, GET, Side::Client), Probe::Yes);
        let info = read_all(&Http, GET, Side::Client).unwrap();
        let want = [
            ("method", "GET"),
            ("host", "example.org"),
            ("path", "/a?b=c"),
            ("user_agent", "t/1"),
            ("version", "1.1"),
        ];
        assert_eq!(info.0, want.map(|(name, value)| (name, value.to_owned())));
        let response = b"HTTP/1.1 404 Not Found\r\nServer: x\r\n\r\n";
        assert_eq!(probe_all(&Http, response, Side::Server), Probe::Yes);
        let info = read_all(&Http, response, Side::Server).unwrap();
        assert_eq!(info.0, [("status", "404".to_owned())]);
    }

    #[test]
    fn other_forms_of_a_request() {
        for (text, host, path) in [
            (&b"\r\nPOST / HTTP/1.0\n\n"[..], None, Some("/")),
            (
                b"GET http://a.b/c HTTP/1.1\r\nHost: wrong\r\n\r\n",
                Some("a.b"),
                Some("/c"),
            ),
            (b"CONNECT a.b:443 HTTP/1.1\r\n\r\n", Some("a.b:443"), None),
            (
                b"OPTIONS * HTTP/1.1\r\nhost:h\r\n\r\n",
                Some("h"),
                Some("*"),
            ),
            (b"VERSION-CONTROL /x HTTP/1.1\r\n\r\n", None, Some("/x")),
        ] {
            assert_eq!(
                probe_all(&Http, text, Side::Client),
                Probe::Yes,
                "{}",
                text.escape_ascii()
            );
            let info = read_all(&Http, text, Side::Client).unwrap();
            let get = |name| {
                info.0
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| v.as_str())
            };
            assert_eq!(
                (get("host"), get("path")),
                (host, path),
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn what_only_looks_like_it() {
        for text in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"OPTIONS rtsp://a/b RTSP/1.0\r\n\r\n",
            b"INVITE sip:a@b SIP/2.0\r\n\r\n",
            b"GET key\r\n",
            b"get / HTTP/1.1\r\n",
            b"EHLO mail.example.org\r\n",
            b"GET / HTTP/1.15\r\n",
            b"A / HTTP/1.1\r\n",
        ] {
            assert_eq!(
                probe_all(&Http, text, Side::Client),
                Probe::No,
                "{}",
                text.escape_ascii()
            );
        }
        for text in [
            &b"HTTP/2.0 200 \r\n"[..],
            b"HTTP/1.1 999 x\r\n",
            b"HTTP/1.1 2000\r\n",
        ] {
            assert_eq!(
                probe_all(&Http, text, Side::Server),
                Probe::No,
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn a_target_longer_than_what_is_kept() {
        let long = [b"GET /".to_vec(), vec![b'a'; 3000]].concat();
        let mut head = head(&long, Side::Client, Transport::Tcp);
        assert_eq!(Http.probe(&head), Probe::More);
        head.is_last = true;
        assert_eq!(Http.probe(&head), Probe::Yes);
        let mut info = Info::default();
        assert_eq!(Http.read(&head, &mut info), Step::Done);
        assert_eq!(info.0[1].1.len(), 512);
    }
}
