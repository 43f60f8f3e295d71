//! Two ends that talk through an engine.

use std::{net::SocketAddr, path::Path, sync::Arc};

use fsm_fastpath::{
    config::{DpiMode, parse},
    dpi::{Engine, Event, Inspector, Meta, Policies, Settings, Verdict},
};

use crate::frame::{ACK, FIN, SYN, tcp, udp};

/// A second, in nanoseconds.
pub const S: u64 = 1_000_000_000;
pub const CLIENT: &str = "10.0.0.1:40000";
pub const SERVER: &str = "20.0.0.2:8080";
pub const CLIENT6: &str = "[fd00::1]:40000";
pub const SERVER6: &str = "[fd20::2]:8080";
/// Of client and server.
pub const ISN: [u32; 2] = [u32::MAX - 20, 7_000];
pub const C: usize = 0;
pub const D: usize = 1;

pub const META: Meta = Meta {
    ifindex: 1,
    is_ingress: true,
    is_reply: false,
    is_copy: false,
    policy: 0,
};

/// What `[dpi]` holds, compiled.
pub fn policies(dpi: &str) -> Arc<Policies> {
    let text = format!("[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n{dpi}");
    let config = parse(&text, Path::new("node.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::new(Policies::compile(&config.dpi).unwrap())
}

/// An engine, what it said, and where a connection is.
pub struct Talk {
    pub engine: Inspector,
    pub events: Vec<Event>,
    pub now: u64,
    pub ends: [&'static str; 2],
    /// The next sequence number of client and server.
    pub next: [u32; 2],
}

impl Talk {
    pub fn new(mode: DpiMode, dpi: &str) -> Self {
        Self::of(mode, dpi, 1024)
    }

    pub fn of(mode: DpiMode, dpi: &str, max_sessions: usize) -> Self {
        let settings = Settings {
            mode,
            max_sessions,
            stream_depth: 1 << 20,
        };
        Self {
            engine: Inspector::new(settings, policies(dpi), 42),
            events: Vec::new(),
            now: 1_000_000 * S,
            ends: [CLIENT, SERVER],
            next: ISN,
        }
    }

    pub fn judge(&mut self, frame: &[u8]) -> Verdict {
        self.judge_as(&META, frame)
    }

    pub fn judge_as(&mut self, meta: &Meta, frame: &[u8]) -> Verdict {
        let events = &mut self.events;
        self.engine
            .judge(self.now, meta, frame, &mut |event| events.push(event))
    }

    /// A segment from `side` at a sequence number.
    pub fn segment(&mut self, side: usize, flags: u8, seq: u32, payload: &[u8]) -> Verdict {
        let frame = tcp(self.ends[side], self.ends[1 - side], flags)
            .at(seq, self.next[1 - side])
            .payload(payload)
            .bytes();
        self.judge(&frame)
    }

    /// The three-way handshake.
    pub fn open(&mut self) -> Verdict {
        self.next = ISN;
        self.segment(C, SYN, ISN[C], b"");
        self.next[C] = ISN[C].wrapping_add(1);
        self.segment(D, SYN | ACK, ISN[D], b"");
        self.next[D] = ISN[D].wrapping_add(1);
        self.segment(C, ACK, self.next[C], b"")
    }

    /// The next bytes of a side.
    pub fn say(&mut self, side: usize, payload: &[u8]) -> Verdict {
        let verdict = self.segment(side, ACK, self.next[side], payload);
        self.next[side] = self.next[side].wrapping_add(payload.len() as u32);
        verdict
    }

    /// Both sides close.
    pub fn close(&mut self) {
        for side in [C, D] {
            self.segment(side, FIN | ACK, self.next[side], b"");
            self.next[side] = self.next[side].wrapping_add(1);
        }
        self.segment(C, ACK, self.next[C], b"");
    }

    /// A datagram.
    pub fn datagram(&mut self, side: usize, payload: &[u8]) -> Verdict {
        let frame = udp(self.ends[side], self.ends[1 - side]).payload(payload);
        self.judge(&frame.bytes())
    }

    pub fn tick(&mut self, seconds: u64) {
        self.now += seconds * S;
        let events = &mut self.events;
        self.engine.tick(self.now, &mut |event| events.push(event));
    }

    pub fn sessions(&self) -> usize {
        let listed = self.engine.sessions(self.now, usize::MAX).len();
        assert_eq!(listed, self.engine.stats().sessions);
        listed
    }

    /// The protocol that was told, and its info as one line.
    pub fn apps(&self) -> Vec<(&'static str, String)> {
        let line = |info: &[(&str, String)]| {
            let pairs = info.iter().map(|(name, value)| format!("{name}={value}"));
            pairs.collect::<Vec<_>>().join(" ")
        };
        let apps = self.events.iter().filter_map(|event| match event {
            Event::App {
                app,
                info,
                client,
                server,
                ..
            } => {
                assert_eq!([*client, *server], self.sockets());
                Some((*app, line(info)))
            }
            _ => None,
        });
        apps.collect()
    }

    pub fn sockets(&self) -> [SocketAddr; 2] {
        self.ends.map(|end| end.parse().unwrap())
    }

    pub fn threats(&self) -> Vec<&'static str> {
        let threats = self.events.iter().filter_map(|event| match event {
            Event::Threat { name, .. } => Some(*name),
            _ => None,
        });
        threats.collect()
    }

    /// (policy, protocol, denied) of each violation.
    pub fn violations(&self) -> Vec<(usize, Option<&'static str>, bool)> {
        let violations = self.events.iter().filter_map(|event| match event {
            Event::Violation {
                policy,
                app,
                denied,
                ..
            } => Some((*policy, *app, *denied)),
            _ => None,
        });
        violations.collect()
    }

    /// Packets of each flow that ended.
    pub fn ended(&self) -> Vec<[u64; 2]> {
        let ended = self.events.iter().filter_map(|event| match event {
            Event::Flow { packets, .. } => Some(*packets),
            _ => None,
        });
        ended.collect()
    }
}
