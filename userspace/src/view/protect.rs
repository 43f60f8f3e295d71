//! Protected destinations: how many new flows each has let pass, and how many were over its rate.

use std::net::{IpAddr, Ipv6Addr};

use fsm_common::guard::{Bucket, GuardKey};
use fsm_common::wire::l3::IpProto;
use serde::Serialize;

use crate::config::Family;

/// One bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Protected {
    /// The destination, as `node.toml` has it.
    pub to: String,
    /// `tcp` or `udp`.
    pub proto: &'static str,
    /// The family that it counts: an entry without an address has a bucket for each.
    pub family: Family,
    /// Its rate.
    pub new_per_s: u64,
    /// New flows that passed, about.
    pub passed: u64,
    /// New flows over the rate, about.
    pub over: u64,
}

impl Protected {
    /// From the kernel's entry.
    pub fn new(key: &GuardKey, bucket: &Bucket) -> Self {
        let [a, b, c, d, ..] = key.addr;
        let addr = match key.v6 {
            0 => IpAddr::from([a, b, c, d]),
            _ => Ipv6Addr::from(key.addr).into(),
        };
        let to = match (addr.is_unspecified(), u16::from_be_bytes(key.port)) {
            (true, 0) => "any".to_owned(),
            (true, port) => format!(":{port}"),
            (false, 0) => addr.to_string(),
            (false, port) => std::net::SocketAddr::new(addr, port).to_string(),
        };
        Self {
            to,
            proto: match IpProto(key.proto) {
                IpProto::UDP => "udp",
                _ => "tcp",
            },
            family: Family::of(&addr),
            new_per_s: bucket.per_s,
            passed: bucket.passed,
            over: bucket.over,
        }
    }

    /// Cells of a table.
    pub fn cells(&self) -> Vec<String> {
        vec![
            self.to.clone(),
            self.proto.to_owned(),
            self.family.to_string(),
            self.new_per_s.to_string(),
            self.passed.to_string(),
            self.over.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_written_as_the_configuration_has_it() {
        let shown = |addr: &str, port: u16, v6: u8| {
            let key = GuardKey {
                addr: crate::model::wide(addr.parse().unwrap()),
                port: port.to_be_bytes(),
                v6,
                ..GuardKey::ZERO
            };
            Protected::new(&key, &Bucket::new(1)).to
        };
        assert_eq!(shown("10.1.0.2", 80, 0), "10.1.0.2:80");
        assert_eq!(shown("fd10::2", 80, 1), "[fd10::2]:80");
        assert_eq!(shown("fd10::2", 0, 1), "fd10::2");
        assert_eq!(shown("0.0.0.0", 80, 0), ":80");
        assert_eq!(shown("::", 0, 1), "any");
    }

    #[test]
    fn numbers_are_those_of_the_bucket() {
        let mut bucket = Bucket::new(2);
        let within = [0, 0, 0].map(|now| bucket.admit(now));
        assert_eq!(within, [true, true, false]);
        let key = GuardKey {
            proto: IpProto::UDP.0,
            ..GuardKey::ZERO
        };
        let row = Protected::new(&key, &bucket);
        assert_eq!(row.cells(), ["any", "udp", "ipv4", "2", "2", "1"]);
    }
}
