//! STOMP 1.0 to 1.2: the first frame of each side. A passcode is not read.

use super::{
    lines::{header, is_one_of, is_text, line},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Bytes of a frame's head.
const MAX_HEAD_BYTES: usize = 2048;
/// First lines.
const CLIENT: &[&[u8]] = &[b"CONNECT", b"STOMP"];
const SERVER: &[&[u8]] = &[b"CONNECTED", b"ERROR"];
/// Headers of these frames, in capitals.
const HEADERS: &[&[u8]] = &[
    b"ACCEPT-VERSION",
    b"HOST",
    b"LOGIN",
    b"PASSCODE",
    b"HEART-BEAT",
    b"CLIENT-ID",
    b"VERSION",
    b"SESSION",
    b"SERVER",
    b"MESSAGE",
    b"CONTENT-TYPE",
    b"CONTENT-LENGTH",
    b"RECEIPT",
    b"RECEIPT-ID",
    b"USER-ID",
];

/// STOMP.
pub struct Stomp;

impl Parser for Stomp {
    fn app(&self) -> &'static str {
        "stomp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let bytes = head.bytes.trim_ascii_start();
        let firsts = match head.side {
            Side::Client => CLIENT,
            Side::Server => SERVER,
        };
        let Some((command, rest)) = line(bytes) else {
            let start = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            return match firsts.iter().any(|first| first.starts_with(start)) {
                true => head.more(),
                false => Probe::No,
            };
        };
        if !firsts.contains(&command) {
            return Probe::No;
        }
        match line(rest) {
            Some((first, _)) => match first.iter().position(|b| *b == b':') {
                Some(end) if is_text(first) && is_one_of(&first[..end], HEADERS) => Probe::Yes,
                _ => Probe::No,
            },
            None if rest.len() < MAX_HEAD_BYTES && !rest.contains(&0) => head.more(),
            None => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        // A zero byte ends a frame; its body may be empty.
        let Some(end) = head.bytes.iter().position(|b| *b == 0) else {
            return match head.bytes.len() {
                MAX_HEAD_BYTES.. => Step::Done,
                _ => head.more_to_read(),
            };
        };
        let Some((_, rest)) = line(head.bytes[..end].trim_ascii_start()) else {
            return Step::Done;
        };
        let pairs: &[(&'static str, &[u8])] = match head.side {
            Side::Client => &[
                ("user", b"login"),
                ("host", b"host"),
                ("client_version", b"accept-version"),
            ],
            Side::Server => &[("version", b"version"), ("software", b"server")],
        };
        for (name, field) in pairs {
            info.add(name, header(rest, field).unwrap_or_default());
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
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "stomp",
        transport: Transport::Tcp,
        says: &[
            (
                Side::Client,
                b"CONNECT\naccept-version:1.1,1.2\nhost:mq.example.org\nlogin:shop\npasscode:not told\n\n\0",
            ),
            (Side::Server, b"CONNECTED\nserver:ActiveMQ/5.18.3\nversion:1.2\n\n\0\n"),
        ],
        info: "user=shop host=mq.example.org client_version=1.1,1.2 version=1.2 software=ActiveMQ/5.18.3",
    }];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"CONNECT a.b:443 HTTP/1.1\r\n"[..],
            b"STOMP\n\n\0",
            b"CONNECT\nhello\n",
            b"STOMPS\n",
        ] {
            assert_eq!(probe_all(&Stomp, bytes, Side::Client), Probe::No);
        }
    }
}
