//! Short ways to write rules into a node's maps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use aya::maps::lpm_trie::Key;
use fsm_common::{
    guard::{self, Bucket, GuardKey},
    maps::{Skip, Xcfg, feature, name, sys},
    nat::{self, NatEndpoint, NatKey, NatValue},
    policy::{
        Acl4Key, Acl6Key, AclValue, CidrRule, CidrRules, CidrValue, Tagged as _, acl, class, kind,
    },
};

use super::Node;

/// IPv4 in the first four bytes.
pub fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn parts(cidr: &str) -> (IpAddr, u32) {
    let (addr, len) = cidr.split_once('/').unwrap();
    (addr.parse().unwrap(), len.parse().unwrap())
}

fn v6_data(addr: std::net::Ipv6Addr) -> [u8; 20] {
    let mut data = [0; 20];
    data[..16].copy_from_slice(&addr.octets());
    data
}

/// One rule of a CIDR: ports, protocol (0: any), one of `policy::acl`.
pub fn rule(ports: std::ops::RangeInclusive<u16>, proto: u8, acl: u8) -> CidrRule {
    CidrRule {
        port_lo: *ports.start(),
        port_hi: *ports.end(),
        proto,
        acl,
        id: 0,
    }
}

/// The kind of a destination: an address of zeros or port 0 stand for any.
fn kind_of(dst: SocketAddr) -> u32 {
    match (dst.ip().is_unspecified(), dst.port() == 0) {
        (false, false) => nat::kind::ADDR_PORT,
        (false, true) => nat::kind::ADDR,
        (true, false) => nat::kind::PORT,
        (true, true) => nat::kind::ANY,
    }
}

fn key4(addr: Ipv4Addr, port: u16) -> Acl4Key {
    Acl4Key {
        addr: addr.octets(),
        port: port.to_be_bytes(),
        proto: 0,
        sys: sys::MESH,
    }
}

fn said(tag: u16, old: Option<AclValue>, proto: u8, acl: u8) -> AclValue {
    let old = old.map_or(AclValue::NOTHING, |old| old.now);
    AclValue {
        from: 0,
        now: AclValue::with(old, class(proto), acl),
        was: AclValue::NOTHING,
        tag,
        ids: [0; class::COUNT],
    }
}

fn skip(bits: u8) -> Skip {
    Skip {
        from: 0,
        now: bits,
        was: 0,
        pad: [0; 2],
    }
}

impl Node {
    /// Changes settings under a new generation.
    pub fn set(&mut self, change: impl FnOnce(&mut Xcfg)) {
        self.maps.apply_settings(change).unwrap();
    }

    /// Sets the flags of both families.
    pub fn flags(&mut self, flags: u64) {
        self.set(|settings| (settings.ipv4, settings.ipv6) = (flags, flags));
    }

    /// What an ACL entry says of a protocol; port 0 for any. What it says of others stays.
    pub fn acl(&mut self, addr: &str, port: u16, proto: u8, acl: u8) {
        let bit = if port == 0 { kind::ADDR4 } else { kind::EXACT4 };
        match addr.parse().unwrap() {
            IpAddr::V4(v4) => {
                let key = key4(v4, port);
                let old = self.maps.acl4.get(&key, 0).ok();
                let value = said(key.tag(), old, proto, acl);
                self.maps.acl4.insert(key, value, 0).unwrap();
                self.set(|settings| settings.acl_kinds |= bit);
            }
            IpAddr::V6(v6) => {
                let key = Acl6Key {
                    addr: v6.octets(),
                    port: port.to_be_bytes(),
                    proto: 0,
                    sys: sys::MESH,
                    pad: [0; 4],
                };
                let old = self.maps.acl6.get(&key, 0).ok();
                let value = said(key.tag(), old, proto, acl);
                self.maps.acl6.insert(key, value, 0).unwrap();
                self.set(|settings| settings.acl_kinds |= bit << kind::V6_SHIFT);
            }
        }
    }

    /// Removes what an IPv4 ACL entry says of a protocol.
    pub fn no_acl(&mut self, addr: &str, port: u16, proto: u8) {
        let key = key4(addr.parse().unwrap(), port);
        let old = self.maps.acl4.get(&key, 0).unwrap();
        let value = said(key.tag(), Some(old), proto, acl::SILENT);
        if value.now == AclValue::NOTHING {
            self.maps.acl4.remove(&key).unwrap();
        } else {
            self.maps.acl4.insert(key, value, 0).unwrap();
        }
        self.set(|_| ());
    }

    /// The rules of a CIDR.
    pub fn cidr(&mut self, cidr: &str, rules: &[CidrRule]) {
        let mut set = CidrRules {
            len: rules.len() as u32,
            ..CidrRules::ZERO
        };
        set.rules[..rules.len()].copy_from_slice(rules);
        let sets = self.maps.bulk(name::FSM_CIDR_SET).unwrap();
        let rule = match rules {
            [rule] => *rule,
            _ => {
                let number = self.maps.cidr4.iter().count() + self.maps.cidr6.iter().count();
                sets.write(&[(number as u32, set)]).unwrap();
                CidrRule::set(number as u32)
            }
        };
        let value = CidrValue {
            now: rule,
            was: CidrRule::SILENT,
            from: 0,
            pad: 0,
        };
        match parts(cidr) {
            (IpAddr::V4(v4), len) => {
                self.maps
                    .cidr4
                    .insert(&Key::new(len, v4.octets()), value, 0)
                    .unwrap();
                self.set(|settings| settings.acl_kinds |= kind::CIDR4);
            }
            (IpAddr::V6(v6), len) => {
                self.maps
                    .cidr6
                    .insert(&Key::new(len, v6_data(v6)), value, 0)
                    .unwrap();
                self.set(|settings| settings.acl_kinds |= kind::CIDR4 << kind::V6_SHIFT);
            }
        }
    }

    /// A NAT entry from `dst` (address 0 or `::` for any address, port 0 for any) to listeners.
    pub fn nat(&mut self, dir: u8, proto: u8, dst: &str, to: &[&str]) {
        let bits = self.nat_entry(sys::MESH, dir, proto, dst, to, 0);
        self.set(|settings| settings.nat_kinds |= bits);
    }

    /// The same with options (`nat::option`).
    pub fn nat_with(&mut self, dir: u8, proto: u8, dst: &str, to: &[&str], options: u64) {
        let bits = self.nat_entry(sys::MESH, dir, proto, dst, to, options);
        self.set(|settings| settings.nat_kinds |= bits);
    }

    /// A load balancer's entry, with options (`nat::option`).
    pub fn e4lb(&mut self, proto: u8, vip: &str, to: &[&str], options: u64) {
        let bits = self.nat_entry(sys::E4LB, nat::dir::INGRESS, proto, vip, to, options);
        self.set(|settings| {
            settings.balance_kinds |= bits;
            settings.features |= feature::E4LB;
        });
    }

    fn nat_entry(
        &mut self,
        sys: u8,
        dir: u8,
        proto: u8,
        dst: &str,
        to: &[&str],
        options: u64,
    ) -> u32 {
        let dst: SocketAddr = dst.parse().unwrap();
        let v6 = dst.is_ipv6();
        let key = NatKey {
            daddr: wide(dst.ip()),
            dport: dst.port().to_be_bytes(),
            proto,
            dir,
            v6: v6.into(),
            sys,
            ..NatKey::ZERO
        };
        let mut value = NatValue {
            ep_cnt: to.len() as u16,
            options,
            ..NatValue::ZERO
        };
        for (endpoint, to) in value.endpoints.iter_mut().zip(to) {
            let to: SocketAddr = to.parse().unwrap();
            *endpoint = NatEndpoint {
                addr: wide(to.ip()),
                port: to.port().to_be_bytes(),
                weight: 1,
                active: 1,
                ..NatEndpoint::ZERO
            };
        }
        value.usable = nat::maglev(&mut value.table, &value.endpoints[..to.len()]).into();
        self.maps.xnat.insert(key, value, 0).unwrap();
        kind_of(dst) << nat::kind::shift(dir, proto == 17, v6)
    }

    /// Another way to select an endpoint for an entry that is there.
    pub fn select(&mut self, dir: u8, proto: u8, dst: &str, select: u8) {
        let dst: SocketAddr = dst.parse().unwrap();
        let key = NatKey {
            daddr: wide(dst.ip()),
            dport: dst.port().to_be_bytes(),
            proto,
            dir,
            v6: dst.is_ipv6().into(),
            sys: sys::MESH,
            ..NatKey::ZERO
        };
        let mut value = self.maps.xnat.get(&key, 0).unwrap();
        value.select = select;
        self.maps.xnat.insert(key, value, 0).unwrap();
        self.set(|_| ());
    }

    /// Protects `dst` (as in [`Self::nat`]) by a bucket.
    pub fn protect(&mut self, proto: u8, dst: &str, bucket: Bucket) {
        let dst: SocketAddr = dst.parse().unwrap();
        let v6 = dst.is_ipv6();
        let key = GuardKey {
            addr: wide(dst.ip()),
            port: dst.port().to_be_bytes(),
            proto,
            v6: v6.into(),
            ..GuardKey::ZERO
        };
        self.maps.guard.insert(key, bucket, 0).unwrap();
        let bit = kind_of(dst) << guard::shift(proto == 17, v6);
        self.set(|settings| settings.guard_kinds |= bit);
    }

    /// Excludes a port.
    pub fn skip_port(&mut self, port: u16, bits: u8) {
        self.maps.skip_port.set(port.into(), skip(bits), 0).unwrap();
        self.set(|settings| settings.features |= feature::SKIP_PORT);
    }

    /// Excludes a network.
    pub fn skip_cidr(&mut self, cidr: &str, bits: u8) {
        let value = skip(bits);
        match parts(cidr) {
            (IpAddr::V4(v4), len) => {
                self.maps
                    .skip4
                    .insert(&Key::new(len, v4.octets()), value, 0)
                    .unwrap();
                self.set(|settings| settings.features |= feature::SKIP_CIDR4);
            }
            (IpAddr::V6(v6), len) => {
                self.maps
                    .skip6
                    .insert(&Key::new(len, v6_data(v6)), value, 0)
                    .unwrap();
                self.set(|settings| settings.features |= feature::SKIP_CIDR6);
            }
        }
    }
}
