//! Changes a configuration file as `--save` asks, and nothing else in it:
//! comments, order and spacing stay.
//!
//! A file is only replaced by one that [`parse`] accepts, and in one step, so
//! that a reload at any moment finds the old text or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml_edit::{
    Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, TomlError, Value,
};

use super::balance::ANNOUNCE_S;
use super::flags::bit;
use super::{
    Acl, AclProto, Config, ConfigErrors, Direction, DpiMode, Endpoint, Family, Health, Nat,
    NatProto, NatTarget, OnRemoved, PortRange, Select, Source, System, ValueError, parse,
};

/// Why a file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is already wrong, or would be.
    #[error("not saved: {0}")]
    Config(#[from] ConfigErrors),
    /// The two TOML parsers do not agree about it.
    #[error("not saved: {}: {cause}", file.display())]
    Syntax {
        /// The configuration.
        file: PathBuf,
        /// What the editing parser refuses.
        cause: Box<TomlError>,
    },
    /// The argument cannot be.
    #[error("not saved: {0}")]
    Value(#[from] ValueError),
    /// The file system refuses.
    #[error("{}: cannot be {doing}: {cause}", file.display())]
    Io {
        /// The file it happened to.
        file: PathBuf,
        /// `read` or `written`.
        doing: &'static str,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// Adds a rule, or changes the action and id of the one with its key.
/// `false`: the file says so already.
pub fn add_acl(file: &Path, rule: &Acl) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let Some(at) = config.acl.iter().position(|old| old.key() == rule.key()) else {
            push(doc, "acl", acl_keys(rule));
            return Ok(true);
        };
        if config.acl[at] == *rule {
            return Ok(false);
        }
        change(doc, "acl", at, acl_keys(rule));
        Ok(true)
    })
}

/// Removes the rule with this key. `false`: there is none.
pub fn del_acl(
    file: &Path,
    addr: IpNet,
    port: PortRange,
    proto: AclProto,
) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let key = (addr, port, proto);
        let at = config.acl.iter().position(|rule| rule.key() == key);
        Ok(at.is_some_and(|at| remove(doc, "acl", at)))
    })
}

/// Adds an entry, or gives the one for the same flows these endpoints.
/// `false`: the file says so already.
pub fn add_nat(file: &Path, entry: &Nat) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let same = |old: &Nat| old.key() == entry.key();
        let Some(at) = config.nat.iter().position(same) else {
            push(doc, "nat", nat_keys(entry));
            return Ok(true);
        };
        if config.nat[at] == *entry {
            return Ok(false);
        }
        change(doc, "nat", at, nat_keys(entry));
        Ok(true)
    })
}

/// Removes the entries for these flows; without `family`, those of both.
/// `false`: there is none.
pub fn del_nat(
    file: &Path,
    system: System,
    direction: Direction,
    proto: NatProto,
    to: NatTarget,
    family: Option<Family>,
) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let meant = |old: &Nat| {
            (old.system, old.direction, old.proto, old.to) == (system, direction, proto, to)
                && family.is_none_or(|family| old.family() == family)
        };
        let mut removed = false;
        for at in (0..config.nat.len()).rev() {
            removed |= meant(&config.nat[at]) && remove(doc, "nat", at);
        }
        Ok(removed)
    })
}

/// Sets a flag of `fsm_xcfg` by name. `false`: it is set so already, by the
/// file or by default.
pub fn set_flag(file: &Path, family: Family, name: &str, on: bool) -> Result<bool, EditError> {
    bit(name)?;
    edit(file, |config, doc| {
        if config.flags.of(family).get(name)? == on {
            return Ok(false);
        }
        let flags = doc.entry("flags").or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let flags = flags.as_table_like_mut();
        let section = flags.map(|flags| {
            let empty = Item::Table(Table::new());
            flags.entry(family.as_str()).or_insert(empty)
        });
        match section.and_then(Item::as_table_like_mut) {
            Some(section) => set(section, name, on.into()),
            None => return Ok(false),
        }
        Ok(true)
    })
}

/// Sets `dpi.mode`. `false`: it is so already, by the file or by default.
pub fn set_dpi_mode(file: &Path, mode: DpiMode) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        if config.dpi.mode == mode {
            return Ok(false);
        }
        let dpi = doc
            .entry("dpi")
            .or_insert_with(|| Item::Table(Table::new()));
        match dpi.as_table_like_mut() {
            Some(dpi) => set(dpi, "mode", mode.to_string().into()),
            None => return Ok(false),
        }
        Ok(true)
    })
}

/// Puts an address into `trace.ips`, or takes it out. `false`: it is so already.
pub fn set_trace_ip(file: &Path, ip: IpAddr, on: bool) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let at = config.trace.ips.iter().position(|old| *old == ip);
        Ok(set_in_list(doc, "ips", at, ip.to_string().into(), on))
    })
}

/// Puts a port into `trace.ports`, or takes it out. `false`: it is so already.
pub fn set_trace_port(file: &Path, port: u16, on: bool) -> Result<bool, EditError> {
    edit(file, |config, doc| {
        let at = config.trace.ports.iter().position(|old| *old == port);
        Ok(set_in_list(doc, "ports", at, i64::from(port).into(), on))
    })
}

fn set_in_list(
    doc: &mut DocumentMut,
    key: &str,
    at: Option<usize>,
    value: Value,
    on: bool,
) -> bool {
    let trace = doc
        .entry("trace")
        .or_insert_with(|| Item::Table(Table::new()));
    let list = trace.as_table_like_mut().map(|trace| {
        trace
            .entry(key)
            .or_insert_with(|| Item::Value(Array::new().into()))
    });
    let Some(list) = list.and_then(Item::as_array_mut) else {
        return false;
    };
    match (at, on) {
        (None, true) => list.push(value),
        (Some(at), false) => drop(list.remove(at)),
        _ => return false,
    }
    true
}

fn edit(
    file: &Path,
    change: impl FnOnce(&Config, &mut DocumentMut) -> Result<bool, EditError>,
) -> Result<bool, EditError> {
    // Renaming over a link would leave the file behind it as it was.
    let file = &std::fs::canonicalize(file).map_err(io_error(file, "read"))?;
    let text = std::fs::read_to_string(file).map_err(io_error(file, "read"))?;
    let config = parse(&text, file)?;
    let doc = text.parse::<DocumentMut>();
    let mut doc = doc.map_err(|cause| EditError::Syntax {
        file: file.clone(),
        cause: Box::new(cause),
    })?;
    if !change(&config, &mut doc)? {
        return Ok(false);
    }
    let text = doc.to_string();
    parse(&text, file)?;
    replace(file, &text).map_err(io_error(file, "written"))?;
    Ok(true)
}

fn io_error(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> EditError {
    let file = file.to_owned();
    move |cause| EditError::Io { file, doing, cause }
}

/// Puts `text` in the file's place, with its mode and, where allowed, its owner.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = write_like(file, &temporary, text).and_then(|()| {
        std::fs::rename(&temporary, file)?;
        File::open(folder)?.sync_all()
    });
    if written.is_err() {
        // Gone already if the rename was done; nothing else can be mended here.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write_like(file: &Path, temporary: &Path, text: &str) -> io::Result<()> {
    let old = std::fs::metadata(file)?;
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    new.write_all(text.as_bytes())?;
    // Only root may give files away; without that the mode alone is kept.
    let _ = std::os::unix::fs::fchown(&new, Some(old.uid()), Some(old.gid()));
    new.set_permissions(std::fs::Permissions::from_mode(old.mode() & 0o7777))?;
    new.sync_all()
}

type Keys = Vec<(&'static str, Option<Value>)>;

/// The keys of a rule; `None` where the default says it.
fn acl_keys(rule: &Acl) -> Keys {
    let addr = match rule.addr.prefix_len() == rule.addr.max_prefix_len() {
        true => rule.addr.addr().to_string(),
        false => rule.addr.to_string(),
    };
    let port = match rule.port.single() {
        Some(port) => i64::from(port).into(),
        None => rule.port.to_string().into(),
    };
    vec![
        ("addr", Some(addr.into())),
        ("port", (!rule.port.is_any()).then_some(port)),
        ("proto", Some(rule.proto.as_str().into())),
        ("action", Some(rule.action.as_str().into())),
        ("id", (rule.id != 0).then(|| i64::from(rule.id).into())),
    ]
}

fn nat_keys(entry: &Nat) -> Keys {
    let endpoints: Array = entry.endpoints.iter().map(endpoint).collect();
    let select = (entry.select != Select::Maglev).then(|| entry.select.as_str().into());
    vec![
        ("direction", Some(entry.direction.as_str().into())),
        ("proto", Some(entry.proto.as_str().into())),
        ("to", Some(entry.to.to_string().into())),
        ("endpoints", Some(endpoints.into())),
        ("select", select),
        (
            "system",
            (entry.system != System::Mesh).then(|| entry.system.as_str().into()),
        ),
        ("interface", entry.interface.clone().map(Value::from)),
        (
            "source",
            (entry.source != Source::Auto).then(|| entry.source.as_str().into()),
        ),
        (
            "announce_s",
            (entry.announce_s != ANNOUNCE_S).then(|| i64::from(entry.announce_s).into()),
        ),
        (
            "on_removed",
            (entry.on_removed != OnRemoved::Drain).then(|| entry.on_removed.as_str().into()),
        ),
        ("health", entry.health.as_ref().map(health)),
    ]
}

fn health(health: &Health) -> Value {
    let default = Health::new(health.kind);
    let mut table = InlineTable::new();
    table.insert("kind", health.kind.as_str().into());
    if health.path != default.path {
        table.insert("path", health.path.as_str().into());
    }
    if health.expect != default.expect {
        table.insert("expect", health.expect.to_string().into());
    }
    for (key, value, default) in [
        ("interval_s", health.interval_s, default.interval_s),
        ("timeout_s", health.timeout_s, default.timeout_s),
        ("rise", health.rise, default.rise),
        ("fall", health.fall, default.fall),
    ] {
        if value != default {
            table.insert(key, i64::from(value).into());
        }
    }
    if let Some(port) = health.port {
        table.insert("port", i64::from(port).into());
    }
    table.into()
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let mut table = InlineTable::new();
    table.insert("addr", endpoint.addr.to_string().into());
    table.insert("weight", i64::from(endpoint.weight).into());
    if !endpoint.active {
        table.insert("active", false.into());
    }
    table.into()
}

/// Sets a key and leaves the comment behind its value.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        _ => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// Appends an entry to a list, be it `[[key]]` or `key = [{ … }]`.
fn push(doc: &mut DocumentMut, key: &str, keys: Keys) {
    let keys = keys
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    match doc.get_mut(key) {
        Some(Item::Value(Value::Array(list))) => {
            let mut entry = Value::from(keys.collect::<InlineTable>());
            if let Some(last) = list.iter().last() {
                *entry.decor_mut() = last.decor().clone();
            }
            list.push_formatted(entry);
        }
        item => {
            let mut entry = Table::new();
            for (key, value) in keys {
                entry.insert(key, Item::Value(value));
            }
            match item {
                Some(Item::ArrayOfTables(list)) => list.push(entry),
                _ => {
                    entry.decor_mut().set_prefix("\n");
                    let mut list = ArrayOfTables::new();
                    list.push(entry);
                    doc.insert(key, Item::ArrayOfTables(list));
                }
            }
        }
    }
}

/// Sets the keys of an entry, where they differ.
fn change(doc: &mut DocumentMut, key: &str, at: usize, keys: Keys) {
    let entry: Option<&mut dyn TableLike> = match doc.get_mut(key) {
        Some(Item::ArrayOfTables(list)) => list.get_mut(at).map(|table| table as _),
        Some(Item::Value(Value::Array(list))) => list
            .get_mut(at)
            .and_then(Value::as_inline_table_mut)
            .map(|table| table as _),
        _ => None,
    };
    let Some(entry) = entry else { return };
    for (key, value) in keys {
        match value {
            Some(value) => set(entry, key, value),
            None => {
                entry.remove(key);
            }
        }
    }
}

fn remove(doc: &mut DocumentMut, key: &str, at: usize) -> bool {
    match doc.get_mut(key) {
        Some(Item::ArrayOfTables(list)) => {
            list.remove(at);
            true
        }
        Some(Item::Value(Value::Array(list))) => {
            list.remove(at);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
