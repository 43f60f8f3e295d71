//! NAT entries, as `nat list` shows them: in the words of `[[nat]]`.

use std::borrow::Cow;

use fsm_common::{
    maps::sys,
    nat::{NatKey, NatValue, dir, endpoint_flag, option, select},
};
use serde::Serialize;

use super::{Row, endpoint, family, port, proto, wide_ip};

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NatRow {
    /// `mesh` or `e4lb`.
    pub system: &'static str,
    /// `egress` or `ingress`.
    pub direction: &'static str,
    /// `tcp` or `udp`.
    pub proto: Cow<'static, str>,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// `addr:port`, `addr`, `:port` or `any`.
    pub to: String,
    /// Where the flows go.
    pub endpoints: Vec<EndpointRow>,
    /// `maglev` or `round-robin`.
    pub select: &'static str,
    /// `auto`, `client` or `vip`; for `e4lb` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
    /// `drain` or `reset`.
    pub on_removed: &'static str,
}

/// One endpoint of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointRow {
    /// `addr:port`.
    pub addr: String,
    /// Its share.
    pub weight: u16,
    /// Whether it takes new flows.
    pub active: bool,
    /// `up` or `down` where it is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<&'static str>,
}

impl NatRow {
    /// Of an entry of `fsm_xnat`.
    pub fn new(key: &NatKey, value: &NatValue) -> Self {
        let v6 = key.v6 != 0;
        let used = usize::from(value.ep_cnt).min(value.endpoints.len());
        let endpoints = value.endpoints[..used].iter().map(|ep| EndpointRow {
            addr: endpoint(wide_ip(ep.addr, v6), port(ep.port)),
            weight: ep.weight,
            active: ep.active != 0,
            health: match (
                ep.flags & endpoint_flag::CHECKED,
                ep.flags & endpoint_flag::DOWN,
            ) {
                (0, _) => None,
                (_, 0) => Some("up"),
                _ => Some("down"),
            },
        });
        let is_balanced = key.sys == sys::E4LB;
        let source = match value.options & (option::SOURCE_CLIENT | option::SOURCE_VIP) {
            option::SOURCE_CLIENT => "client",
            option::SOURCE_VIP => "vip",
            _ => "auto",
        };
        Self {
            system: if is_balanced { "e4lb" } else { "mesh" },
            source: is_balanced.then_some(source),
            on_removed: if value.options & option::RESET != 0 {
                "reset"
            } else {
                "drain"
            },
            direction: if key.dir == dir::INGRESS {
                "ingress"
            } else {
                "egress"
            },
            proto: proto(key.proto),
            family: family(v6),
            to: target(key, v6),
            endpoints: endpoints.collect(),
            select: if value.select == select::ROUND_ROBIN {
                "round-robin"
            } else {
                "maglev"
            },
        }
    }
}

/// `addr:port`, `addr`, `:port` or `any`.
pub fn target(key: &NatKey, v6: bool) -> String {
    let addr = wide_ip(key.daddr, v6);
    match (key.daddr == [0; 16], port(key.dport)) {
        (true, 0) => "any".into(),
        (true, port) => format!(":{port}"),
        (false, 0) => addr.to_string(),
        (false, port) => endpoint(addr, port),
    }
}

impl Row for NatRow {
    const HEAD: &'static [&'static str] = &[
        "SYSTEM",
        "DIRECTION",
        "PROTO",
        "FAMILY",
        "TO",
        "ENDPOINTS",
        "SELECT",
    ];

    fn cells(&self) -> Vec<String> {
        let endpoints: Vec<String> = self.endpoints.iter().map(EndpointRow::text).collect();
        vec![
            self.system.to_owned(),
            self.direction.to_owned(),
            self.proto.clone().into_owned(),
            self.family.to_owned(),
            self.to.clone(),
            endpoints.join(", "),
            self.select.to_owned(),
        ]
    }
}

impl EndpointRow {
    fn text(&self) -> String {
        let weight = if self.weight == 1 {
            String::new()
        } else {
            format!("@{}", self.weight)
        };
        let drained = match (self.health, self.active && self.weight > 0) {
            (Some("down"), _) => " (down)",
            (_, false) => " (draining)",
            (_, true) => "",
        };
        format!("{}{weight}{drained}", self.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsm_common::nat::NatEndpoint;

    fn value() -> NatValue {
        let mut value = NatValue {
            ep_cnt: 2,
            select: select::ROUND_ROBIN,
            ..NatValue::ZERO
        };
        for (i, ep) in value.endpoints[..2].iter_mut().enumerate() {
            *ep = NatEndpoint {
                port: [0x3a, 0x99],
                weight: 1 + i as u16,
                ..NatEndpoint::ZERO
            };
            ep.addr[..4].copy_from_slice(&[192, 168, 0, i as u8]);
            ep.active = 1 - i as u8;
        }
        value
    }

    #[test]
    fn an_entry_reads_as_in_the_file() {
        let key = NatKey {
            proto: 6,
            dir: dir::EGRESS,
            sys: 1,
            ..NatKey::ZERO
        };
        let row = NatRow::new(&key, &value());
        let expected = serde_json::json!({
            "system": "mesh", "direction": "egress", "proto": "tcp", "family": "ipv4", "to": "any",
            "endpoints": [
                {"addr": "192.168.0.0:15001", "weight": 1, "active": true},
                {"addr": "192.168.0.1:15001", "weight": 2, "active": false},
            ],
            "select": "round-robin",
            "on_removed": "drain",
        });
        assert_eq!(serde_json::to_value(&row).unwrap(), expected);
        assert_eq!(
            row.cells()[5],
            "192.168.0.0:15001, 192.168.0.1:15001@2 (draining)"
        );
    }

    #[test]
    fn every_kind_of_target_has_its_text() {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&[20, 0, 0, 2]);
        let to = |daddr, dport| {
            target(
                &NatKey {
                    daddr,
                    dport,
                    ..NatKey::ZERO
                },
                false,
            )
        };
        assert_eq!(to(addr, [0, 80]), "20.0.0.2:80");
        assert_eq!(to(addr, [0, 0]), "20.0.0.2");
        assert_eq!(to([0; 16], [0, 53]), ":53");
        assert_eq!(to([0; 16], [0, 0]), "any");
    }
}
