//! SSH (RFC 4253 §4.2): the line in which each side says its version.

use super::registry::{Head, Info, Parser, Probe, Side, Step, Transport};

/// Bytes of the line, its end included.
const MAX_LINE_BYTES: usize = 255;

/// SSH 1 and 2.
pub struct Ssh;

impl Parser for Ssh {
    fn app(&self) -> &'static str {
        "ssh"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        let is_right = |(at, b): (usize, &u8)| match at {
            0..=3 => *b == b"SSH-"[at],
            4 => matches!(b, b'1' | b'2'),
            5 => *b == b'.',
            _ => b.is_ascii_digit(),
        };
        match head.bytes.iter().take(7).enumerate().all(is_right) {
            false => Probe::No,
            true if head.bytes.len() < 7 => Probe::More,
            true => Probe::Yes,
        }
    }

    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step {
        let line = &head.bytes[..head.bytes.len().min(MAX_LINE_BYTES)];
        let end = line.iter().position(|b| *b == b'\n');
        if end.is_none() && line.len() < MAX_LINE_BYTES && !head.is_last {
            return Step::More;
        }
        let line = line[..end.unwrap_or(line.len())].trim_ascii_end();
        // SSH-version-software comment
        let mut parts = line.splitn(3, |b| *b == b'-');
        if parts.next() == Some(b"SSH") {
            let (version, software) = match head.side {
                Side::Client => ("client_version", "client_software"),
                Side::Server => ("version", "software"),
            };
            info.add(version, parts.next().unwrap_or_default());
            info.add(software, parts.next().unwrap_or_default());
        }
        Step::Done
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::check::*;
    use super::*;

    #[test]
    fn banners() {
        let banner = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\0\0";
        assert_eq!(probe_all(&Ssh, banner, Side::Server), Probe::Yes);
        let info = read_all(&Ssh, banner, Side::Server).unwrap();
        let want = [("version", "2.0"), ("software", "OpenSSH_9.2p1 Debian-2")];
        assert_eq!(info.0, want.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(probe_all(&Ssh, b"SSH-1.99-x\n", Side::Client), Probe::Yes);
        for text in [&b"SSH-3.0-x\n"[..], b"SSH 2.0\n", b"SSH-2.x"] {
            assert_eq!(probe_all(&Ssh, text, Side::Client), Probe::No);
        }
    }
}
