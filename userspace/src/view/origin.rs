//! The original destination of a steered flow, as `opt` shows it.

use std::borrow::Cow;
use std::net::IpAddr;

use fsm_common::maps::{Origin, OriginKey};
use serde::Serialize;

use super::{Row, endpoint, family, or_dash, port, proto, wide_ip};

/// What the gateway sees, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OriginRow {
    /// Protocol.
    pub proto: Cow<'static, str>,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The gateway's peer: `addr:port`.
    pub peer: String,
    /// The gateway's listener, as far as the flags `*_nat_opt_with_local_*` keep it.
    pub listener: Option<String>,
    /// Source before translation.
    pub src: IpAddr,
    /// Source port before translation.
    pub sport: u16,
    /// Destination before translation.
    pub dst: IpAddr,
    /// Destination port before translation.
    pub dport: u16,
}

impl OriginRow {
    /// Of an entry of `fsm_xopt`.
    pub fn new(key: &OriginKey, origin: &Origin) -> Self {
        let v6 = key.v6 != 0;
        let kept = key.laddr != [0; 16] || key.lport != [0; 2];
        Self {
            proto: proto(key.proto),
            family: family(v6),
            peer: endpoint(wide_ip(key.raddr, v6), port(key.rport)),
            listener: kept.then(|| endpoint(wide_ip(key.laddr, v6), port(key.lport))),
            src: wide_ip(origin.saddr, origin.v6 != 0),
            sport: port(origin.sport),
            dst: wide_ip(origin.daddr, origin.v6 != 0),
            dport: port(origin.dport),
        }
    }
}

impl Row for OriginRow {
    const HEAD: &'static [&'static str] = &["PROTO", "PEER", "LISTENER", "SOURCE", "DESTINATION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.proto.clone().into_owned(),
            self.peer.clone(),
            or_dash(self.listener.as_deref()),
            endpoint(self.src, self.sport),
            endpoint(self.dst, self.dport),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_tuple_is_at_the_top() {
        let mut key = OriginKey {
            proto: 6,
            sys: 1,
            rport: [0x9c, 0x40],
            ..OriginKey::ZERO
        };
        key.raddr[..4].copy_from_slice(&[10, 1, 0, 2]);
        let mut origin = Origin {
            proto: 6,
            dport: [0, 80],
            sport: key.rport,
            ..Origin::ZERO
        };
        origin.daddr[..4].copy_from_slice(&[20, 0, 0, 2]);
        origin.saddr = key.raddr;
        let row = OriginRow::new(&key, &origin);
        let expected = serde_json::json!({
            "proto": "tcp", "family": "ipv4", "peer": "10.1.0.2:40000", "listener": null,
            "src": "10.1.0.2", "sport": 40000, "dst": "20.0.0.2", "dport": 80,
        });
        assert_eq!(serde_json::to_value(&row).unwrap(), expected);
        key.lport = [0x3a, 0x99];
        key.laddr[..4].copy_from_slice(&[192, 168, 0, 1]);
        assert_eq!(
            OriginRow::new(&key, &origin).listener.as_deref(),
            Some("192.168.0.1:15001")
        );
    }
}
