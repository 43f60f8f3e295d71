//! Events as Suricata's EVE JSON, one object a line, with its names of fields
//! (<https://docs.suricata.io/en/latest/output/eve/eve-json-format.html>): what reads Suricata's log reads this one.
//! [`log`] writes them from the daemon; `pcap --eve` does so from captures.

pub mod log;

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::dpi::{Event, Verdict};

const NS_PER_S: u64 = 1_000_000_000;
/// Names of [`Event::Threat`] that say that a packet is damaged rather than that somebody attacks.
const ANOMALIES: [&str; 1] = ["bad_checksum"];
/// Numbers of signatures: a policy's is this and its number in the file; a threat's, this and a hash of its name.
const POLICY_IDS: u64 = 9_000_000;
const THREAT_IDS: u64 = 9_100_000;

/// Makes records.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Name of the node, for `host`; none where it is empty.
    pub host: String,
}

impl Records {
    /// The record of an event at a time, nanoseconds since 1970; `epoch_ns` is what is to be added to the event's own
    /// times to make them so.
    pub fn record(&self, time_ns: u64, epoch_ns: u64, event: &Event) -> Value {
        match event {
            Event::App {
                client,
                server,
                proto,
                app,
                info,
            } => {
                let mut record = self.between(time_ns, app, *client, *server, *proto);
                record.insert("app_proto".into(), json!(app));
                record.insert((*app).into(), said(app, info));
                Value::Object(record)
            }
            Event::Threat {
                from,
                to,
                proto,
                name,
            } if ANOMALIES.contains(name) => {
                let mut record = self.between(time_ns, "anomaly", *from, *to, *proto);
                record.insert("anomaly".into(), json!({"type": "decode", "event": name}));
                Value::Object(record)
            }
            Event::Threat {
                from,
                to,
                proto,
                name,
            } => {
                let mut record = self.between(time_ns, "alert", *from, *to, *proto);
                let id = THREAT_IDS + hash(name.as_bytes()) % 100_000;
                let alert = alert(false, id, name, "threat", 2);
                record.insert("alert".into(), alert);
                Value::Object(record)
            }
            Event::Violation {
                client,
                server,
                proto,
                app,
                policy,
                denied,
            } => {
                let mut record = self.between(time_ns, "alert", *client, *server, *proto);
                record.insert("app_proto".into(), json!(app.unwrap_or("failed")));
                let signature = format!("dpi.policy[{policy}]");
                let id = POLICY_IDS + *policy as u64;
                record.insert(
                    "alert".into(),
                    alert(*denied, id, &signature, "policy violation", 3),
                );
                Value::Object(record)
            }
            Event::Flow {
                client,
                server,
                proto,
                app,
                packets,
                bytes,
                span_ns,
                verdict,
                is_closed,
            } => {
                let mut record = self.between(time_ns, "flow", *client, *server, *proto);
                record.insert("app_proto".into(), json!(app.unwrap_or("failed")));
                let [start_ns, end_ns] = span_ns.map(|ns| ns.saturating_add(epoch_ns));
                let state = match is_closed {
                    true => "closed",
                    false if packets.contains(&0) => "new",
                    false => "established",
                };
                let action = match verdict {
                    Verdict::Pass | Verdict::Allow => "accept",
                    Verdict::Drop | Verdict::Deny | Verdict::Reset => "drop",
                };
                record.insert(
                    "flow".into(),
                    json!({
                        "pkts_toserver": packets[0], "pkts_toclient": packets[1],
                        "bytes_toserver": bytes[0], "bytes_toclient": bytes[1],
                        "start": timestamp(start_ns), "end": timestamp(end_ns),
                        "age": end_ns.saturating_sub(start_ns) / NS_PER_S,
                        "state": state, "reason": if *is_closed { "closed" } else { "timeout" },
                        "action": action,
                    }),
                );
                Value::Object(record)
            }
        }
    }

    /// A record of counters.
    pub fn stats(&self, time_ns: u64, stats: Value) -> Value {
        let mut record = self.head(time_ns, "stats");
        record.insert("stats".into(), stats);
        Value::Object(record)
    }

    fn head(&self, time_ns: u64, kind: &str) -> Map<String, Value> {
        let mut record = Map::new();
        record.insert("timestamp".into(), timestamp(time_ns).into());
        if !self.host.is_empty() {
            record.insert("host".into(), self.host.as_str().into());
        }
        record.insert("event_type".into(), kind.into());
        record
    }

    fn between(
        &self,
        time_ns: u64,
        kind: &str,
        src: SocketAddr,
        dst: SocketAddr,
        proto: u8,
    ) -> Map<String, Value> {
        let mut record = self.head(time_ns, kind);
        record.insert("flow_id".into(), flow_id(src, dst, proto).into());
        record.insert("src_ip".into(), src.ip().to_string().into());
        record.insert("dest_ip".into(), dst.ip().to_string().into());
        // As in Suricata's: ports only where the protocol has them.
        if matches!(proto, 6 | 17 | 132) {
            record.insert("src_port".into(), src.port().into());
            record.insert("dest_port".into(), dst.port().into());
        }
        record.insert("proto".into(), proto_name(proto).into());
        record
    }
}

fn alert(is_blocked: bool, id: u64, signature: &str, category: &str, severity: u8) -> Value {
    json!({
        "action": if is_blocked { "blocked" } else { "allowed" },
        "gid": 1, "signature_id": id, "rev": 1,
        "signature": signature, "category": category, "severity": severity,
    })
}

/// What was learned, by Suricata's names where it has one; else by ours.
fn said(app: &str, info: &[(&'static str, String)]) -> Value {
    let mut said = Map::new();
    for (name, value) in info {
        let text = || Value::from(value.as_str());
        let number = || value.parse::<u64>().map_or_else(|_| text(), Value::from);
        let list = || value.split(',').collect::<Vec<_>>().into();
        let (name, value) = match (app, *name) {
            ("http", "host") => ("hostname", text()),
            ("http", "path") => ("url", text()),
            ("http", "user_agent") => ("http_user_agent", text()),
            ("http", "method") => ("http_method", text()),
            ("http", "status") => ("status", number()),
            ("http", "version") => ("protocol", format!("HTTP/{value}").into()),
            ("tls", "alpn") => ("client_alpns", list()),
            ("tls", "alpn_selected") => ("server_alpns", list()),
            ("dns" | "mdns", "query") => ("rrname", text()),
            ("dns" | "mdns", "type") => ("rrtype", text()),
            ("dns" | "mdns", "answers") => ("answers_count", number()),
            (_, name) => (name, text()),
        };
        said.insert(name.into(), value);
    }
    match app {
        "dns" | "mdns" => {
            let kind = match said.contains_key("rcode") {
                true => "answer",
                false => "query",
            };
            said.insert("type".into(), kind.into());
        }
        "ssh" => return ssh(&said),
        _ => {}
    }
    Value::Object(said)
}

/// Suricata has an object for each side.
fn ssh(said: &Map<String, Value>) -> Value {
    let side = |version: &str, software: &str| {
        json!({
            "proto_version": said.get(version), "software_version": said.get(software),
        })
    };
    json!({
        "client": side("client_version", "client_software"), "server": side("version", "software"),
    })
}

/// IANA's keyword in capitals, as Suricata writes it.
fn proto_name(proto: u8) -> String {
    match proto {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        47 => "GRE".into(),
        50 => "ESP".into(),
        58 => "IPv6-ICMP".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

/// The same for both directions, and for all records of a tuple. 53 bits: JSON's readers take numbers for doubles.
fn flow_id(src: SocketAddr, dst: SocketAddr, proto: u8) -> u64 {
    let (low, high) = (src.min(dst), src.max(dst));
    let mut bytes = Vec::with_capacity(40);
    for end in [low, high] {
        match end.ip() {
            std::net::IpAddr::V4(addr) => bytes.extend(addr.octets()),
            std::net::IpAddr::V6(addr) => bytes.extend(addr.octets()),
        }
        bytes.extend(end.port().to_be_bytes());
    }
    bytes.push(proto);
    hash(&bytes) >> 11
}

/// FNV-1a, its bits mixed once more.
fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// ISO 8601 with microseconds and offset, as Suricata's, in UTC: `2026-01-31T23:59:59.000001+0000`.
pub fn timestamp(time_ns: u64) -> String {
    let (seconds, micros) = (time_ns / NS_PER_S, time_ns % NS_PER_S / 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, http://howardhinnant.github.io/date_algorithms.html
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}+0000",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (SocketAddr, SocketAddr) {
        (
            "10.0.0.1:40000".parse().unwrap(),
            "[fd00::1]:80".parse().unwrap(),
        )
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000+0000"),
            (951_782_400, "2000-02-29T00:00:00.000000+0000"),
            (1_709_251_199, "2024-02-29T23:59:59.000000+0000"),
            (1_735_689_600, "2025-01-01T00:00:00.000000+0000"),
            (4_102_444_799, "2099-12-31T23:59:59.000000+0000"),
        ] {
            assert_eq!(timestamp(seconds * NS_PER_S), text);
        }
        assert_eq!(timestamp(1_234_567), "1970-01-01T00:00:00.001234+0000");
        // No clock is so late, and none makes it fail.
        assert!(timestamp(u64::MAX).starts_with("2554-"));
    }

    #[test]
    fn a_flow_has_one_id_in_both_directions() {
        let (a, b) = ends();
        assert_eq!(flow_id(a, b, 6), flow_id(b, a, 6));
        assert_ne!(flow_id(a, b, 6), flow_id(a, b, 17));
        assert!(flow_id(a, b, 6) < 1 << 53);
    }

    #[test]
    fn http_has_suricatas_names() {
        let (client, server) = ends();
        let info = vec![
            ("method", "GET".into()),
            ("host", "example.org".into()),
            ("path", "/a".into()),
            ("status", "200".into()),
        ];
        let app = Event::App {
            client,
            server,
            proto: 6,
            app: "http",
            info,
        };
        let record = Records { host: "n1".into() }.record(0, 0, &app);
        assert_eq!(record["event_type"], "http");
        assert_eq!(
            (&record["proto"], &record["host"]),
            (&json!("TCP"), &json!("n1"))
        );
        let http = json!({
            "http_method": "GET", "hostname": "example.org", "url": "/a", "status": 200,
        });
        assert_eq!(record["http"], http);
    }

    #[test]
    fn damage_is_an_anomaly_and_the_rest_an_alert() {
        let (from, to) = ends();
        let records = Records::default();
        let of = |name| {
            records.record(
                0,
                0,
                &Event::Threat {
                    from,
                    to,
                    proto: 6,
                    name,
                },
            )
        };
        assert_eq!(of("bad_checksum")["anomaly"]["event"], "bad_checksum");
        let alert = of("tcp_bad_flags");
        assert_eq!(alert["alert"]["signature"], "tcp_bad_flags");
        assert_eq!(alert["alert"]["action"], "allowed");
        assert!(alert.get("host").is_none());
    }
}
