//! Live changes: the daemon's configuration with one entry more or less, compiled anew. They last until the
//! next reload; with `save` they are written to the file first.

use std::{net::IpAddr, sync::Arc};

use crate::{
    api::{AclArgs, NatArgs, TraceArgs},
    config::{
        Acl, Config, Endpoint, Family, Interface, Nat, Role, System, ValueError, edit, listener,
        network,
    },
};

/// Why a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// An argument is wrong.
    #[error("{what}: {source}")]
    Value {
        /// Which.
        what: &'static str,
        /// How.
        source: ValueError,
    },
    /// The entry is a line of a list, which is others' to write.
    #[error(
        "{0} has this rule: take it out there, or remove it without --save until the next reload"
    )]
    InList(String),
    /// There is no such entry.
    #[error("there is no such entry")]
    NotThere,
    /// The file cannot be changed.
    #[error(transparent)]
    Edit(#[from] edit::EditError),
    /// Neither address nor port, or both.
    #[error("trace takes either an address or a port")]
    Trace,
}

type Result<T> = std::result::Result<T, ChangeError>;

fn value<T>(what: &'static str, result: std::result::Result<T, ValueError>) -> Result<T> {
    result.map_err(|source| ChangeError::Value { what, source })
}

fn rule(args: &AclArgs) -> Result<Acl> {
    Ok(Acl {
        addr: value("address", network(&args.addr))?,
        port: value("port", args.port.parse())?,
        proto: value("proto", args.proto.parse())?,
        action: value("action", args.action.parse())?,
        id: args.id,
    })
}

/// Adds a rule, or changes the one with its key.
///
/// # Errors
/// See [`ChangeError`].
pub fn acl_add(config: &mut Config, args: &AclArgs) -> Result<()> {
    let rule = rule(args)?;
    if args.save {
        edit::add_acl(config.file(), &rule)?;
    }
    match config.acl.iter_mut().find(|old| old.key() == rule.key()) {
        Some(old) => *old = rule,
        None => config.acl.push(rule),
    }
    Ok(())
}

/// Removes a rule.
///
/// # Errors
/// See [`ChangeError`].
pub fn acl_del(config: &mut Config, args: &AclArgs) -> Result<()> {
    let rule = rule(args)?;
    if args.save
        && let Some(place) = config.acl_lists.iter().find_map(|list| list.find(&rule))
    {
        return Err(ChangeError::InList(place));
    }
    let before = config.acl.len();
    config.acl.retain(|old| old.key() != rule.key());
    let mut removed = config.acl.len() < before;
    for list in &mut config.acl_lists {
        if list.find(&rule).is_some() {
            removed |= Arc::make_mut(list).remove(&rule);
        }
    }
    let saved = args.save && edit::del_acl(config.file(), rule.addr, rule.port, rule.proto)?;
    if removed || saved {
        Ok(())
    } else {
        Err(ChangeError::NotThere)
    }
}

fn endpoint(text: &str) -> Result<Endpoint> {
    let (addr, weight) = text.split_once('@').unwrap_or((text, "1"));
    let mut endpoint = Endpoint::new(value("endpoint", listener(addr))?);
    let number = weight
        .parse()
        .map_err(|_| ValueError::new(format!("weight {weight:?}"), "0 to 65535"));
    endpoint.weight = value("endpoint", number)?;
    Ok(endpoint)
}

/// Adds a NAT entry, or changes the one with its destination.
///
/// # Errors
/// See [`ChangeError`].
pub fn nat_add(config: &mut Config, args: &NatArgs) -> Result<()> {
    let endpoints = args
        .endpoints
        .iter()
        .map(|e| endpoint(e))
        .collect::<Result<_>>()?;
    let mut entry = Nat::new(
        value("direction", args.direction.parse())?,
        value("proto", args.proto.parse())?,
        value("to", args.to.parse())?,
        endpoints,
    );
    entry.select = value("select", args.select.parse())?;
    entry.system = value("system", args.system.parse())?;
    entry.interface.clone_from(&args.interface);
    entry.source = value("source", args.source.parse())?;
    entry.on_removed = value("on-removed", args.on_removed.parse())?;
    value("nat", entry.check())?;
    let old = config.nat.iter().find(|old| old.key() == entry.key());
    entry.announce_s = old.map_or(entry.announce_s, |old| old.announce_s);
    entry.health = match &args.health {
        Some(text) => Some(value("health", text.parse())?),
        None => old.and_then(|old| old.health.clone()),
    };
    check_uplink(config, &entry)?;
    if args.save {
        edit::add_nat(config.file(), &entry)?;
    }
    match config.nat.iter_mut().find(|old| old.key() == entry.key()) {
        Some(old) => *old = entry,
        None => config.nat.push(entry),
    }
    Ok(())
}

/// A virtual address needs an uplink.
fn check_uplink(config: &Config, entry: &Nat) -> Result<()> {
    let is_uplink = |interface: &Interface| interface.role == Role::Uplink;
    let is_there = match &entry.interface {
        Some(name) => config.interface_for(name).is_some_and(is_uplink),
        None => config.interfaces.iter().any(is_uplink),
    };
    if entry.system == System::Mesh || is_there {
        return Ok(());
    }
    let name = entry.interface.as_deref().unwrap_or("any");
    let error = ValueError::new(
        format!("{name}: no such uplink"),
        "an uplink of [[interface]]",
    );
    value("interface", Err(error))
}

/// Removes the NAT entries of a destination, of both families where it names none.
///
/// # Errors
/// See [`ChangeError`].
pub fn nat_del(config: &mut Config, args: &NatArgs) -> Result<()> {
    let system = value("system", args.system.parse())?;
    let direction = value("direction", args.direction.parse())?;
    let proto = value("proto", args.proto.parse())?;
    let to = value("to", args.to.parse())?;
    let before = config.nat.len();
    config.nat.retain(|old| {
        (old.system, old.direction, old.proto, old.to) != (system, direction, proto, to)
    });
    let saved = args.save && edit::del_nat(config.file(), system, direction, proto, to, None)?;
    if config.nat.len() == before && !saved {
        Err(ChangeError::NotThere)
    } else {
        Ok(())
    }
}

/// Sets a flag.
///
/// # Errors
/// See [`ChangeError`].
pub fn cfg_set(config: &mut Config, family: &str, flag: &str, on: bool, save: bool) -> Result<()> {
    let family: Family = value("family", family.parse())?;
    let flags = match family {
        Family::Ipv4 => &mut config.flags.ipv4,
        Family::Ipv6 => &mut config.flags.ipv6,
    };
    value("flag", flags.set(flag, on))?;
    if save {
        edit::set_flag(config.file(), family, flag, on)?;
    }
    Ok(())
}

/// Sets the mode of inspection.
///
/// # Errors
/// See [`ChangeError`].
pub fn dpi_mode(config: &mut Config, mode: &str, save: bool) -> Result<()> {
    config.dpi.mode = value("mode", mode.parse())?;
    if save {
        edit::set_dpi_mode(config.file(), config.dpi.mode)?;
    }
    Ok(())
}

/// Switches a trace on or off.
///
/// # Errors
/// See [`ChangeError`].
pub fn trace(config: &mut Config, args: &TraceArgs, on: bool) -> Result<()> {
    match (&args.ip, args.port) {
        (Some(ip), None) => {
            let ip: IpAddr = value("address", crate::config::address(ip))?;
            let saved = args.save && edit::set_trace_ip(config.file(), ip, on)?;
            put(&mut config.trace.ips, ip, on, saved)
        }
        (None, Some(port)) => {
            let saved = args.save && edit::set_trace_port(config.file(), port, on)?;
            put(&mut config.trace.ports, port, on, saved)
        }
        _ => Err(ChangeError::Trace),
    }
}

fn put<T: PartialEq>(list: &mut Vec<T>, item: T, on: bool, saved: bool) -> Result<()> {
    let place = list.iter().position(|old| *old == item);
    match (place, on) {
        (None, true) => list.push(item),
        (Some(at), false) => drop(list.remove(at)),
        (None, false) if !saved => return Err(ChangeError::NotThere),
        (Some(_), true) | (None, false) => {}
    }
    Ok(())
}
