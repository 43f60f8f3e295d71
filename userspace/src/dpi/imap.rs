//! IMAP 4: a greeting that says so, or a client's command after a greeting. What commands carry is not read.

use super::{
    lines::{contains, is_one_of, is_text, line, may_start},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Bytes of a line.
const MAX_LINE_BYTES: usize = 1024;
/// Bytes of the tag before a command.
const MAX_TAG_BYTES: usize = 16;
/// What a server says first.
const GREETINGS: [&[u8]; 3] = [b"* OK", b"* PREAUTH", b"* BYE"];
/// What a client says before it is known, and after.
const COMMANDS: &[&[u8]] = &[
    b"CAPABILITY",
    b"LOGIN",
    b"AUTHENTICATE",
    b"STARTTLS",
    b"ID",
    b"NOOP",
    b"LOGOUT",
    b"ENABLE",
    b"SELECT",
    b"EXAMINE",
    b"NAMESPACE",
    b"LIST",
];

/// IMAP.
pub struct Imap;

impl Parser for Imap {
    fn app(&self) -> &'static str {
        "imap"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server {
            if !GREETINGS
                .iter()
                .any(|greeting| may_start(head.bytes, greeting))
            {
                return Probe::No;
            }
            return match line(head.bytes) {
                Some((text, _)) if is_text(text) && contains(text, b"IMAP") => Probe::Yes,
                // It may be known by the client's first command.
                _ if head.bytes.len() < MAX_LINE_BYTES => head.more(),
                _ => Probe::No,
            };
        }
        let is_greeted = |greeting: &&[u8]| head.other.starts_with(greeting);
        if !GREETINGS.iter().any(is_greeted) || line(head.other).is_none() {
            return Probe::No;
        }
        match line(head.bytes) {
            None if head.bytes.len() < MAX_LINE_BYTES => head.more(),
            Some((text, _)) if command(text).is_some() => Probe::Yes,
            _ => Probe::No,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let Some((text, _)) = line(head.bytes) else {
            return head.more_to_read();
        };
        match (head.side, command(text)) {
            (Side::Server, _) => info.add("banner", text.get(2..).unwrap_or_default()),
            (Side::Client, Some(command)) => info.add("command", &command.to_ascii_uppercase()),
            _ => {}
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// The command of a line, behind its tag.
fn command(text: &[u8]) -> Option<&[u8]> {
    let mut words = text.split(|b| *b == b' ');
    let tag = words
        .next()
        .filter(|tag| (1..=MAX_TAG_BYTES).contains(&tag.len()))?;
    let is_right = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'$');
    words
        .next()
        .filter(|command| tag.iter().all(is_right) && is_one_of(command, COMMANDS))
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "imap",
        transport: Transport::Tcp,
        says: &[
            (Side::Server, b"* OK ready\r\n"),
            (Side::Client, b"a001 login someone not-told\r\n"),
        ],
        info: "banner=OK ready command=LOGIN",
    }];

    #[test]
    fn a_command_without_a_greeting_is_not_enough() {
        assert_eq!(
            probe_all(&Imap, b"a001 LOGIN a b\r\n", Side::Client),
            Probe::No
        );
        assert_eq!(probe_all(&Imap, b"* NO IMAP4\r\n", Side::Server), Probe::No);
    }
}
