//! `status`: the daemon's state, if it answers, and what the pins say in any case.

use fsm_common::maps::{IFACE_SLOTS, name};
use serde_json::Value;

use super::out::{Out, table};
use super::{Failure, Global, pins};
use crate::api::{ApiError, Interface, Request, Status};
use crate::maps::Maps;
use crate::view::flow::seconds;
use crate::view::or_dash;
use crate::view::protect::Protected;
use crate::view::status::{Fill, Pinned, counters, interface, reasons, running, to_json};

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
    let mut add = |name: &'static str, count: &dyn Fn(u32) -> u64| {
        let max_entries = maps.max_entries(name)?;
        pinned.maps.insert(
            name,
            Fill {
                entries: count(max_entries),
                max_entries,
            },
        );
        Ok::<_, Failure>(())
    };
    add(name::FSM_XFLOW, &|max| pins::count(&maps.flow4, max))?;
    add(name::FSM_XFLOW6, &|max| pins::count(&maps.flow6, max))?;
    add(name::FSM_HALF, &|max| pins::count(&maps.half4, max))?;
    add(name::FSM_HALF6, &|max| pins::count(&maps.half6, max))?;
    add(name::FSM_XOPT, &|max| pins::count(&maps.xopt, max))?;
    add(name::FSM_XACL, &|max| pins::count(&maps.acl4, max))?;
    add(name::FSM_XACL6, &|max| pins::count(&maps.acl6, max))?;
    add(name::FSM_CIDR4, &|max| pins::count_trie(&maps.cidr4, max))?;
    add(name::FSM_CIDR6, &|max| pins::count_trie(&maps.cidr6, max))?;
    add(name::FSM_XNAT, &|max| pins::count(&maps.xnat, max))?;
    add(name::FSM_GUARD, &|max| pins::count(&maps.guard, max))?;
    add(name::FSM_SKIP4, &|max| pins::count_trie(&maps.skip4, max))?;
    add(name::FSM_SKIP6, &|max| pins::count_trie(&maps.skip6, max))?;
    add(name::FSM_TRIP, &|max| pins::count(&maps.trip, max))?;
    add(name::FSM_TRPT, &|max| pins::count(&maps.trpt, max))
}

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
