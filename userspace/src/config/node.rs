//! `[node]` and `[[interface]]`: the host, and where packets are taken.

use std::net::SocketAddr;
use std::path::PathBuf;

use globset::{Glob, GlobBuilder};
use serde::{Serialize, Serializer};

use super::address::socket;
use super::reader::Table;
use super::report::{ValueError, quoted};
use super::values::{absolute_path, or_off, parsed, text, words};

words! {
    /// How much is logged.
    LogLevel is "log level" {
        /// Only what stops something from working.
        Error = "error",
        /// Also what will need attention.
        Warn = "warn",
        /// Also what the daemon does.
        Info = "info",
        /// Also why it does it.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// How the log is written.
    LogFormat is "log format" {
        /// One readable line a record.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// What happens to flows that cannot be judged.
    Fail is "value" {
        /// They pass.
        Open = "open",
        /// They are dropped.
        Closed = "closed",
    }
}

/// `[node]`: this host and its daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Name in logs, metrics and events. Default: the host's name.
    pub name: String,
    /// Absolute path under which maps and links are pinned; mounted if it is not.
    /// Default: `/sys/fs/bpf/fsm`.
    pub bpffs: PathBuf,
    /// Absolute path of the control socket, made with mode 0600.
    /// Default: `/run/fsm-fastpath.sock`.
    pub api: PathBuf,
    /// Where metrics are served; `None` (written `""`) is off. Default: `127.0.0.1:9478`.
    pub metrics: Option<SocketAddr>,
    /// Log level; the environment's `RUST_LOG` goes before it. Default: `info`.
    pub log: LogLevel,
    /// Log format. Default: `text`.
    pub format: LogFormat,
    /// What happens to flows that cannot be judged. Default: `open`.
    pub fail: Fail,
}

impl Node {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
        Self {
            name: table
                .get("name", |value| text(value, node_name))
                .unwrap_or_else(host_name),
            bpffs: table
                .get("bpffs", |value| text(value, absolute_path))
                .unwrap_or_else(|| "/sys/fs/bpf/fsm".into()),
            api: table
                .get("api", |value| text(value, socket_path))
                .unwrap_or_else(|| "/run/fsm-fastpath.sock".into()),
            metrics: table
                .get("metrics", or_off(socket))
                .unwrap_or_else(|| Some(SocketAddr::from(([127, 0, 0, 1], 9478)))),
            log: table.get("log", parsed).unwrap_or(LogLevel::Info),
            format: table.get("format", parsed).unwrap_or(LogFormat::Text),
            fail: table.get("fail", parsed).unwrap_or(Fail::Open),
        }
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    node_name(name.trim()).unwrap_or_else(|_| "node".to_owned())
}

fn node_name(text: &str) -> Result<String, ValueError> {
    let printable = |c: char| !c.is_control() && !c.is_whitespace();
    match !text.is_empty() && text.len() <= 253 && text.chars().all(printable) {
        true => Ok(text.to_owned()),
        false => Err(ValueError::new(
            format!("{} cannot be a name", quoted(text)),
            "1 to 253 characters without blanks",
        )),
    }
}

fn socket_path(text: &str) -> Result<PathBuf, ValueError> {
    /// `sun_path` of `sockaddr_un`, less its final zero.
    const LONGEST: usize = 107;
    match text.len() > LONGEST {
        true => Err(ValueError::new(
            "is too long for a Unix socket",
            format!("an absolute path of at most {LONGEST} bytes"),
        )),
        false => absolute_path(text),
    }
}

words! {
    /// What an interface faces.
    Role is "role" {
        /// The network.
        Uplink = "uplink",
        /// One app.
        Endpoint = "endpoint",
    }
}

words! {
    /// Which end of an app's veth the programs sit on.
    Attach is "place" {
        /// The host's end.
        Host = "host",
        /// The app's end, inside its network namespace (xnet's way).
        Inside = "inside",
    }
}

words! {
    /// How XDP is attached.
    XdpMode is "XDP mode" {
        /// Native where the driver can, else generic.
        Auto = "auto",
        /// In the driver, or not at all.
        Native = "native",
        /// In the stack, after the socket buffer is made.
        Generic = "generic",
        /// No XDP program: TC only.
        Off = "off",
    }
}

/// An interface's exact name, or a glob over names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamePattern {
    glob: Glob,
    exact: bool,
}

impl NamePattern {
    /// The text as in the file.
    pub fn as_str(&self) -> &str {
        self.glob.glob()
    }

    /// Whether it names one interface, which must then exist.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether `name` is meant. The glob is compiled here: interfaces appear
    /// rarely, and a compiled matcher cannot be compared on reload.
    pub fn matches(&self, name: &str) -> bool {
        match self.exact {
            true => self.as_str() == name,
            false => self.glob.compile_matcher().is_match(name),
        }
    }
}

impl std::fmt::Display for NamePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for NamePattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        /// The kernel's `IFNAMSIZ`, less its final zero.
        const LONGEST: usize = 15;
        let bad = |what: String| {
            let allowed = "an interface name of 1 to 15 bytes, or a glob as veth-*";
            ValueError::new(what, allowed)
        };
        let exact = !text.contains(['*', '?', '[', ']', '{', '}', '\\']);
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if text.is_empty() || text.contains(odd) || matches!(text, "." | "..") {
            return Err(bad(format!("{} cannot be a name", quoted(text))));
        }
        if exact && text.len() > LONGEST {
            return Err(bad(format!("{} is too long", quoted(text))));
        }
        let glob = GlobBuilder::new(text).build();
        let glob = glob.map_err(|error| bad(format!("glob {}: {}", quoted(text), error.kind())))?;
        Ok(Self { glob, exact })
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// `[[interface]]`: where packets are taken. An exact name goes before a glob,
/// and of two globs the first in the file counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Exact name, or a glob, which also takes interfaces that appear later. Required.
    pub name: NamePattern,
    /// What it faces. Required.
    pub role: Role,
    /// How XDP is attached. Default: `auto` on an uplink, `off` on an endpoint,
    /// where native XDP would switch the peer's TSO off.
    pub xdp: XdpMode,
    /// Which end of the app's veth. Default: `host`.
    pub attach: Attach,
    /// The app's namespace, as a path; a bare name in the file is one of
    /// `ip netns`. Required with `attach = "inside"`, refused without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
}

impl Interface {
    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let name = table.need("name", parsed);
        let role = table.need("role", parsed);
        let xdp = table.get("xdp", parsed);
        let attach = table.get("attach", parsed).unwrap_or(Attach::Host);
        let netns = table.get("netns", |value| text(value, netns));
        match attach {
            Attach::Inside if role == Some(Role::Uplink) => {
                let error = ValueError::new("an uplink has no inside", "role = \"endpoint\"");
                table.refuse("attach", &error);
            }
            Attach::Inside if !table.has("netns") => {
                let what = "missing with attach = \"inside\"";
                let allowed = "the namespace the interface is in: a name or a path";
                table.refuse("netns", &ValueError::new(what, allowed));
            }
            Attach::Host if table.has("netns") => {
                let error = ValueError::new(
                    "is of no use with attach = \"host\"",
                    "no netns, or attach = \"inside\"",
                );
                table.refuse("netns", &error);
            }
            _ => {}
        }
        let role = role?;
        Some(Self {
            name: name?,
            role,
            xdp: xdp.unwrap_or(match role {
                Role::Uplink => XdpMode::Auto,
                Role::Endpoint => XdpMode::Off,
            }),
            attach,
            netns,
        })
    }
}

fn netns(text: &str) -> Result<PathBuf, ValueError> {
    let allowed = "a name of `ip netns`, or an absolute path";
    if text.starts_with('/') {
        return absolute_path(text);
    }
    match text.is_empty() || text.contains(['/', '\0']) || matches!(text, "." | "..") {
        true => {
            let what = format!("{} cannot be a namespace", quoted(text));
            Err(ValueError::new(what, allowed))
        }
        false => Ok(PathBuf::from("/run/netns").join(text)),
    }
}
