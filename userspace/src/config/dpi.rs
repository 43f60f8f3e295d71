//! `[dpi]`: inspection, its policy, signatures and meters.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use toml::de::DeValue;

use super::acl::AclProto;
use super::address::network;
use super::reader::Table;
use super::report::{ValueError, quoted};
use super::values::{ByteSize, PortRange, byte_size, is_a, number, parsed, text, words};

words! {
    /// What inspection may do.
    DpiMode is "mode" {
        /// Nothing is inspected.
        Off = "off",
        /// Flows are recorded, to make a policy of them.
        Learn = "learn",
        /// Violations are reported.
        Monitor = "monitor",
        /// Violations are blocked.
        Protect = "protect",
    }
}

words! {
    /// Which flows are inspected.
    Inspect is "choice" {
        /// Those whose ACL action is audit.
        Audit = "audit",
        /// All.
        All = "all",
    }
}

words! {
    /// What a policy does with a flow.
    PolicyAction is "action" {
        /// Let it pass.
        Allow = "allow",
        /// Block it, in mode protect.
        Deny = "deny",
        /// Report it only.
        Violate = "violate",
    }
}

words! {
    /// What a signature is for.
    SignatureKind is "kind" {
        /// Data that must not leave.
        Dlp = "dlp",
        /// Attacks on web apps.
        Waf = "waf",
    }
}

words! {
    /// What a signature's match does.
    SignatureAction is "action" {
        /// Report it.
        Alert = "alert",
        /// Block the flow, in mode protect.
        Deny = "deny",
    }
}

/// One side of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Everyone.
    Any,
    /// An address or a network.
    Net(IpNet),
    /// A group of `[dpi.groups]`.
    Group(String),
    /// A domain name in lower case; `*` stands for any part of it.
    Fqdn(String),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Net(net) => net.fmt(f),
            Self::Group(name) | Self::Fqdn(name) => f.write_str(name),
        }
    }
}

impl FromStr for Peer {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let looks_like_address =
            text.contains([':', '/']) || text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let bad = || {
            let allowed = "any, a network, a group's name, a domain name (* as a wildcard)";
            ValueError::new(format!("{} cannot be a peer", quoted(text)), allowed)
        };
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
        match text {
            "" => Err(bad()),
            "any" => Ok(Self::Any),
            _ if looks_like_address => network(text).map(Self::Net),
            _ if !text
                .split('.')
                .all(|label| !label.is_empty() && label.chars().all(letter)) =>
            {
                Err(bad())
            }
            _ if text.contains(['.', '*']) => Ok(Self::Fqdn(text.to_ascii_lowercase())),
            _ => Ok(Self::Group(text.to_owned())),
        }
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Protocol and ports, as `tcp/8080`, `udp/any`, `any/53`, `icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProtoPorts {
    /// The protocol.
    pub proto: AclProto,
    /// Its ports.
    pub ports: PortRange,
}

impl std::fmt::Display for ProtoPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.proto, self.ports)
    }
}

impl FromStr for ProtoPorts {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let allow = |error: ValueError| ValueError {
            allowed: "\"tcp/8080\", \"tcp/8000-8099\", \"udp/any\", \"icmp\", \"any\"".to_owned(),
            ..error
        };
        let (proto, ports) = text.split_once('/').unwrap_or((text, "any"));
        let read = Self {
            proto: proto.parse().map_err(allow)?,
            ports: ports.parse().map_err(allow)?,
        };
        match read.proto == AclProto::Icmp && !read.ports.is_any() {
            true => Err(allow(ValueError::new("ICMP has no ports", ""))),
            false => Ok(read),
        }
    }
}

impl Serialize for ProtoPorts {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// `[[dpi.policy]]`: the first that matches a flow decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Who opens the flow. Default: any.
    pub from: Peer,
    /// To whom. Default: any.
    pub to: Peer,
    /// Destination ports; empty is any. Default: any.
    pub ports: Vec<ProtoPorts>,
    /// Detected protocols by name, in lower case; empty is any. Default: any.
    pub apps: Vec<String>,
    /// What to do. Required.
    pub action: PolicyAction,
}

impl Policy {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let from = table.get("from", parsed).unwrap_or(Peer::Any);
        let to = table.get("to", parsed).unwrap_or(Peer::Any);
        let ports = table.list("ports", parsed).unwrap_or_default();
        let apps = table.list("apps", |value| text(value, app_name));
        Some(Self {
            from,
            to,
            ports,
            apps: apps.unwrap_or_default(),
            action: table.need("action", parsed)?,
        })
    }
}

fn app_name(text: &str) -> Result<String, ValueError> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    match !text.is_empty() && text.chars().all(letter) {
        true => Ok(text.to_owned()),
        false => {
            let what = format!("{} cannot be a protocol's name", quoted(text));
            let error = ValueError::new(what, "lower-case names as http, tls, dns");
            let lower = text.to_lowercase();
            Err(match !lower.is_empty() && lower.chars().all(letter) {
                true => error.or_rather(lower),
                false => error,
            })
        }
    }
}

/// Where a signature's rules are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Rules {
    /// In a file; a relative path starts at the configuration's folder.
    File(PathBuf),
    /// In the configuration, one rule an entry.
    Inline(Vec<String>),
}

/// `[[dpi.signature]]`: a set of DLP or WAF rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Its name in events and metrics; each only once. Required.
    pub name: String,
    /// What it is for. Required.
    pub kind: SignatureKind,
    /// A file's path, or a list of rules. Required.
    pub rules: Rules,
    /// What a match does. Default: `alert`.
    pub action: SignatureAction,
}

impl Signature {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let name = table.need("name", |value| text(value, not_empty));
        let kind = table.need("kind", parsed);
        let rules = table.need("rules", rules);
        let action = table.get("action", parsed);
        Some(Self {
            name: name?,
            kind: kind?,
            rules: rules?,
            action: action.unwrap_or(SignatureAction::Alert),
        })
    }
}

fn not_empty(text: &str) -> Result<String, ValueError> {
    match text.trim().is_empty() || text.contains('\0') {
        true => Err(ValueError::new("is empty", "some text")),
        false => Ok(text.to_owned()),
    }
}

fn rules(value: &DeValue<'_>) -> Result<Rules, ValueError> {
    let allowed = "a file's path, or a list of rules";
    let wrong = |what: String| ValueError::new(what, allowed);
    match value {
        DeValue::Array(items) if items.is_empty() => Err(wrong("is empty".to_owned())),
        DeValue::Array(items) => items
            .iter()
            .map(|item| text(item.get_ref(), not_empty))
            .collect::<Result<_, _>>()
            .map(Rules::Inline)
            .map_err(|error| wrong(format!("a rule in the list {}", error.what))),
        DeValue::String(path) => not_empty(path)
            .map(|path| Rules::File(path.into()))
            .map_err(|error| wrong(error.what)),
        _ => Err(wrong(is_a(value))),
    }
}

/// `[dpi.meter]`: limits for each destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Meter {
    /// SYN packets a second; 0 is off. Default: 0.
    pub syn_flood_pps: u32,
    /// New sessions a second; 0 is off. Default: 0.
    pub sessions_per_s: u32,
    /// Packets a second; 0 is off. Default: 0.
    pub packets_per_s: u32,
}

impl Meter {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            syn_flood_pps: table.number("syn_flood_pps", 0..=u32::MAX, 0),
            sessions_per_s: table.number("sessions_per_s", 0..=u32::MAX, 0),
            packets_per_s: table.number("packets_per_s", 0..=u32::MAX, 0),
        }
    }
}

/// `[dpi]`: deep packet inspection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dpi {
    /// What inspection may do. Default: `off`.
    pub mode: DpiMode,
    /// CPUs with one pinned worker each; empty leaves the choice to the daemon.
    /// Default: empty.
    pub cores: Vec<u32>,
    /// Which flows are inspected. Default: `audit`.
    pub inspect: Inspect,
    /// Sessions of all workers together, 1024 to 16777216. Default: 1000000.
    pub max_sessions: u32,
    /// Bytes of a flow's direction that are inspected before the flow is left
    /// to the kernel, 1KiB to 1GiB. Default: 1MiB.
    pub stream_depth: ByteSize,
    /// Groups of networks, by name, for the policy. Default: none.
    pub groups: BTreeMap<String, Vec<IpNet>>,
    /// The policy, in order. Default: empty.
    pub policy: Vec<Policy>,
    /// The signatures. Default: none.
    pub signature: Vec<Signature>,
    /// The meters. Default: all off.
    pub meter: Meter,
    /// Modes learn and monitor: bytes of a frame that a worker gets, 128 to 65535; 0: all, in frames as they are on a
    /// wire. Less is cheaper, and enough to recognise protocols. Default: 0.
    pub snap: u16,
    /// Frames of packet memory for each worker, 256 to 65536; a power of two. Default: 4096.
    pub frames: u32,
}

impl Dpi {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        let cores = table.list("cores", |value| number(value, &(0..=u32::MAX)));
        Self {
            mode: table.get("mode", parsed).unwrap_or(DpiMode::Off),
            cores: cores.unwrap_or_default(),
            inspect: table.get("inspect", parsed).unwrap_or(Inspect::Audit),
            max_sessions: table.number("max_sessions", 1024..=16 << 20, 1_000_000),
            stream_depth: table
                .get("stream_depth", stream_depth)
                .unwrap_or(ByteSize(1 << 20)),
            groups: table.section("groups", |groups| {
                groups.named_lists(group_name, |value| text(value, network))
            }),
            policy: table.sections("policy", Policy::read),
            signature: table.sections("signature", Signature::read),
            meter: table.section("meter", Meter::read),
            snap: table.get("snap", snap).unwrap_or(0),
            frames: table.get("frames", frames).unwrap_or(4096),
        }
    }
}

fn stream_depth(value: &DeValue<'_>) -> Result<ByteSize, ValueError> {
    let size = byte_size(value)?;
    match (1 << 10..=1 << 30).contains(&size.0) {
        true => Ok(size),
        false => Err(ValueError::new(
            format!("{size} is out of range"),
            "\"1KiB\" to \"1GiB\"",
        )),
    }
}

fn snap(value: &DeValue<'_>) -> Result<u16, ValueError> {
    match number(value, &(0..=u16::MAX))? {
        bytes @ 1..128 => Err(ValueError::new(
            format!("{bytes} is out of range"),
            "0, or 128 to 65535",
        )),
        bytes => Ok(bytes),
    }
}

fn frames(value: &DeValue<'_>) -> Result<u32, ValueError> {
    let frames = number(value, &(256..=65536))?;
    match u32::is_power_of_two(frames) {
        true => Ok(frames),
        false => Err(ValueError::new(
            format!("{frames} is not a power of two"),
            "256, 512, 1024, … 65536",
        )),
    }
}

fn group_name(name: &str) -> Result<(), ValueError> {
    match name.parse::<Peer>() {
        Ok(Peer::Group(_)) => Ok(()),
        _ => {
            let what = format!("{} cannot be a group's name", quoted(name));
            Err(ValueError::new(what, "letters, digits, - and _"))
        }
    }
}
