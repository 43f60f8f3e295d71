//! What is traced, as `trace list` shows it.

use fsm_common::maps::{TraceIp, TraceOn, TracePort};
use serde::Serialize;

use super::{Row, port, wide_ip};

/// A traced address or port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TraceRow {
    /// The address.
    pub ip: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Traced where the app's packets arrive.
    pub ingress: bool,
    /// Traced where the app's packets leave.
    pub egress: bool,
}

impl TraceRow {
    /// Of an entry of `fsm_trip`.
    pub fn of_ip(key: &TraceIp, on: &TraceOn) -> Self {
        let v6 = key.addr[4..] != [0; 12];
        Self {
            ip: Some(wide_ip(key.addr, v6).to_string()),
            ..Self::of(on)
        }
    }

    /// Of an entry of `fsm_trpt`.
    pub fn of_port(key: &TracePort, on: &TraceOn) -> Self {
        Self {
            port: Some(port(key.port)),
            ..Self::of(on)
        }
    }

    const fn of(on: &TraceOn) -> Self {
        Self {
            ip: None,
            port: None,
            ingress: on.ingress != 0,
            egress: on.egress != 0,
        }
    }
}

impl Row for TraceRow {
    const HEAD: &'static [&'static str] = &["IP", "PORT", "INGRESS", "EGRESS"];

    fn cells(&self) -> Vec<String> {
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        vec![
            self.ip.clone().unwrap_or_else(|| "any".into()),
            self.port
                .map_or_else(|| "any".into(), |port| port.to_string()),
            on(self.ingress),
            on(self.egress),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_told_apart() {
        let on = TraceOn {
            ingress: 1,
            egress: 1,
            ..TraceOn::ZERO
        };
        let mut key = TraceIp {
            sys: 1,
            ..TraceIp::ZERO
        };
        key.addr = [0xfd; 16];
        let row = TraceRow::of_ip(&key, &on);
        assert_eq!(row.cells()[1..], ["any", "on", "on"]);
        assert!(row.ip.is_some_and(|ip| ip.starts_with("fdfd:")));
        let row = TraceRow::of_port(
            &TracePort {
                sys: 1,
                port: [0, 80],
                pad: [0; 2],
            },
            &on,
        );
        assert_eq!((row.ip, row.port), (None, Some(80)));
    }
}
