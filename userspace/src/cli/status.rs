//! `status`: the daemon's state, if it answers, and what the pins say in any case.

use std::path::Path;

use aya::maps::MapError;
use fsm_common::flow::{Flow, FlowKey};
use fsm_common::maps::{IFACE_SLOTS, Origin, OriginKey, Skip, TraceIp, TraceOn, TracePort, name};
use fsm_common::nat::{NatKey, NatValue};
use fsm_common::policy::{Acl4Key, Acl6Key, AclValue, Cidr4Key, Cidr6Key, CidrRules, CidrValue};
use serde_json::Value;

use super::out::{Out, table};
use super::{Failure, Global, pins};
use crate::api::{ApiError, Interface, Request, Status};
use crate::maps::Maps;
use crate::view::Row as _;
use crate::view::flow::seconds;
use crate::view::or_dash;
use crate::view::protect::Protected;
use crate::view::status::{Fill, Pinned, counters, interface, reasons, running, to_json};
use crate::view::worker::WorkerRow;

pub fn run(global: &Global) -> Result<(), Failure> {
    let daemon = ask(global)?;
    let pinned = match global.maps() {
        Ok(maps) => Some(read(global, &maps)?),
        // With neither there is nothing to show.
        Err(failure) if daemon.is_none() => return Err(failure),
        Err(failure) => {
            eprintln!("warning: {failure}");
            None
        }
    };
    let all = to_json(daemon.as_ref(), pinned.as_ref());
    Ok(Out::new(global.output).one(&all, || text(daemon.as_ref(), pinned.as_ref()))?)
}

fn ask(global: &Global) -> Result<Option<Status>, Failure> {
    match global.ask(&Request::Status) {
        Ok(response) => {
            let status = serde_json::from_value(response.data).map_err(ApiError::Format)?;
            Ok(Some(status))
        }
        Err(failure) if failure.is_daemon_missing() => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn read(global: &Global, maps: &Maps) -> Result<Pinned, Failure> {
    let (settings, names) = (maps.settings()?, global.interfaces());
    let mut pinned = Pinned {
        generation: settings.generation,
        fail_open: settings.fail_open != 0,
        reasons: maps.reasons()?,
        ..Pinned::default()
    };
    for slot in 0..IFACE_SLOTS {
        let entry = maps.iface.get(&slot, 0)?;
        if entry.ifindex == 0 {
            continue;
        }
        let name = names.get(&entry.ifindex).map(String::as_str);
        let of_cpus = maps.ifstats.get(&slot, 0)?;
        pinned
            .counters
            .extend(counters(entry.ifindex, name, &of_cpus));
        pinned.interfaces.push(interface(&entry, name));
    }
    for entry in maps.guard.iter() {
        let (key, bucket) = entry?;
        pinned.protect.push(Protected::new(&key, &bucket));
    }
    pinned.protect.sort();
    fill(maps, &mut pinned)?;
    Ok(pinned)
}

fn fill(maps: &Maps, pinned: &mut Pinned) -> Result<(), Failure> {
    let mut add = |name: &'static str, count: Count| {
        let fill = Fill {
            entries: count(&maps.dir, name)?,
            max_entries: maps.max_entries(name)?,
        };
        pinned.maps.insert(name, fill);
        Ok::<_, Failure>(())
    };
    type V4 = [u8; 4];
    type V6 = [u8; 16];
    add(name::FSM_XFLOW, pins::count::<FlowKey<V4>, Flow<V4>>)?;
    add(name::FSM_XFLOW6, pins::count::<FlowKey<V6>, Flow<V6>>)?;
    add(name::FSM_HALF, pins::count::<FlowKey<V4>, Flow<V4>>)?;
    add(name::FSM_HALF6, pins::count::<FlowKey<V6>, Flow<V6>>)?;
    add(name::FSM_XOPT, pins::count::<OriginKey, Origin>)?;
    add(name::FSM_XACL, pins::count::<Acl4Key, AclValue>)?;
    add(name::FSM_XACL6, pins::count::<Acl6Key, AclValue>)?;
    add(name::FSM_CIDR4, pins::count::<Cidr4Key, CidrValue>)?;
    add(name::FSM_CIDR6, pins::count::<Cidr6Key, CidrValue>)?;
    add(name::FSM_CIDR_SET, pins::count::<u32, CidrRules>)?;
    add(name::FSM_XNAT, pins::count::<NatKey, NatValue>)?;
    add(name::FSM_SKIP4, pins::count::<Cidr4Key, Skip>)?;
    add(name::FSM_SKIP6, pins::count::<Cidr6Key, Skip>)?;
    add(name::FSM_TRIP, pins::count::<TraceIp, TraceOn>)?;
    add(name::FSM_TRPT, pins::count::<TracePort, TraceOn>)
}

/// Counts the entries of a map below the pin directory.
type Count = fn(&Path, &'static str) -> Result<u64, MapError>;

fn text(daemon: Option<&Status>, pinned: Option<&Pinned>) -> String {
    let mut parts = vec![node(daemon, pinned)];
    let interfaces = match (daemon, pinned) {
        (Some(status), _) => &status.interfaces,
        (None, Some(pinned)) => &pinned.interfaces,
        (None, None) => &Vec::new(),
    };
    parts.push(part(
        &["INTERFACE", "ROLE", "XDP", "TC", "REDIRECT", "LINKS"],
        interfaces.iter().map(interface_row),
    ));
    let workers = daemon.map_or(&[][..], |status| &status.workers);
    parts.push(part(WorkerRow::HEAD, workers.iter().map(WorkerRow::cells)));
    if let Some(pinned) = pinned {
        let counters = pinned.counters.iter().map(|counter| {
            let iface = or_dash(counter.iface.as_deref());
            let words = [counter.hook, counter.dir, counter.verdict].map(str::to_owned);
            let [hook, dir, verdict] = words;
            vec![
                iface,
                hook,
                dir,
                verdict,
                counter.packets.to_string(),
                counter.bytes.to_string(),
            ]
        });
        parts.push(part(
            &["INTERFACE", "HOOK", "DIR", "VERDICT", "PACKETS", "BYTES"],
            counters,
        ));
        parts.push(part(
            &["PROTECTED", "PROTO", "FAMILY", "RATE", "PASSED", "OVER"],
            pinned.protect.iter().map(Protected::cells),
        ));
        for (title, drops) in [("DROPPED", true), ("NOTED", false)] {
            let counts = reasons(&pinned.reasons, drops);
            let seen = counts
                .into_iter()
                .filter(|(_, count)| count != &Value::from(0));
            parts.push(part(
                &[title, "PACKETS"],
                seen.map(|(name, count)| vec![name, count.to_string()]),
            ));
        }
        let fill = pinned.maps.iter().filter(|(_, fill)| fill.entries != 0);
        let fill = fill.map(|(name, fill)| {
            vec![
                (*name).to_owned(),
                fill.entries.to_string(),
                fill.max_entries.to_string(),
            ]
        });
        parts.push(part(&["MAP", "ENTRIES", "OF"], fill));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// A table, or nothing without rows.
fn part(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        String::new()
    } else {
        table(head, rows)
    }
}

fn node(daemon: Option<&Status>, pinned: Option<&Pinned>) -> String {
    let mut lines = vec![("daemon", running(daemon).to_owned())];
    if let Some(status) = daemon {
        lines.extend([
            ("node", status.node.clone()),
            ("version", status.version.clone()),
            ("pid", status.pid.to_string()),
            ("uptime", seconds(status.uptime_s)),
            (
                "config",
                format!("{} ({})", status.config.display(), status.config_hash),
            ),
            ("dpi mode", status.mode.clone()),
            ("fail", status.fail.clone()),
            (
                "adopted",
                if status.adopted { "yes" } else { "no" }.to_owned(),
            ),
        ]);
    }
    if let Some(pinned) = pinned {
        lines.push(("generation", pinned.generation.to_string()));
    }
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, value)| format!("{name:<11} {value}"))
        .collect();
    lines.join("\n")
}

fn interface_row(interface: &Interface) -> Vec<String> {
    let links = interface.links.map(|id| {
        if id == 0 {
            "-".to_owned()
        } else {
            id.to_string()
        }
    });
    let redirect = Some(interface.redirect.as_str()).filter(|way| !way.is_empty());
    vec![
        interface.name.clone(),
        interface.role.clone(),
        interface.xdp.clone(),
        interface.tc.clone(),
        or_dash(redirect),
        links.join(" "),
    ]
}
