//! FTP's control connection: a greeting that says so, or a command of FTP after a greeting. Passwords are not read.

use super::{
    lines::{contains, is_one_of, is_text, line, starts},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
    smtp::is_greeting,
};

/// Bytes of a line.
const MAX_LINE_BYTES: usize = 1024;
/// Lines in which the client's name is looked for.
const MAX_LINES: usize = 8;
/// What greetings say, beside `FTP`.
const SERVERS: [&[u8]; 2] = [b"FTP", b"FileZilla"];
/// What a client says first.
const COMMANDS: &[&[u8]] = &[
    b"USER", b"AUTH", b"FEAT", b"SYST", b"OPTS", b"HOST", b"CLNT", b"PBSZ", b"PROT", b"ADAT",
    b"ACCT",
];
/// Ways of `AUTH` (RFC 2228, RFC 4217).
const WAYS: &[&[u8]] = &[
    b"TLS",
    b"TLS-C",
    b"TLS-P",
    b"SSL",
    b"GSSAPI",
    b"KERBEROS_V4",
];

/// FTP.
pub struct Ftp;

impl Parser for Ftp {
    fn app(&self) -> &'static str {
        "ftp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match head.side {
            Side::Server => {
                if !is_greeting(head.bytes) {
                    return Probe::No;
                }
                match line(head.bytes) {
                    Some((text, _)) if !is_text(text) || contains(text, b"SMTP") => Probe::No,
                    Some((text, _)) if SERVERS.iter().any(|server| contains(text, server)) => {
                        Probe::Yes
                    }
                    // It may be known by the client's first command.
                    _ if head.bytes.len() < MAX_LINE_BYTES => head.more(),
                    _ => Probe::No,
                }
            }
            Side::Client => {
                let len = head
                    .bytes
                    .iter()
                    .take_while(|b| b.is_ascii_alphabetic())
                    .count();
                let word = &head.bytes[..len];
                if len == head.bytes.len() {
                    return match COMMANDS.iter().any(|command| starts(command, word)) {
                        true => head.more(),
                        false => Probe::No,
                    };
                }
                if !is_one_of(word, COMMANDS) {
                    return Probe::No;
                }
                let is_greeted = is_greeting(head.other) && line(head.other).is_some();
                match line(head.bytes) {
                    Some((text, _)) if is_greeted && is_command(text) => Probe::Yes,
                    None if is_greeted && head.bytes.len() < MAX_LINE_BYTES => head.more(),
                    _ => Probe::No,
                }
            }
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let mut rest = head.bytes;
        if head.side == Side::Server {
            return match line(rest) {
                Some((text, _)) => {
                    if is_greeting(text) {
                        info.add("banner", text.get(4..).unwrap_or_default());
                    }
                    Step::Done
                }
                None => head.more_to_read(),
            };
        }
        for _ in 0..MAX_LINES {
            let Some((text, after)) = line(rest) else {
                return head.more_to_read();
            };
            if starts(text, b"USER ") {
                info.add("user", text[5..].trim_ascii());
                return Step::Done;
            }
            // TLS follows.
            if starts(text, b"AUTH ") {
                info.add("starttls", b"yes");
                return Step::Done;
            }
            rest = after;
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// Whether a command has as many values as it takes.
fn is_command(text: &[u8]) -> bool {
    let mut words = text.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let command = words.next().unwrap_or_default().to_ascii_uppercase();
    let first = words.next();
    let is_one = first.is_some() && words.next().is_none();
    let is_right = match command.as_slice() {
        b"FEAT" | b"SYST" => first.is_none(),
        b"AUTH" => is_one && first.is_some_and(|way| is_one_of(way, WAYS)),
        b"HOST" | b"PBSZ" | b"PROT" | b"ADAT" => is_one,
        _ => first.is_some(),
    };
    is_right && is_text(text)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "ftp",
            transport: Transport::Tcp,
            says: &[
                (
                    Side::Server,
                    b"220-FileZilla Server 1.7.0\r\n220 Please visit us\r\n",
                ),
                (Side::Client, b"AUTH TLS\r\n"),
            ],
            info: "banner=FileZilla Server 1.7.0 starttls=yes",
        },
        Sample {
            app: "ftp",
            transport: Transport::Tcp,
            says: &[
                (Side::Server, b"220 Welcome\r\n"),
                (Side::Client, b"FEAT\r\nUSER anonymous\r\nPASS not told\r\n"),
            ],
            info: "banner=Welcome user=anonymous",
        },
    ];

    #[test]
    fn a_command_without_a_greeting_is_not_enough() {
        assert_eq!(
            probe_all(&Ftp, b"USER anonymous\r\n", Side::Client),
            Probe::No
        );
        assert_eq!(
            probe_all(&Ftp, b"220 mx ESMTP\r\n", Side::Server),
            Probe::No
        );
    }
}
