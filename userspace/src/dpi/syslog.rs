//! Syslog: RFC 5424, and what RFC 3164 says of BSD's, as datagrams or in a stream, with or without octet counts. What
//! the message says is not read.

use super::{
    lines::{is_text, number},
    registry::{Head, Info, Parser, Probe, Side, Step, Transport},
};

/// Facility and severity together.
const MAX_PRIORITY: u32 = 191;
/// Bytes in which the time must have come.
const MAX_FRONT_BYTES: usize = 64;
/// Bytes of a time, with all its digits and its zone.
const MAX_TIME_BYTES: usize = 40;
/// Facilities and severities by number (RFC 5424 §6.2.1).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];
/// Months of BSD's time.
const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// Syslog.
pub struct Syslog;

struct Message<'a> {
    priority: u32,
    is_new: bool,
    /// Behind the time.
    rest: &'a [u8],
}

impl Parser for Syslog {
    fn app(&self) -> &'static str {
        "syslog"
    }

    fn is_over(&self, _: Transport) -> bool {
        true
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        if head.side == Side::Server {
            return Probe::No;
        }
        match message(head.bytes) {
            None => Probe::No,
            Some(None) if head.bytes.len() < MAX_FRONT_BYTES => head.more(),
            Some(None) => Probe::No,
            Some(Some(_)) => Probe::Yes,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        if head.side == Side::Server {
            return Step::Done;
        }
        let Some(Some(message)) = message(head.bytes) else {
            return head.more_to_read();
        };
        // Host and program are words that end.
        let mut words = message.rest.splitn(3, |b| *b == b' ');
        let (host, program) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let is_ended =
            words.next().is_some() || message.rest.len() > 256 || message.rest.contains(&b'\n');
        if !is_ended && !head.is_last {
            return Step::More;
        }
        info.add_word(
            "version",
            if message.is_new { "1" } else { "bsd" }.to_owned(),
        );
        info.add_word(
            "facility",
            FACILITIES[(message.priority >> 3) as usize % 24].to_owned(),
        );
        info.add_word(
            "severity",
            SEVERITIES[(message.priority & 7) as usize].to_owned(),
        );
        let end = program
            .iter()
            .position(|b| matches!(b, b'[' | b':'))
            .unwrap_or(program.len());
        if host.ends_with(b":") || host.contains(&b'[') {
            // No host: the program follows the time, as on the host itself.
            let end = host
                .iter()
                .position(|b| matches!(b, b'[' | b':'))
                .unwrap_or(host.len());
            info.add("program", &host[..end]);
        } else {
            info.add("host", host);
            info.add("program", &program[..end]);
        }
        Step::Done
    }

    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        tests::SAMPLES
    }
}

/// The outer `None`: it is none, the inner: more is needed.
fn message(bytes: &[u8]) -> Option<Option<Message<'_>>> {
    let mut rest = bytes;
    // Octets of the message, in a stream.
    let digits = rest
        .iter()
        .take(6)
        .take_while(|b| b.is_ascii_digit())
        .count();
    if digits > 0 {
        match rest.get(digits) {
            None if digits < 6 => return Some(None),
            Some(b' ') if rest[0] != b'0' => rest = &rest[digits + 1..],
            _ => return None,
        }
    }
    let Some((first, after)) = rest.split_first() else {
        return Some(None);
    };
    if *first != b'<' {
        return None;
    }
    let digits = after
        .iter()
        .take(4)
        .take_while(|b| b.is_ascii_digit())
        .count();
    let priority = match after.get(digits) {
        None if digits < 4 => return Some(None),
        Some(b'>') => number(&after[..digits]).filter(|priority| *priority <= MAX_PRIORITY)?,
        _ => return None,
    };
    if digits > 1 && after[0] == b'0' {
        return None;
    }
    let text = &after[digits + 1..];
    match text.first() {
        None => Some(None),
        Some(b'1') => match text.get(1) {
            None => Some(None),
            Some(b' ') => time(&text[2..]).map(|rest| {
                rest.map(|rest| Message {
                    priority,
                    is_new: true,
                    rest,
                })
            }),
            _ => None,
        },
        // Some send RFC 5424's time without its version.
        Some(b'2') => {
            let rest = time(text)?;
            Some(rest.map(|rest| Message {
                priority,
                is_new: false,
                rest,
            }))
        }
        Some(_) => bsd_time(text).map(|rest| {
            rest.map(|rest| Message {
                priority,
                is_new: false,
                rest,
            })
        }),
    }
}

/// As `2026-01-02T03:04:05.678Z`, or a dash; what follows.
fn time(text: &[u8]) -> Option<Option<&[u8]>> {
    if let [b'-', after @ ..] = text {
        return match after {
            [] => Some(None),
            [b' ', rest @ ..] => Some(Some(rest)),
            _ => None,
        };
    }
    let is_right = |(at, b): (usize, &u8)| match at {
        4 | 7 => *b == b'-',
        10 => *b == b'T',
        13 | 16 => *b == b':',
        _ => b.is_ascii_digit(),
    };
    if !text.iter().take(19).enumerate().all(is_right) {
        return None;
    }
    let Some(end) = text.iter().take(MAX_TIME_BYTES).position(|b| *b == b' ') else {
        return (text.len() < MAX_TIME_BYTES).then_some(None);
    };
    (end >= 19 && is_text(&text[..end])).then_some(Some(&text[end + 1..]))
}

/// As `Jan  2 03:04:05`; what follows.
fn bsd_time(text: &[u8]) -> Option<Option<&[u8]>> {
    let is_right = |(at, b): (usize, &u8)| match at {
        0..=2 => b.is_ascii_alphabetic(),
        3 | 6 | 15 => *b == b' ',
        4 => matches!(b, b' ' | b'0'..=b'3'),
        9 | 12 => *b == b':',
        _ => b.is_ascii_digit(),
    };
    if !text.iter().take(16).enumerate().all(is_right) {
        return None;
    }
    let is_month = text
        .get(..3)
        .is_none_or(|month| MONTHS.chunks(3).any(|other| other == month));
    if !is_month {
        return None;
    }
    Some(text.get(16..))
}

#[cfg(test)]
mod tests {
    use super::super::{registry::check::*, samples::Sample};
    use super::*;

    pub const SAMPLES: &[Sample] = &[
        Sample {
            app: "syslog",
            transport: Transport::Udp,
            says: &[(
                Side::Client,
                b"<165>1 2026-08-24T05:14:15.003-07:00 app1 nginx 10 ID47 - started",
            )],
            info: "version=1 facility=local4 severity=notice host=app1 program=nginx",
        },
        Sample {
            app: "syslog",
            transport: Transport::Tcp,
            says: &[(
                Side::Client,
                b"42 <34>Oct  1 22:14:15 app1 su[4]: failed for x\n",
            )],
            info: "version=bsd facility=auth severity=crit host=app1 program=su",
        },
    ];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"<html>"[..],
            b"<192>1 - a b",
            b"<13>hello: you",
            b"<013>Oct  1 22:14:15 a b",
            b"<1>Oxt  1 22:14:15 a b",
        ] {
            assert_eq!(
                probe_all(&Syslog, bytes, Side::Client),
                Probe::No,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
