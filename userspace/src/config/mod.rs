//! `node.toml`: from text to a checked [`Config`].
//!
//! `reader` walks the TOML tables and `values`/`address` read single values;
//! each section has a struct and a `read` of its own; `check` looks for what
//! does not go together. All of them report to `report`, so that one run shows
//! every mistake with line, column and key. Nothing on the host is changed
//! here, and the only files that are looked at are those of signatures and of
//! `acl_files`.

mod acl;
mod address;
mod balance;
mod check;
mod dpi;
pub mod edit;
pub mod flags;
mod list;
mod nat;
mod node;
mod pending;
mod protect;
mod reader;
mod report;
mod runtime;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use toml::de::DeTable;

pub use acl::{Acl, AclAction, AclProto};
pub use address::{address, listener, network, socket};
pub use balance::{Health, HealthKind, OnRemoved, Source, StatusRange, System};
pub use dpi::{
    Dpi, DpiMode, Inspect, Meter, Peer, Policy, PolicyAction, ProtoPorts, Rules, Signature,
    SignatureAction, SignatureKind,
};
pub use flags::{FLAG_NAMES, FlagSet, Flags};
pub use list::AclList;
pub use nat::{Direction, Endpoint, Gateway, Nat, NatKey, NatProto, NatTarget, Select};
pub use node::{Attach, Fail, Interface, LogFormat, LogLevel, NamePattern, Node, Role, XdpMode};
pub use protect::Protect;
pub use report::{ConfigErrors, Place, Problem, ValueError, nearest};
pub use runtime::{Conntrack, Events, Forward, Trace};
pub use values::{ByteSize, Family, PortRange};

use reader::Table;
use report::{Lines, Places, Report};

/// A node's whole configuration, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// `[node]`
    pub node: Node,
    /// `[[interface]]`, in the order of the file.
    #[serde(rename = "interface")]
    pub interfaces: Vec<Interface>,
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[[nat]]`, without the entries that `[gateway]` stands for.
    pub nat: Vec<Nat>,
    /// `[[protect]]`
    pub protect: Vec<Protect>,
    /// `acl_files`: lists of rules, a line each; a relative path starts at the configuration's folder. Default: none.
    pub acl_files: Vec<PathBuf>,
    /// What they say. A rule of `[[acl]]` with the same address, port and protocol goes before.
    #[serde(skip)]
    pub acl_lists: Vec<Arc<AclList>>,
    /// `[[acl]]`, in the order of the file.
    pub acl: Vec<Acl>,
    /// `[flags]`
    pub flags: Flags,
    /// `[conntrack]`
    pub conntrack: Conntrack,
    /// `[forward]`
    pub forward: Forward,
    /// `[dpi]`
    pub dpi: Dpi,
    /// `[events]`
    pub events: Events,
    /// `[trace]`
    pub trace: Trace,
    #[serde(skip)]
    origin: Origin,
}

/// The file that a configuration came from.
#[derive(Debug, Clone, Default)]
struct Origin {
    file: PathBuf,
    hash: String,
    places: Places,
}

/// What the machine has, as far as a configuration can ask too much of it.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// CPUs are numbered below this.
    pub cpus: u32,
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
        let last = online.ok().and_then(|list| {
            let last = list.trim().rsplit([',', '-']).next()?;
            last.parse::<u32>().ok()
        });
        let counted = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            cpus: last.map_or_else(counted, |last| last + 1),
        }
    }
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let bytes = std::fs::read(path).map_err(|cause| ConfigErrors::Unreadable {
        file: path.to_owned(),
        cause,
    })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, path),
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let lines = Lines::of(&valid);
            let report = Report::new(&lines);
            let wrong = ValueError::new("not TOML: not UTF-8", "");
            report.add(valid.len(), "syntax", &wrong);
            Err(invalid(path, report.finish()))
        }
    }
}

/// Checks a text; `file` is where it came from, for messages and relative paths.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    parse_on(text, file, &Host::this())
}

/// [`parse`] for a given machine.
pub fn parse_on(text: &str, file: &Path, host: &Host) -> Result<Config, ConfigErrors> {
    let lines = Lines::of(text);
    let report = Report::new(&lines);
    let root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            report.add_syntax(&error);
            return Err(invalid(file, report.finish()));
        }
    };
    let mut config = Table::read_root(&root, &report, Config::read);
    config.origin = Origin {
        file: file.to_owned(),
        hash: fnv1a(text.as_bytes()),
        places: Places::of(root.get_ref(), &lines),
    };
    config.resolve_rules();
    let mut problems = report.finish();
    if problems.is_empty() {
        problems = config.read_lists();
    }
    if problems.is_empty() {
        problems = check::check(&config, host);
    }
    match problems.is_empty() {
        true => Ok(config),
        false => Err(invalid(file, problems)),
    }
}

fn invalid(file: &Path, mut problems: Vec<Problem>) -> ConfigErrors {
    problems.sort();
    ConfigErrors::Invalid {
        file: file.to_owned(),
        problems,
    }
}

impl Config {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            node: table.section("node", Node::read),
            interfaces: table.sections("interface", Interface::read),
            gateway: table.section("gateway", Gateway::read),
            nat: table.sections("nat", Nat::read),
            protect: table.sections("protect", Protect::read),
            acl_files: table
                .list("acl_files", |value| values::text(value, file_path))
                .unwrap_or_default(),
            acl_lists: Vec::new(),
            acl: table.sections("acl", Acl::read),
            flags: table.section("flags", Flags::read),
            conntrack: table.section("conntrack", Conntrack::read),
            forward: table.section("forward", Forward::read),
            dpi: table.section("dpi", Dpi::read),
            events: table.section("events", Events::read),
            trace: table.section("trace", Trace::read),
            origin: Origin::default(),
        }
    }

    fn resolve_rules(&mut self) {
        let folder = self.origin.file.parent().unwrap_or(Path::new(""));
        for signature in &mut self.dpi.signature {
            if let Rules::File(path) = &mut signature.rules {
                *path = folder.join(&path);
            }
        }
    }

    /// Reads the lists of rules.
    fn read_lists(&mut self) -> Vec<Problem> {
        let folder = self.origin.file.parent().unwrap_or(Path::new(""));
        let mut problems = Vec::new();
        let mut bytes_of_all = Vec::new();
        for (i, path) in self.acl_files.iter().enumerate() {
            let path = folder.join(path);
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let list = AclList::read(&path, &bytes, &mut problems);
                    self.acl_lists.push(Arc::new(list));
                    bytes_of_all.push(fnv1a(&bytes));
                }
                Err(cause) => {
                    let what = format!("{} cannot be read: {cause}", path.display());
                    let allowed = "a file; a relative path starts at the configuration's folder";
                    let path = format!("acl_files[{i}]");
                    problems.push(Problem {
                        file: None,
                        place: self.place(&path),
                        path,
                        text: ValueError::new(what, allowed).to_string(),
                    });
                }
            }
        }
        if !bytes_of_all.is_empty() {
            bytes_of_all.insert(0, self.origin.hash.clone());
            self.origin.hash = fnv1a(bytes_of_all.concat().as_bytes());
        }
        problems
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.origin.file
    }

    /// A short name of the exact bytes of the file and its lists: 16 hexadecimal digits.
    pub fn hash(&self) -> &str {
        &self.origin.hash
    }

    /// Where a key stands, by its path (`nat[0].to`, list entries from 0); for
    /// a key that is not in the file, the table around it.
    pub fn place(&self, path: &str) -> Place {
        self.origin.places.get(path)
    }

    /// Whether the file itself sets the key of this path.
    pub fn is_set(&self, path: &str) -> bool {
        self.origin.places.has(path)
    }

    /// `FILE:LINE:COL` of a key, for messages about it.
    pub fn at(&self, path: &str) -> String {
        format!("{}:{}", self.origin.file.display(), self.place(path))
    }

    /// What is wrong with a key on this host, said as mistakes of the file are.
    pub fn refused(&self, path: &str, error: &ValueError) -> ConfigErrors {
        let problem = Problem {
            file: None,
            place: self.place(path),
            path: path.to_owned(),
            text: error.to_string(),
        };
        invalid(&self.origin.file, vec![problem])
    }

    /// The entry for an interface of the host's own namespace: an exact name
    /// goes before a glob, else the first counts.
    pub fn interface_for(&self, name: &str) -> Option<&Interface> {
        if fsm_common::escalate::PAIR.contains(&name) {
            return None;
        }
        let mut hosts = self.interfaces.iter().filter(|i| i.netns.is_none());
        let exact = hosts
            .clone()
            .find(|i| i.name.is_exact() && i.name.matches(name));
        exact.or_else(|| hosts.find(|i| i.name.matches(name)))
    }

    /// Rules, those of the lists included.
    pub fn acl_count(&self) -> usize {
        let listed: usize = self.acl_lists.iter().map(|list| list.rules.len()).sum();
        self.acl.len() + listed
    }

    /// Every NAT entry: `[[nat]]`, then those that `[gateway]` stands for.
    pub fn all_nat(&self) -> Vec<Nat> {
        let mut entries = self.nat.clone();
        entries.extend(self.gateway.nat());
        entries
    }

    /// One line for each thing that is turned on and whose code comes later.
    pub fn not_built_yet(&self) -> Vec<String> {
        pending::not_built_yet(self)
    }
}

fn file_path(text: &str) -> Result<PathBuf, ValueError> {
    match text.trim().is_empty() {
        true => Err(ValueError::new("empty", "a file's path")),
        false => Ok(text.into()),
    }
}

/// FNV-1a, 64 bits: tells files apart, protects nothing.
fn fnv1a(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}
