//! SMTP and LMTP: a greeting that says so, or the client's HELO.

use super::{
    lines::{contains, is_text, is_word, line, may_start, starts},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Bytes of a line (RFC 5321 §4.5.3.1.5), and more for greetings that say much.
const MAX_LINE_BYTES: usize = 1024;
/// With these a client says hello.
const HELLOS: [&[u8]; 3] = [b"EHLO ", b"HELO ", b"LHLO "];

/// SMTP.
pub struct Smtp;

impl Parser for Smtp {
    fn app(&self) -> &'static str {
        "smtp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match head.side {
            Side::Server => probe_greeting(head),
            Side::Client => {
                let is_greeted = head.other.is_empty() || is_greeting(head.other);
                if !is_greeted || !HELLOS.iter().any(|hello| may_start(head.bytes, hello)) {
                    return Probe::No;
                }
                match line(head.bytes) {
                    Some((text, _)) if text.len() > 5 && is_word(text[5..].trim_ascii_end()) => {
                        Probe::Yes
                    }
                    None if head.bytes.len() < MAX_LINE_BYTES => head.more(),
                    _ => Probe::No,
                }
            }
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some((text, _)) = line(head.bytes) else {
            return head.more_to_read();
        };
        match head.side {
            Side::Server if text.starts_with(b"220") => {
                info.add("banner", text.get(4..).unwrap_or_default())
            }
            Side::Client if HELLOS.iter().any(|hello| starts(text, hello)) => {
                info.add("helo", text[5..].trim_ascii())
            }
            _ => {}
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// A greeting that does not name its protocol waits for what the client says.
fn probe_greeting(head: &Head<'_>) -> Probe {
    if !is_greeting(head.bytes) {
        return Probe::No;
    }
    match line(head.bytes) {
        Some((text, _)) if !is_text(text) || contains(text, b"FTP") => Probe::No,
        Some((text, _)) if contains(text, b"SMTP") || contains(text, b"LMTP") => Probe::Yes,
        _ if head.bytes.len() < MAX_LINE_BYTES => head.more(),
        _ => Probe::No,
    }
}

/// Whether it can begin with 220 and a space, or a dash where more lines follow.
pub fn is_greeting(bytes: &[u8]) -> bool {
    may_start(bytes, b"220") && bytes.get(3).is_none_or(|b| matches!(b, b' ' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "smtp",
            transport: Transport::Tcp,
            says: &[
                (Side::Server, b"220 mx.example.org ready\r\n"),
                (Side::Client, b"ehlo client.example.org\r\n"),
            ],
            info: "banner=mx.example.org ready helo=client.example.org",
        },
        Sample {
            app: "smtp",
            transport: Transport::Tcp,
            says: &[(
                Side::Server,
                b"220 mx.example.org Microsoft ESMTP MAIL Service ready\r\n",
            )],
            info: "banner=mx.example.org Microsoft ESMTP MAIL Service ready",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"220 (vsFTPd 3.0.3)\r\n"[..],
            b"2200 SMTP\r\n",
            b"221 SMTP\r\n",
        ] {
            assert_eq!(probe_all(&Smtp, bytes, Side::Server), Probe::No);
        }
        for bytes in [
            &b"HELO\r\n"[..],
            b"HELLO you\r\n",
            b"EHLO a b\r\n",
            b"MAIL FROM:<a>\r\n",
        ] {
            assert_eq!(probe_all(&Smtp, bytes, Side::Client), Probe::No);
        }
    }
}
