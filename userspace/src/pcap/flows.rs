//! From the engine's events to one row a flow: what was learned, what was wrong, what it carried.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use serde::{Serialize, Serializer};

use crate::{
    dpi::Event,
    view::{self, Row, dpi::Both, or_dash},
};

/// Flows that something is known of and that have not ended; more are shown without it.
const MAX_OPEN: usize = 1 << 20;
/// Different threats of a flow.
const MAX_THREATS: usize = 16;

/// A flow, as `pcap` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlowRow {
    /// Client's address.
    pub src: IpAddr,
    /// Its port.
    pub sport: u16,
    /// Server's address.
    pub dst: IpAddr,
    /// Its port.
    pub dport: u16,
    /// `tcp`, `udp`, …
    pub proto: String,
    /// Protocol that was recognised.
    pub app: Option<&'static str>,
    /// By what: the engine knows one way only, `payload`.
    pub app_by: Option<&'static str>,
    /// The protocol's version, where it was said.
    pub version: Option<String>,
    /// Packets.
    pub packets: Both,
    /// Their frame bytes.
    pub bytes: Both,
    /// What was learned.
    #[serde(serialize_with = "as_object")]
    pub info: Vec<(&'static str, String)>,
    /// Names of what no honest peer sends.
    pub threats: Vec<&'static str>,
    /// `allow`, `deny`, `reset`, `violate`; `inspect` where nothing was decided.
    pub verdict: &'static str,
}

fn as_object<S: Serializer>(info: &[(&'static str, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(info.iter().map(|(name, value)| (name, value)))
}

impl Row for FlowRow {
    const HEAD: &'static [&'static str] = &[
        "PROTO", "CLIENT", "SERVER", "APP", "VERSION", "PACKETS", "BYTES", "VERDICT", "INFO",
    ];

    fn cells(&self) -> Vec<String> {
        let mut info: Vec<String> = self.threats.iter().map(|name| format!("!{name}")).collect();
        let said = self
            .info
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        info.extend(said);
        vec![
            self.proto.clone(),
            view::endpoint(self.src, self.sport),
            view::endpoint(self.dst, self.dport),
            self.app.unwrap_or("unknown").to_owned(),
            or_dash(self.version.as_deref()),
            format!("{}/{}", self.packets.orig, self.packets.reply),
            format!("{}/{}", self.bytes.orig, self.bytes.reply),
            self.verdict.to_owned(),
            info.join(" "),
        ]
    }
}

/// Both ends and protocol, the same for both directions.
type Key = (SocketAddr, SocketAddr, u8);

fn key(one: SocketAddr, other: SocketAddr, proto: u8) -> Key {
    (one.min(other), one.max(other), proto)
}

/// What is known of a flow before it ends.
#[derive(Debug, Default)]
struct Open {
    info: Vec<(&'static str, String)>,
    threats: Vec<&'static str>,
    is_violation: bool,
}

/// Flows and packets of one protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Flows.
    pub flows: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Their frame bytes.
    pub bytes: u64,
}

/// Joins events, and adds them up.
#[derive(Debug, Default)]
pub struct Flows {
    open: HashMap<Key, Open>,
    /// By protocol; `None` is unknown.
    pub apps: BTreeMap<Option<&'static str>, Sum>,
    /// How often each was seen, and the latest source and destination.
    pub threats: BTreeMap<&'static str, (u64, SocketAddr, SocketAddr)>,
}

impl Flows {
    /// Takes an event; a row where it ends a flow.
    pub fn note(&mut self, event: Event) -> Option<FlowRow> {
        match event {
            Event::App {
                client,
                server,
                proto,
                info,
                ..
            } => {
                if let Some(open) = self.open(key(client, server, proto)) {
                    open.info = info;
                }
            }
            Event::Threat {
                from,
                to,
                proto,
                name,
            } => {
                let entry = self.threats.entry(name).or_insert((0, from, to));
                *entry = (entry.0 + 1, from, to);
                let open = self.open(key(from, to, proto))?;
                if open.threats.len() < MAX_THREATS && !open.threats.contains(&name) {
                    open.threats.push(name);
                }
            }
            Event::Violation {
                client,
                server,
                proto,
                denied,
                ..
            } => {
                if let Some(open) = self.open(key(client, server, proto)) {
                    open.is_violation = !denied;
                }
            }
            Event::Flow {
                client,
                server,
                proto,
                app,
                packets,
                bytes,
                verdict,
                ..
            } => {
                let open = self.open.remove(&key(client, server, proto));
                let open = open.unwrap_or_default();
                let sum = self.apps.entry(app).or_default();
                sum.flows += 1;
                sum.packets += packets.iter().sum::<u64>();
                sum.bytes += bytes.iter().sum::<u64>();
                let verdict = match open.is_violation {
                    true => "violate",
                    false => view::dpi::word(verdict),
                };
                return Some(FlowRow {
                    app,
                    app_by: app.map(|_| "payload"),
                    version: version(&open.info),
                    packets: packets.into(),
                    bytes: bytes.into(),
                    info: open.info,
                    threats: open.threats,
                    verdict,
                    ..FlowRow::between(client, server, proto)
                });
            }
        }
        None
    }

    /// At a capture's end, after the flows: threats that belong to none, in packets that open no flow.
    pub fn rest(&mut self) -> Vec<FlowRow> {
        let open = std::mem::take(&mut self.open);
        let mut rows: Vec<FlowRow> = open
            .into_iter()
            .filter(|(_, open)| !open.threats.is_empty())
            .map(|((one, other, proto), open)| FlowRow {
                threats: open.threats,
                ..FlowRow::between(one, other, proto)
            })
            .collect();
        rows.sort_by_key(|row| (row.src, row.sport, row.dst, row.dport));
        rows
    }

    fn open(&mut self, key: Key) -> Option<&mut Open> {
        match self.open.len() < MAX_OPEN || self.open.contains_key(&key) {
            true => Some(self.open.entry(key).or_default()),
            false => None,
        }
    }
}

impl FlowRow {
    fn between(client: SocketAddr, server: SocketAddr, proto: u8) -> Self {
        Self {
            src: client.ip(),
            sport: client.port(),
            dst: server.ip(),
            dport: server.port(),
            proto: view::proto(proto).into_owned(),
            app: None,
            app_by: None,
            version: None,
            packets: Both::default(),
            bytes: Both::default(),
            info: Vec::new(),
            threats: Vec::new(),
            verdict: "inspect",
        }
    }
}

/// What was agreed on; else what was offered.
fn version(info: &[(&'static str, String)]) -> Option<String> {
    let value = |wanted: &str| info.iter().find(|(name, _)| *name == wanted);
    let said = value("version").or_else(|| value("client_version"))?;
    Some(said.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dpi::Verdict;

    fn ends() -> (SocketAddr, SocketAddr) {
        (
            "10.0.0.1:40000".parse().unwrap(),
            "20.0.0.2:443".parse().unwrap(),
        )
    }

    fn flow(app: Option<&'static str>) -> Event {
        let (client, server) = ends();
        Event::Flow {
            client,
            server,
            proto: 6,
            app,
            packets: [3, 2],
            bytes: [300, 200],
            span_ns: [1, 2],
            verdict: Verdict::Allow,
            is_closed: true,
        }
    }

    #[test]
    fn what_was_said_of_a_flow_is_in_its_row_once() {
        let (client, server) = ends();
        let mut flows = Flows::default();
        let (from, to) = (server, client);
        for _ in 0..2 {
            let name = "bad_checksum";
            let threat = Event::Threat {
                from,
                to,
                proto: 6,
                name,
            };
            assert_eq!(flows.note(threat), None);
        }
        let info = vec![
            ("client_version", "TLS 1.2".into()),
            ("version", "TLS 1.3".into()),
        ];
        let app = Event::App {
            client,
            server,
            proto: 6,
            app: "tls",
            info,
        };
        assert_eq!(flows.note(app), None);
        let row = flows.note(flow(Some("tls"))).unwrap();
        assert_eq!((row.app, row.app_by), (Some("tls"), Some("payload")));
        assert_eq!(row.version.as_deref(), Some("TLS 1.3"));
        assert_eq!((row.threats, row.verdict), (vec!["bad_checksum"], "allow"));
        let row = flows.note(flow(None)).unwrap();
        assert_eq!(
            (row.app_by, row.version, row.threats.len()),
            (None, None, 0)
        );
        assert_eq!(flows.threats["bad_checksum"].0, 2);
        assert_eq!(
            flows.apps[&None],
            Sum {
                flows: 1,
                packets: 5,
                bytes: 500
            }
        );
        assert!(flows.rest().is_empty());
    }

    #[test]
    fn a_violation_is_the_verdict_and_a_threat_without_a_flow_is_not_lost() {
        let (client, server) = ends();
        let mut flows = Flows::default();
        flows.note(Event::Violation {
            client,
            server,
            proto: 6,
            app: None,
            policy: 0,
            denied: false,
        });
        assert_eq!(flows.note(flow(None)).unwrap().verdict, "violate");
        let name = "tcp_bad_flags";
        flows.note(Event::Threat {
            from: client,
            to: server,
            proto: 6,
            name,
        });
        let rest = flows.rest();
        assert_eq!(
            (rest.len(), rest[0].threats[0], rest[0].packets.orig),
            (1, name, 0)
        );
        assert!(flows.rest().is_empty());
    }
}
