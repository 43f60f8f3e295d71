//! What the command line asks of a running daemon: one JSON object a line over the Unix socket `node.api`,
//! answered by one line. Reading flows, counters and maps needs no daemon: that is done from the pins.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A question. Values are texts as in `node.toml`, checked by the daemon as the file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// The daemon's state: a [`Status`].
    Status,
    /// Read the file again, as SIGHUP does.
    Reload,
    /// Add an ACL entry, or change the one with this address, port and protocol.
    AclAdd(AclArgs),
    /// Remove an ACL entry (`action` and `id` do not matter).
    AclDel(AclArgs),
    /// Add a NAT entry, or change the one with this direction, protocol and destination.
    NatAdd(NatArgs),
    /// Remove a NAT entry (`endpoints` and `select` do not matter).
    NatDel(NatArgs),
    /// Set a flag of one family.
    CfgSet {
        /// `ipv4` or `ipv6`.
        family: String,
        /// Name of the flag.
        flag: String,
        /// On or off.
        on: bool,
        /// Write it to the configuration too.
        save: bool,
    },
    /// Trace an address or a port.
    TraceAdd(TraceArgs),
    /// Stop tracing it.
    TraceDel(TraceArgs),
    /// Announce a virtual address, or all: a list of [`Announced`].
    ArpAnnounce {
        /// The address.
        vip: Option<String>,
    },
    /// Open sessions of inspection: a list of [`crate::view::dpi::SessionRow`].
    DpiSessions {
        /// At most so many.
        limit: usize,
    },
    /// Protocols: a list of [`crate::view::dpi::AppRow`].
    DpiApps,
    /// Threats: a list of [`crate::view::dpi::ThreatRow`].
    DpiThreats,
    /// Show or set `dpi.mode`.
    DpiMode {
        /// The new one.
        mode: Option<String>,
        /// Write it to the configuration too.
        save: bool,
    },
    /// Remove everything and end.
    Down,
}

/// An ACL entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclArgs {
    /// Address or CIDR.
    pub addr: String,
    /// Port, range or `0`.
    pub port: String,
    /// `tcp`, `udp`, `icmp` or `any`.
    pub proto: String,
    /// `trusted`, `audit` or `deny`.
    pub action: String,
    /// Owner tag.
    pub id: u16,
    /// Write it to the configuration too.
    pub save: bool,
}

/// A NAT entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatArgs {
    /// `egress` or `ingress`.
    pub direction: String,
    /// `tcp` or `udp`.
    pub proto: String,
    /// `addr:port`, `addr`, `:port` or `any`.
    pub to: String,
    /// `addr:port`, or `addr:port@weight`.
    pub endpoints: Vec<String>,
    /// `maglev` or `round-robin`.
    pub select: String,
    /// `mesh` or `e4lb`.
    pub system: String,
    /// The uplink of a virtual address.
    pub interface: Option<String>,
    /// `auto`, `client` or `vip`.
    pub source: String,
    /// `drain` or `reset`.
    pub on_removed: String,
    /// `tcp`, `http` or `http:/path`; without it an entry keeps what it has.
    pub health: Option<String>,
    /// Write it to the configuration too.
    pub save: bool,
}

/// A virtual address that was announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The address.
    pub vip: String,
    /// The device.
    pub interface: String,
    /// The MAC that it has there.
    pub mac: String,
}

/// What to trace: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceArgs {
    /// Address.
    pub ip: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Write it to the configuration too.
    #[serde(default)]
    pub save: bool,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or why not, in one sentence.
    pub message: String,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
}

/// The daemon's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// `node.name`.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The configuration's file.
    pub config: PathBuf,
    /// Its hash.
    pub config_hash: String,
    /// Policy generation in the kernel.
    pub generation: u32,
    /// `node.fail`.
    pub fail: String,
    /// `dpi.mode`.
    pub mode: String,
    /// Whether the programs of an earlier daemon were taken over.
    pub adopted: bool,
    /// Interfaces with programs.
    pub interfaces: Vec<Interface>,
    /// Workers of inspection.
    #[serde(default)]
    pub workers: Vec<crate::view::worker::WorkerRow>,
    /// What is attached to the cgroup, if anything.
    pub original_dst: Option<PathBuf>,
}

/// One interface with programs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// `uplink` or `endpoint`.
    pub role: String,
    /// `native`, `generic` or `off`.
    pub xdp: String,
    /// `tcx` or `clsact`.
    pub tc: String,
    /// Ids of the kernel's links: XDP, TC ingress, TC egress; 0 where there is none.
    pub links: [u32; 3],
    /// How packets are sent to it past the stack: `peer`, `plain`, with `+xdp` where XDP can too.
    pub redirect: String,
}

/// What can go wrong in asking.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("{}: no daemon answers ({source}): start it with `fsm-fastpath --config FILE`", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It broke off.
    #[error("the daemon's answer cannot be read: {0}")]
    Broken(#[from] std::io::Error),
    /// Not JSON, or of another version.
    #[error("the daemon's answer cannot be understood: {0}")]
    Format(#[from] serde_json::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the daemon behind `socket`.
///
/// # Errors
/// See [`ApiError`].
pub fn ask(socket: &Path, request: &Request) -> Result<Response, ApiError> {
    let mut stream = UnixStream::connect(socket).map_err(|source| ApiError::Connect {
        path: socket.to_owned(),
        source,
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let response: Response = serde_json::from_str(&answer)?;
    if response.ok {
        Ok(response)
    } else {
        Err(ApiError::Refused(response.message))
    }
}
