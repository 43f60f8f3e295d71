//! What inspection knows, as `dpi` shows it.

use serde::{Deserialize, Serialize};

use super::{Row, or_dash};
use crate::dpi::{SessionView, Verdict};

/// Packets or bytes of both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    /// From the client.
    pub orig: u64,
    /// From the server.
    pub reply: u64,
}

impl From<[u64; 2]> for Both {
    fn from([orig, reply]: [u64; 2]) -> Self {
        Self { orig, reply }
    }
}

/// One open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Client's address.
    pub src: String,
    /// Its port.
    pub sport: u16,
    /// Server's address.
    pub dst: String,
    /// Its port.
    pub dport: u16,
    /// `tcp`, `udp`, …
    pub proto: String,
    /// Protocol that was recognised.
    pub app: Option<String>,
    /// Packets that were inspected.
    pub packets: Both,
    /// Their frame bytes.
    pub bytes: Both,
    /// What was said last: `inspect` (the next packet is looked at too), `allow`, `drop`, `deny`, `reset`.
    pub verdict: String,
    /// Seconds since its last packet.
    pub idle_s: u64,
    /// The worker that has it.
    pub worker: usize,
}

impl SessionRow {
    /// Of a worker's session.
    pub fn new(worker: usize, session: &SessionView) -> Self {
        Self {
            src: session.client.ip().to_string(),
            sport: session.client.port(),
            dst: session.server.ip().to_string(),
            dport: session.server.port(),
            proto: super::proto(session.proto).into_owned(),
            app: session.app.map(str::to_owned),
            packets: session.packets.into(),
            bytes: session.bytes.into(),
            verdict: word(session.verdict).to_owned(),
            idle_s: session.idle_ns / 1_000_000_000,
            worker,
        }
    }
}

/// A verdict as rows have it.
pub const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "inspect",
        Verdict::Allow => "allow",
        Verdict::Drop => "drop",
        Verdict::Deny => "deny",
        Verdict::Reset => "reset",
    }
}

impl Row for SessionRow {
    const HEAD: &'static [&'static str] = &[
        "PROTO", "CLIENT", "SERVER", "APP", "PACKETS", "BYTES", "VERDICT", "IDLE", "WORKER",
    ];

    fn cells(&self) -> Vec<String> {
        let end = |addr: &str, port: u16| match addr.contains(':') {
            true => format!("[{addr}]:{port}"),
            false => format!("{addr}:{port}"),
        };
        vec![
            self.proto.clone(),
            end(&self.src, self.sport),
            end(&self.dst, self.dport),
            or_dash(self.app.as_deref()),
            format!("{}/{}", self.packets.orig, self.packets.reply),
            format!("{}/{}", self.bytes.orig, self.bytes.reply),
            self.verdict.clone(),
            super::flow::seconds(self.idle_s),
            self.worker.to_string(),
        ]
    }
}

/// Flows of one protocol since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRow {
    /// Its name.
    pub app: String,
    /// Flows in which it was recognised.
    pub flows: u64,
    /// What the latest of them said of itself, as `host=example.org`.
    pub last: String,
}

impl Row for AppRow {
    const HEAD: &'static [&'static str] = &["APP", "FLOWS", "LAST"];

    fn cells(&self) -> Vec<String> {
        vec![self.app.clone(), self.flows.to_string(), self.last.clone()]
    }
}

/// Packets or flows of one threat since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreatRow {
    /// Its name.
    pub name: String,
    /// How often it was seen.
    pub count: u64,
    /// Source of the latest.
    pub from: String,
    /// Destination of the latest.
    pub to: String,
}

impl Row for ThreatRow {
    const HEAD: &'static [&'static str] = &["THREAT", "COUNT", "LAST FROM", "LAST TO"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.count.to_string(),
            self.from.clone(),
            self.to.clone(),
        ]
    }
}
