//! What a `[[nat]]` entry says beside its destination and endpoints: the load balancer's keys, health, and what
//! becomes of flows whose endpoint is gone.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::nat::{Direction, Endpoint, NatTarget};
use super::node::NamePattern;
use super::reader::Table;
use super::report::{ValueError, quoted};
use super::values::{parsed, port, text, words};

words! {
    /// Whose entry it is.
    System is "system" {
        /// Apps' traffic, taken to this node's gateway.
        Mesh = "mesh",
        /// A load balancer: a virtual address on the uplink.
        E4lb = "e4lb",
    }
}

words! {
    /// The source address that an endpoint sees.
    Source is "source" {
        /// The client's, unless the endpoint is behind the device that the client came by: then the virtual one.
        Auto = "auto",
        /// The client's. Endpoints have to send their answers through this node.
        Client = "client",
        /// The virtual address, with a port of its own for each flow.
        Vip = "vip",
    }
}

words! {
    /// What becomes of flows whose endpoint is no longer in the entry.
    OnRemoved is "value" {
        /// They go on until they end.
        Drain = "drain",
        /// TCP is reset at its next packet, UDP finds another endpoint.
        Reset = "reset",
    }
}

words! {
    /// How an endpoint is probed.
    HealthKind is "kind of probe" {
        /// A TCP connection is accepted.
        Tcp = "tcp",
        /// An HTTP request is answered with an expected status.
        Http = "http",
    }
}

/// HTTP status codes, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl StatusRange {
    /// Whether `status` is within.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => self.first.fmt(f),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for StatusRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let allowed = "a status 100-599 as \"200\", or \"FIRST-LAST\" as \"200-399\"";
        let status = |text: &str| text.parse::<u16>().ok().filter(|s| (100..600).contains(s));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ValueError::new(
                format!("{} is no range of statuses", quoted(text)),
                allowed,
            )),
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// `health`: how the daemon finds out which endpoints take new flows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Health {
    /// Kind of probe. Required.
    pub kind: HealthKind,
    /// HTTP: the path asked for. Default: `/healthz`.
    pub path: String,
    /// HTTP: the statuses that are good. Default: `200-399`.
    pub expect: StatusRange,
    /// Seconds from one probe to the next, 1 to 3600. Default: 5.
    pub interval_s: u32,
    /// Seconds that a probe may take, 1 to 60. Default: 2.
    pub timeout_s: u32,
    /// Good probes in a row until an endpoint that was down is up, 1 to 100. Default: 2.
    pub rise: u32,
    /// Failed probes in a row until one that was up is down, 1 to 100. Default: 3.
    pub fall: u32,
    /// Port that is probed instead of the endpoint's own. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Health {
    /// Probes of a kind with the defaults.
    pub fn new(kind: HealthKind) -> Self {
        Self {
            kind,
            path: "/healthz".to_owned(),
            expect: StatusRange {
                first: 200,
                last: 399,
            },
            interval_s: 5,
            timeout_s: 2,
            rise: 2,
            fall: 3,
            port: None,
        }
    }

    fn read(table: &mut Table<'_>) -> Option<Self> {
        let kind = table.need("kind", parsed);
        let default = Self::new(kind.unwrap_or(HealthKind::Http));
        for key in ["path", "expect"] {
            if kind == Some(HealthKind::Tcp) && table.has(key) {
                let error = ValueError::new("is of no use with kind = \"tcp\"", "kind = \"http\"");
                table.refuse(key, &error);
            }
        }
        let path = table.get("path", |value| text(value, http_path));
        let expect = table.get("expect", parsed);
        let mut number = |key, max, default| table.number(key, 1..=max, default);
        let health = Self {
            path: path.unwrap_or(default.path),
            expect: expect.unwrap_or(default.expect),
            interval_s: number("interval_s", 3600, default.interval_s),
            timeout_s: number("timeout_s", 60, default.timeout_s),
            rise: number("rise", 100, default.rise),
            fall: number("fall", 100, default.fall),
            port: table.get("port", port),
            kind: default.kind,
        };
        kind.map(|_| health)
    }
}

/// `tcp`, `http` or `http:/path`, as the command line has it.
impl FromStr for Health {
    type Err = ValueError;

    fn from_str(word: &str) -> Result<Self, ValueError> {
        match word.split_once(':') {
            Some(("http", path)) => Ok(Self {
                path: http_path(path)?,
                ..Self::new(HealthKind::Http)
            }),
            _ => word
                .parse()
                .map(Self::new)
                .map_err(|error: ValueError| ValueError {
                    allowed: "tcp, http, http:/PATH".to_owned(),
                    ..error
                }),
        }
    }
}

fn http_path(text: &str) -> Result<String, ValueError> {
    let good = |c: char| c.is_ascii_graphic() && c != '#';
    match text.starts_with('/') && text.chars().all(good) {
        true => Ok(text.to_owned()),
        false => {
            let what = format!("{} is not the path of a request", quoted(text));
            Err(ValueError::new(what, "a path from /, as /healthz"))
        }
    }
}

/// The load balancer's keys of one entry, and those that every entry has.
pub(super) struct Extra {
    pub(super) system: System,
    pub(super) interface: Option<String>,
    pub(super) source: Source,
    pub(super) announce_s: u32,
    pub(super) on_removed: OnRemoved,
    pub(super) health: Option<Health>,
}

/// Default of `announce_s`.
pub(super) const ANNOUNCE_S: u32 = 30;

impl Extra {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let system = table.get("system", parsed).unwrap_or(System::Mesh);
        if system == System::Mesh {
            for key in ["interface", "source", "announce_s"] {
                if table.has(key) {
                    let what = "is of no use with system = \"mesh\"";
                    table.refuse(key, &ValueError::new(what, "system = \"e4lb\""));
                }
            }
        }
        let has_health = table.has("health");
        Self {
            system,
            interface: table.get("interface", |value| text(value, device)),
            source: table.get("source", parsed).unwrap_or(Source::Auto),
            announce_s: table.number("announce_s", 0..=86_400, ANNOUNCE_S),
            on_removed: table.get("on_removed", parsed).unwrap_or(OnRemoved::Drain),
            health: table.section("health", |table| {
                has_health.then(|| Health::read(table)).flatten()
            }),
        }
    }
}

/// An exact name of a device.
pub(super) fn device(text: &str) -> Result<String, ValueError> {
    let pattern = text.parse::<NamePattern>()?;
    match pattern.is_exact() {
        true => Ok(text.to_owned()),
        false => Err(ValueError::new(
            format!("{} is a glob", quoted(text)),
            "the exact name of an uplink",
        )),
    }
}

/// What a load balancer's entry must be; the key that is wrong, and how.
pub(super) fn check(
    direction: Direction,
    to: &NatTarget,
    endpoints: &[Endpoint],
) -> Result<(), (&'static str, ValueError)> {
    if direction != Direction::Ingress {
        let error = ValueError::new("a load balancer only receives", "ingress");
        return Err(("direction", error));
    }
    let addr = match to {
        NatTarget::AddrPort(socket) => socket.ip(),
        NatTarget::Addr(addr) => *addr,
        NatTarget::Port(_) | NatTarget::Any => {
            let what = format!("{to} has no address");
            return Err(("to", ValueError::new(what, "\"VIP:port\", \"VIP\"")));
        }
    };
    if addr.is_multicast() || addr.is_loopback() || addr == IpAddr::from([255; 4]) {
        let what = format!("{addr} cannot be a virtual address");
        return Err(("to", ValueError::new(what, "a unicast address")));
    }
    match endpoints.iter().find(|endpoint| endpoint.addr.ip() == addr) {
        Some(endpoint) => {
            let what = format!("{} is the virtual address itself", endpoint.addr);
            Err((
                "endpoints",
                ValueError::new(what, "addresses of hosts or apps"),
            ))
        }
        None => Ok(()),
    }
}
