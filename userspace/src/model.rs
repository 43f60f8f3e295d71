//! The checked configuration, compiled to what the kernel's maps hold. Pure: nothing on the host is read or
//! changed here.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
};

use fsm_common::{
    guard::{self, Bucket, GuardKey},
    maps::{TraceIp, TraceOn, TracePort, feature, skip, sys},
    nat::{self, MAX_ENDPOINTS, NatEndpoint, NatKey, NatValue, dir, endpoint_flag, option, select},
    policy::{Acl4Key, Acl6Key, Cidr4Key, Cidr6Key},
    wire::l3::IpProto,
};
use ipnet::IpNet;

use crate::config::{
    Acl, AclAction, AclProto, Config, Direction, Dpi, DpiMode, Fail, Family, Inspect, Nat,
    NatProto, NatTarget, OnRemoved, PortRange, Protect, Select, Source, System,
};
use crate::view::state::{State, timeout_s};

pub mod acl;
pub mod plan;
pub mod table;

use acl::{Rules, Said};
use table::Table;

/// A configuration that is right by itself but does not fit into the kernel's tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModelError {
    /// Too many rules over one prefix.
    #[error(
        "acl: {prefix} has {count} rules with those of the networks around it; at most {max} fit: \
         merge port ranges or narrow the outer networks"
    )]
    TooManyRules {
        /// The prefix.
        prefix: IpNet,
        /// Its rules.
        count: usize,
        /// What fits.
        max: usize,
    },
}

/// What the maps are to hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// `fsm_xacl`
    pub acl4: Table<Acl4Key, Said>,
    /// `fsm_xacl6`
    pub acl6: Table<Acl6Key, Said>,
    /// `fsm_cidr4`
    pub cidr4: Table<Cidr4Key, Rules>,
    /// `fsm_cidr6`
    pub cidr6: Table<Cidr6Key, Rules>,
    /// `fsm_xnat`, all of bank 0: the loader chooses
    pub nat: HashMap<NatKey, NatValue>,
    /// `fsm_guard`
    pub guard: HashMap<GuardKey, Bucket>,
    /// `fsm_skip_port`: ports with bits
    pub skip_port: HashMap<u16, u8>,
    /// `fsm_skip4`: networks with bits
    pub skip4: Table<Cidr4Key, u8>,
    /// `fsm_skip6`
    pub skip6: Table<Cidr6Key, u8>,
    /// `fsm_trip`
    pub trip: HashMap<TraceIp, TraceOn>,
    /// `fsm_trpt`
    pub trpt: HashMap<TracePort, TraceOn>,
    /// Flags of IPv4 and IPv6.
    pub flags: [u64; 2],
    /// Bits of `policy::kind`.
    pub acl_kinds: u32,
    /// Bits of `nat::kind` of the mesh's entries.
    pub nat_kinds: u32,
    /// The same of load balancers' entries.
    pub balance_kinds: u32,
    /// Bits of `nat::kind`, at `guard::shift`.
    pub guard_kinds: u32,
    /// Bits of `maps::feature`.
    pub features: u32,
    /// `node.fail` is open.
    pub fail_open: bool,
    /// `Xcfg::dpi_policy`: stands for all that inspection goes by.
    pub dpi_policy: u32,
    /// `Xcfg::snap`.
    pub snap: u16,
    /// `fsm_timeout`: seconds, by [`State`].
    pub timeouts_s: [u32; State::ALL.len()],
}

impl Model {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// See [`ModelError`].
    pub fn compile(config: &Config) -> Result<Self, ModelError> {
        let mut model = Self {
            flags: [config.flags.ipv4.bits(), config.flags.ipv6.bits()],
            fail_open: config.node.fail == Fail::Open,
            timeouts_s: State::ALL.map(|state| timeout_s(state, &config.conntrack)),
            ..Self::default()
        };
        let gateway = gateway_rules(config);
        let lists = config.acl_lists.iter().map(|list| &list.rules[..]);
        let rules: Vec<&[Acl]> = std::iter::once(&gateway[..])
            .chain(lists)
            .chain([&config.acl[..]])
            .collect();
        acl::compile(&mut model, &rules)?;
        // Explicit entries last: a live one may take the place of a listener.
        for entry in config.gateway.nat().iter().chain(&config.nat) {
            model.add_nat(entry);
        }
        for entry in &config.protect {
            model.add_protect(entry);
        }
        model.add_exclusions(config);
        model.add_traces(config);
        model.add_inspection(&config.dpi);
        Ok(model)
    }

    fn add_inspection(&mut self, dpi: &Dpi) {
        if dpi.mode == DpiMode::Off {
            return;
        }
        self.features |= feature::INSPECT;
        if dpi.inspect == Inspect::All {
            self.features |= feature::INSPECT_ALL;
        }
        if dpi.mode != DpiMode::Protect {
            self.features |= feature::INSPECT_COPY;
        }
        self.snap = dpi.snap;
        // The same after a restart, so that what was judged stays judged.
        let mut hash = DefaultHasher::new();
        serde_json::to_string(dpi)
            .unwrap_or_default()
            .hash(&mut hash);
        self.dpi_policy = hash.finish() as u32;
    }

    fn add_nat(&mut self, entry: &Nat) {
        let (key, kind) = nat_key(entry);
        let is_udp = entry.proto == NatProto::Udp;
        let bits = kind << nat::kind::shift(key.dir, is_udp, key.v6 != 0);
        match entry.system {
            System::Mesh => self.nat_kinds |= bits,
            System::E4lb => {
                self.balance_kinds |= bits;
                self.features |= feature::E4LB;
            }
        }
        self.nat.insert(key, nat_value(entry, |_| false));
    }

    /// Takes endpoints that are down out of an entry; gives its key and value.
    pub fn set_health(
        &mut self,
        entry: &Nat,
        is_down: impl Fn(&NatKey, SocketAddr) -> bool,
    ) -> (NatKey, &NatValue) {
        let (key, _) = nat_key(entry);
        let value = nat_value(entry, |addr| is_down(&key, addr));
        let slot = self.nat.entry(key).insert_entry(value);
        (key, slot.into_mut())
    }

    fn add_protect(&mut self, entry: &Protect) {
        let (addr, port, kind) = target(entry.to);
        let proto = proto(entry.proto);
        // Without an address both families are meant.
        for v6 in [false, true] {
            if addr.is_some_and(|addr| addr.is_ipv6() != v6) {
                continue;
            }
            let key = GuardKey {
                addr: addr.map_or([0; 16], wide),
                port: port.to_be_bytes(),
                proto,
                v6: v6.into(),
                ..GuardKey::ZERO
            };
            self.guard_kinds |= kind << guard::shift(entry.proto == NatProto::Udp, v6);
            self.guard.insert(key, Bucket::new(entry.new_per_s));
        }
    }

    fn add_exclusions(&mut self, config: &Config) {
        let gateway = &config.gateway;
        for (ports, bit) in [
            (&gateway.exclude_inbound_ports, skip::INBOUND),
            (&gateway.exclude_outbound_ports, skip::OUTBOUND),
        ] {
            for &port in ports {
                *self.skip_port.entry(port).or_default() |= bit;
                self.features |= feature::SKIP_PORT;
            }
        }
        let (mut skip4, mut skip6) = (Vec::new(), Vec::new());
        for network in &gateway.exclude_outbound_cidrs {
            let prefix_len = network.prefix_len().into();
            match network {
                IpNet::V4(net) => {
                    let addr = net.network().octets();
                    skip4.push((Cidr4Key { prefix_len, addr }, skip::OUTBOUND));
                    self.features |= feature::SKIP_CIDR4;
                }
                IpNet::V6(net) => {
                    let key = Cidr6Key {
                        prefix_len,
                        addr: net.network().octets(),
                        pad: [0; 4],
                    };
                    skip6.push((key, skip::OUTBOUND));
                    self.features |= feature::SKIP_CIDR6;
                }
            }
        }
        (self.skip4, self.skip6) = (Table::new(skip4), Table::new(skip6));
    }

    fn add_traces(&mut self, config: &Config) {
        for &ip in &config.trace.ips {
            self.trip.insert(trace_ip(ip), TRACED);
        }
        for &port in &config.trace.ports {
            self.trpt.insert(trace_port(port), TRACED);
        }
    }
}

/// Traced in both directions.
pub const TRACED: TraceOn = TraceOn {
    ingress: 1,
    egress: 1,
    pad: [0; 6],
};

/// Key of `fsm_trip`.
pub fn trace_ip(ip: IpAddr) -> TraceIp {
    TraceIp {
        addr: wide(ip),
        sys: sys::MESH.into(),
        pad: 0,
    }
}

/// Key of `fsm_trpt`.
pub fn trace_port(port: u16) -> TracePort {
    TracePort {
        sys: sys::MESH.into(),
        port: port.to_be_bytes(),
        pad: [0; 2],
    }
}

/// An address as the maps have it: IPv4 in the first four of 16 bytes.
pub fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&addr.octets());
            wide
        }
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// What the gateway's own addresses mean: trusted, but for the listeners, whose traffic is steered. They come
/// before the configured rules, which may say otherwise.
fn gateway_rules(config: &Config) -> Vec<Acl> {
    let gateway = &config.gateway;
    let listeners = || {
        gateway
            .inbound
            .iter()
            .chain(&gateway.outbound)
            .chain(&gateway.dns)
    };
    let rule = |socket: &SocketAddr, port, proto, action| Acl {
        addr: IpNet::from(socket.ip()),
        port,
        proto,
        action,
        id: 0,
    };
    let trusted = listeners().map(|l| rule(l, PortRange::ANY, AclProto::Any, AclAction::Trusted));
    let audited = listeners().flat_map(|l| {
        [AclProto::Tcp, AclProto::Udp]
            .map(|proto| rule(l, PortRange::one(l.port()), proto, AclAction::Audit))
    });
    trusted.chain(audited).collect()
}

/// The map key of an entry, and its kind.
pub fn nat_key(entry: &Nat) -> (NatKey, u32) {
    let (addr, port, kind) = target(entry.to);
    let key = NatKey {
        daddr: addr.map_or([0; 16], wide),
        dport: port.to_be_bytes(),
        proto: proto(entry.proto),
        dir: match entry.direction {
            Direction::Ingress => dir::INGRESS,
            Direction::Egress => dir::EGRESS,
        },
        v6: u8::from(entry.family() == Family::Ipv6),
        sys: match entry.system {
            System::Mesh => sys::MESH,
            System::E4lb => sys::E4LB,
        },
        bank: 0,
        pad: 0,
    };
    (key, kind)
}

/// Address, port (0 for any) and kind of a destination.
fn target(to: NatTarget) -> (Option<IpAddr>, u16, u32) {
    match to {
        NatTarget::AddrPort(socket) => (Some(socket.ip()), socket.port(), nat::kind::ADDR_PORT),
        NatTarget::Addr(addr) => (Some(addr), 0, nat::kind::ADDR),
        NatTarget::Port(port) => (None, port, nat::kind::PORT),
        NatTarget::Any => (None, 0, nat::kind::ANY),
    }
}

fn proto(proto: NatProto) -> u8 {
    match proto {
        NatProto::Tcp => IpProto::TCP.0,
        NatProto::Udp => IpProto::UDP.0,
    }
}

fn nat_value(entry: &Nat, is_down: impl Fn(SocketAddr) -> bool) -> NatValue {
    let source = match entry.source {
        Source::Auto => 0,
        Source::Client => option::SOURCE_CLIENT,
        Source::Vip => option::SOURCE_VIP,
    };
    let reset = match entry.on_removed {
        OnRemoved::Drain => 0,
        OnRemoved::Reset => option::RESET,
    };
    let mut value = NatValue {
        ep_cnt: entry.endpoints.len().min(MAX_ENDPOINTS) as u16,
        select: match entry.select {
            Select::Maglev => select::MAGLEV,
            Select::RoundRobin => select::ROUND_ROBIN,
        },
        options: source | reset,
        ..NatValue::ZERO
    };
    for (to, from) in value.endpoints.iter_mut().zip(&entry.endpoints) {
        let is_down = is_down(from.addr);
        let checked = match (&entry.health, is_down) {
            (None, _) => 0,
            (Some(_), false) => endpoint_flag::CHECKED,
            (Some(_), true) => endpoint_flag::CHECKED | endpoint_flag::DOWN,
        };
        *to = NatEndpoint {
            addr: wide(from.addr.ip()),
            port: from.addr.port().to_be_bytes(),
            weight: from.weight,
            active: u8::from(from.active && !is_down),
            flags: checked,
            ..NatEndpoint::ZERO
        };
    }
    let used = usize::from(value.ep_cnt);
    value.usable = u8::from(nat::maglev(&mut value.table, &value.endpoints[..used]));
    value
}

#[cfg(test)]
mod tests;
