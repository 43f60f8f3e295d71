//! What one value alone cannot show: duplicates, overlaps, references.
//!
//! Runs on a configuration whose every value is good, so that an entry's index
//! is its index in the file.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::balance::System;
use super::dpi::{Dpi, DpiMode, Peer, Rules};
use super::nat::{Direction, NatKey, NatTarget};
use super::report::{Place, Problem, ValueError, nearest, quoted};
use super::{Acl, Config, Host, Role, XdpMode};

/// Finds everything that cannot be together.
pub(super) fn check(config: &Config, host: &Host) -> Vec<Problem> {
    let mut found = Findings {
        config,
        problems: Vec::new(),
    };
    check_interfaces(&mut found);
    check_nat(&mut found);
    check_uplinks(&mut found);
    check_protect(&mut found);
    check_acl_twice(&mut found);
    check_acl_ranges(&mut found);
    super::list::check(&config.acl_lists, &mut found.problems);
    check_cores(&mut found, host);
    check_groups(&mut found);
    check_signatures(&mut found);
    found.problems
}

struct Findings<'c> {
    config: &'c Config,
    problems: Vec<Problem>,
}

impl Findings<'_> {
    fn add(&mut self, path: String, error: ValueError) {
        self.problems.push(Problem {
            file: None,
            place: self.place(&path),
            path,
            text: error.to_string(),
        });
    }

    fn place(&self, path: &str) -> Place {
        self.config.place(path)
    }

    fn line(&self, path: &str) -> usize {
        self.place(path).line
    }
}

fn check_interfaces(found: &mut Findings<'_>) {
    let config = found.config;
    if config.interfaces.is_empty() {
        let allowed = "at least one [[interface]] with role = \"uplink\" or \"endpoint\"";
        found.add(
            "interface".to_owned(),
            ValueError::new("there is no interface", allowed),
        );
    }
    let mut seen = HashMap::new();
    for (i, interface) in config.interfaces.iter().enumerate() {
        let key = (&interface.netns, interface.name.as_str());
        if let Some(first) = seen.insert(key, i) {
            let line = found.line(&format!("interface[{first}]"));
            let what = format!("{} is there already, in line {line}", interface.name);
            let error = ValueError::new(what, "each name once");
            found.add(format!("interface[{i}].name"), error);
        }
    }
}

fn check_nat(found: &mut Findings<'_>) {
    let config = found.config;
    let mut seen: HashMap<NatKey, String> = HashMap::new();
    for entry in config.gateway.nat() {
        let listeners = match (entry.direction, entry.to) {
            (Direction::Ingress, _) => "inbound",
            (Direction::Egress, NatTarget::Any) => "outbound",
            (Direction::Egress, _) => "dns",
        };
        seen.insert(entry.key(), format!("gateway.{listeners}"));
    }
    for (i, entry) in config.nat.iter().enumerate() {
        let key = entry.key();
        let path = format!("nat[{i}]");
        if let Some(first) = seen.get(&key) {
            let what = format!(
                "{} {} to {} is taken by {first} in line {}",
                entry.direction,
                entry.proto,
                entry.to,
                found.line(first)
            );
            let allowed = "each direction, proto and to once, with several endpoints";
            found.add(format!("{path}.to"), ValueError::new(what, allowed));
        } else {
            seen.insert(key, path);
        }
    }
}

/// A virtual address needs an uplink to be on.
fn check_uplinks(found: &mut Findings<'_>) {
    let config = found.config;
    for (i, entry) in config.nat.iter().enumerate() {
        if entry.system != System::E4lb {
            continue;
        }
        let is_uplink = |name: &String| {
            config
                .interface_for(name)
                .is_some_and(|interface| interface.role == Role::Uplink)
        };
        let allowed = "an uplink of [[interface]]";
        match &entry.interface {
            Some(name) if !is_uplink(name) => {
                let error = ValueError::new(format!("{} is no uplink", quoted(name)), allowed);
                found.add(format!("nat[{i}].interface"), error);
            }
            None if config.interfaces.iter().all(|i| i.role != Role::Uplink) => {
                let error = ValueError::new("there is no uplink for a virtual address", allowed);
                found.add(format!("nat[{i}].system"), error);
            }
            _ => {}
        }
    }
}

fn check_protect(found: &mut Findings<'_>) {
    let config = found.config;
    let has_xdp = |i: &super::Interface| i.role == Role::Uplink && i.xdp != XdpMode::Off;
    if !config.protect.is_empty() && !config.interfaces.iter().any(has_xdp) {
        let allowed = "an [[interface]] with role = \"uplink\", and xdp not \"off\"";
        let what = "no uplink has XDP, so nothing would be protected";
        found.add("protect[0]".to_owned(), ValueError::new(what, allowed));
    }
    let mut seen = HashMap::new();
    for (i, entry) in config.protect.iter().enumerate() {
        if let Some(first) = seen.insert((entry.proto, entry.to), i) {
            let line = found.line(&format!("protect[{first}]"));
            let what = format!(
                "{} to {} is there already, in line {line}",
                entry.proto, entry.to
            );
            let error = ValueError::new(what, "each proto and to once");
            found.add(format!("protect[{i}].to"), error);
        }
    }
}

fn check_acl_twice(found: &mut Findings<'_>) {
    let config = found.config;
    let mut seen = HashMap::new();
    for (i, rule) in config.acl.iter().enumerate() {
        let Some(first) = seen.insert(rule.key(), i) else {
            continue;
        };
        let line = found.line(&format!("acl[{first}]"));
        let before: &Acl = &config.acl[first];
        let what = match before.action == rule.action {
            true => format!("the same rule is in line {line}"),
            false => format!(
                "{} contradicts {} in line {line}",
                rule.action, before.action
            ),
        };
        let allowed = "each addr, port and proto once";
        found.add(format!("acl[{i}].addr"), ValueError::new(what, allowed));
    }
}

/// Ranges of one address and protocol that share ports but not the action: no
/// range is more exact than the other. A single port is, and may lie in a range.
fn check_acl_ranges(found: &mut Findings<'_>) {
    let config = found.config;
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, rule) in config.acl.iter().enumerate() {
        if !rule.port.is_any() && rule.port.single().is_none() {
            groups.entry((rule.addr, rule.proto)).or_default().push(i);
        }
    }
    for mut group in groups.into_values() {
        group.sort_by_key(|i| config.acl[*i].port);
        let mut reach: BTreeMap<_, usize> = BTreeMap::new();
        for i in group {
            let rule = &config.acl[i];
            let others = reach.iter().filter(|(action, _)| **action != rule.action);
            let hit = others
                .map(|(_, other)| *other)
                .find(|other| config.acl[*other].port.last >= rule.port.first);
            if let Some(other) = hit.filter(|other| config.acl[*other].key() != rule.key()) {
                let (first, later) = (i.min(other), i.max(other));
                let (before, after) = (&config.acl[first], &config.acl[later]);
                let what = format!(
                    "{} overlaps {} in line {}, which says {}",
                    after.port,
                    before.port,
                    found.line(&format!("acl[{first}]")),
                    before.action
                );
                let allowed = "ranges apart, or the same action";
                found.add(format!("acl[{later}].port"), ValueError::new(what, allowed));
            }
            let farthest = reach.entry(rule.action).or_insert(i);
            if config.acl[*farthest].port.last < rule.port.last {
                *farthest = i;
            }
        }
    }
}

fn check_cores(found: &mut Findings<'_>, host: &Host) {
    let dpi = &found.config.dpi;
    let mut seen = HashSet::new();
    for (i, core) in dpi.cores.iter().enumerate() {
        let path = format!("dpi.cores[{i}]");
        if !seen.insert(core) {
            let error = ValueError::new(format!("core {core} is there twice"), "each core once");
            found.add(path, error);
        } else if dpi.mode != DpiMode::Off && *core >= host.cpus {
            let what = format!("this machine has no core {core}");
            let allowed = format!("0 to {}", host.cpus.saturating_sub(1));
            found.add(path, ValueError::new(what, allowed));
        }
    }
}

fn check_groups(found: &mut Findings<'_>) {
    let dpi = &found.config.dpi;
    for (i, policy) in dpi.policy.iter().enumerate() {
        for (side, peer) in [("from", &policy.from), ("to", &policy.to)] {
            if let Some(error) = unknown_group(dpi, peer) {
                found.add(format!("dpi.policy[{i}].{side}"), error);
            }
        }
    }
}

fn unknown_group(dpi: &Dpi, peer: &Peer) -> Option<ValueError> {
    let Peer::Group(name) = peer else {
        return None;
    };
    if dpi.groups.contains_key(name) {
        return None;
    }
    let names: Vec<&str> = dpi.groups.keys().map(String::as_str).collect();
    Some(ValueError {
        what: format!("there is no group {}", quoted(name)),
        allowed: "any, a network, a domain name, or a group of [dpi.groups]".to_owned(),
        near: nearest(name, names).map(str::to_owned),
    })
}

fn check_signatures(found: &mut Findings<'_>) {
    let dpi = &found.config.dpi;
    let mut seen = HashSet::new();
    for (i, signature) in dpi.signature.iter().enumerate() {
        if !seen.insert(&signature.name) {
            let what = format!("{} is there twice", quoted(&signature.name));
            let error = ValueError::new(what, "each name once");
            found.add(format!("dpi.signature[{i}].name"), error);
        }
        let Rules::File(path) = &signature.rules else {
            continue;
        };
        if dpi.mode != DpiMode::Off && !path.is_file() {
            let what = format!("there is no file {}", quoted(&path.to_string_lossy()));
            let allowed = "a file; a relative path starts at the configuration's folder";
            found.add(
                format!("dpi.signature[{i}].rules"),
                ValueError::new(what, allowed),
            );
        }
    }
}
