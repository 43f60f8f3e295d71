//! POP3: a greeting that says so, or a client's command after a greeting. Passwords are not read.

use super::{
    lines::{contains, is_one_of, is_text, line, may_start, starts},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Bytes of a line (RFC 2449 §4), and more for greetings.
const MAX_LINE_BYTES: usize = 1024;
/// Lines in which the client's name is looked for.
const MAX_LINES: usize = 4;
/// What a server says first.
const OK: &[u8] = b"+OK";
/// What a client says before it is known.
const COMMANDS: &[&[u8]] = &[b"USER", b"APOP", b"AUTH", b"CAPA", b"STLS", b"QUIT"];

/// POP3.
pub struct Pop3;

impl Parser for Pop3 {
    fn app(&self) -> &'static str {
        "pop3"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server {
            // The server speaks first.
            let is_first = head.other.is_empty() && may_start(head.bytes, OK);
            if !is_first || head.bytes.get(3).is_some_and(|b| !b.is_ascii_whitespace()) {
                return Probe::No;
            }
            return match line(head.bytes) {
                Some((text, _)) if is_text(text) && contains(text, b"POP3") => Probe::Yes,
                // It may be known by the client's first command.
                _ if head.bytes.len() < MAX_LINE_BYTES => head.more(),
                _ => Probe::No,
            };
        }
        if !head.other.starts_with(OK) || line(head.other).is_none() {
            return Probe::No;
        }
        match line(head.bytes) {
            None if head.bytes.len() < MAX_LINE_BYTES => head.more(),
            Some((text, _)) if command(text).is_some() => Probe::Yes,
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            let Some((text, _)) = line(head.bytes) else {
                return head.more_to_read();
            };
            info.add("banner", text.get(4..).unwrap_or_default());
            return Step::Done;
        }
        let mut rest = head.bytes;
        for _ in 0..MAX_LINES {
            let Some((text, after)) = line(rest) else {
                return head.more_to_read();
            };
            if starts(text, b"USER ") || starts(text, b"APOP ") {
                let user = text[5..].split(|b| *b == b' ').next();
                info.add("user", user.unwrap_or_default());
                return Step::Done;
            }
            // What follows is TLS or secret.
            if command(text).is_none_or(|command| !is_one_of(command, &[b"CAPA"])) {
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

fn command(text: &[u8]) -> Option<&[u8]> {
    let mut words = text.split(|b| *b == b' ');
    let word = words.next().filter(|word| is_one_of(word, COMMANDS))?;
    let values = words.count();
    let is_right = match word.to_ascii_uppercase().as_slice() {
        b"CAPA" | b"STLS" | b"QUIT" => values == 0,
        b"APOP" => values == 2,
        b"AUTH" => values <= 2,
        // A name may have spaces in it.
        _ => values >= 1,
    };
    is_right.then_some(word)
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "pop3",
        transport: Transport::Tcp,
        says: &[
            (Side::Server, b"+OK ready <1.2@mx.example.org>\r\n"),
            (Side::Client, b"CAPA\r\n"),
            (Side::Client, b"USER someone\r\nPASS not told\r\n"),
        ],
        info: "banner=ready <1.2@mx.example.org> user=someone",
    }];

    #[test]
    fn a_command_without_a_greeting_is_not_enough() {
        assert_eq!(
            probe_all(&Pop3, b"USER someone\r\n", Side::Client),
            Probe::No
        );
        assert_eq!(probe_all(&Pop3, b"+OKAY POP3\r\n", Side::Server), Probe::No);
    }
}
