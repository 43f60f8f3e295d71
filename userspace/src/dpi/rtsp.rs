//! RTSP 1.0 and 2.0 (RFC 2326, RFC 7826).

use super::{
    lines::{end_of_head, header, line},
    registry::{Head, Info, Parser, Probe, Step, Transport},
    sip,
};

/// Versions, at one end of a first line.
const VERSIONS: [&[u8]; 2] = [b"RTSP/1.0", b"RTSP/2.0"];
/// Of what is asked for.
const SCHEMES: &[&[u8]] = &[b"rtsp://", b"rtsps://", b"rtspu://"];

/// RTSP.
pub struct Rtsp;

impl Parser for Rtsp {
    fn app(&self) -> &'static str {
        "rtsp"
    }

    fn is_over(&self, transport: Transport) -> bool {
        transport == Transport::Tcp
    }

    fn probe(&self, head: &Head<'_>) -> Probe {
        match VERSIONS.map(|version| sip::probe(head, version, SCHEMES)) {
            [Probe::Yes, _] | [_, Probe::Yes] => Probe::Yes,
            [Probe::More, _] | [_, Probe::More] => Probe::More,
            _ => Probe::No,
        }
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
        if VERSIONS.contains(&start) {
            info.add("status", target);
            info.add("software", header(rest, b"server").unwrap_or_default());
        } else {
            info.add("method", start);
            info.add("uri", target);
            info.add(
                "user_agent",
                header(rest, b"user-agent").unwrap_or_default(),
            );
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
    use super::super::{
        registry::{Side, check::*},
        samples::Sample,
    };
    use super::*;

    pub const SAMPLES: &[Sample] = &[Sample {
        app: "rtsp",
        transport: Transport::Tcp,
        says: &[
            (Side::Client, b"DESCRIBE rtsp://cam.example/1 RTSP/1.0\r\nCSeq: 2\r\nUser-Agent: player/1\r\n\r\n"),
            (Side::Server, b"RTSP/1.0 200 OK\r\nCSeq: 2\r\nServer: cam/2\r\n\r\n"),
        ],
        info: "method=DESCRIBE uri=rtsp://cam.example/1 user_agent=player/1 status=200 software=cam/2",
    }];

    #[test]
    fn what_only_looks_like_it() {
        for bytes in [
            &b"OPTIONS sip:a SIP/2.0\r\n"[..],
            b"DESCRIBE rtsp://a HTTP/1.0\r\n",
            b"RTSP/1.1 200 OK\r\n",
        ] {
            assert_eq!(probe_all(&Rtsp, bytes, Side::Client), Probe::No);
        }
        assert_eq!(
            probe_all(&Rtsp, b"OPTIONS * RTSP/1.0\r\n", Side::Client),
            Probe::Yes
        );
    }
}
