//! The node's state, as `status` shows it: what the daemon says, if it answers, and what the maps say.

use std::collections::BTreeMap;

use fsm_common::Reason;
use fsm_common::maps::{IfaceEntry, role};
use fsm_common::stats::{Hook, IfaceStats, Verdict};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::protect::Protected;
use crate::api::{Interface, Status};

/// Packets of one interface, hook and verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// Interface; `null` where it is gone.
    pub iface: Option<String>,
    /// Its index.
    pub ifindex: u32,
    /// `xdp` or `tc`.
    pub hook: &'static str,
    /// `ingress` or `egress`.
    pub dir: &'static str,
    /// What became of them.
    pub verdict: &'static str,
    /// Packets.
    pub packets: u64,
    /// Frame bytes.
    pub bytes: u64,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fill {
    /// Entries in it.
    pub entries: u64,
    /// Entries that fit.
    pub max_entries: u32,
}

/// What the pins say.
#[derive(Debug, Clone, Default)]
pub struct Pinned {
    /// Policy generation.
    pub generation: u32,
    /// Whether flows that cannot be judged pass.
    pub fail_open: bool,
    /// Interfaces in the kernel's table.
    pub interfaces: Vec<Interface>,
    /// Fill of the maps.
    pub maps: BTreeMap<&'static str, Fill>,
    /// Every reason's counter.
    pub reasons: Vec<(Reason, u64)>,
    /// Protected destinations.
    pub protect: Vec<Protected>,
    /// Packet counters that are not zero.
    pub counters: Vec<Counter>,
}

/// The counters of one interface, summed over the CPUs; those at zero are left out.
pub fn counters(ifindex: u32, iface: Option<&str>, of_cpus: &[IfaceStats]) -> Vec<Counter> {
    let mut counters = Vec::new();
    for hook in Hook::ALL {
        for verdict in Verdict::ALL {
            let counts = of_cpus
                .iter()
                .map(|stats| stats.counts[hook as usize][verdict as usize]);
            let (packets, bytes) = counts.fold((0, 0), |(packets, bytes), count| {
                (packets + count.packets, bytes + count.bytes)
            });
            let (hook, dir) = hook.labels();
            if packets != 0 {
                let iface = iface.map(str::to_owned);
                counters.push(Counter {
                    iface,
                    ifindex,
                    hook,
                    dir,
                    verdict: verdict.name(),
                    packets,
                    bytes,
                });
            }
        }
    }
    counters
}

/// An interface as the kernel's table has it, for when the daemon is not there to say more.
pub fn interface(entry: &IfaceEntry, name: Option<&str>) -> Interface {
    let role = match entry.role {
        role::UPLINK => "uplink",
        role::ENDPOINT => "endpoint",
        _ => "unknown",
    };
    Interface {
        name: name.unwrap_or("gone").to_owned(),
        ifindex: entry.ifindex,
        role: role.to_owned(),
        xdp: "unknown".to_owned(),
        tc: "unknown".to_owned(),
        ..Interface::default()
    }
}

/// Reason counters by name: drops, or the others.
pub fn reasons(counts: &[(Reason, u64)], drops: bool) -> Map<String, Value> {
    let of_kind = counts
        .iter()
        .filter(|(reason, _)| reason.is_drop() == drops);
    of_kind
        .map(|(reason, count)| (reason.name().to_owned(), (*count).into()))
        .collect()
}

/// The whole state.
pub fn to_json(daemon: Option<&Status>, pinned: Option<&Pinned>) -> Value {
    let mut all = match daemon {
        Some(status) => serde_json::to_value(status).unwrap_or_default(),
        None => unknown(),
    };
    all["daemon"] = running(daemon).into();
    if let Some(pinned) = pinned {
        all["generation"] = pinned.generation.into();
        if daemon.is_none() {
            all["fail"] = if pinned.fail_open { "open" } else { "closed" }.into();
            all["interfaces"] = json!(pinned.interfaces);
        }
    }
    let (maps, counts, counters) = pinned.map_or_else(Default::default, |p| {
        (p.maps.clone(), p.reasons.clone(), p.counters.clone())
    });
    all["maps"] = json!(maps);
    all["drops"] = reasons(&counts, true).into();
    all["notes"] = reasons(&counts, false).into();
    all["counters"] = json!(counters);
    all["protect"] = json!(pinned.map_or(&[][..], |p| &p.protect));
    all
}

/// `running` or `not running`.
pub const fn running(daemon: Option<&Status>) -> &'static str {
    match daemon {
        Some(_) => "running",
        None => "not running",
    }
}

/// The daemon's fields without the daemon.
fn unknown() -> Value {
    let mut fields = serde_json::to_value(Status::default()).unwrap_or_default();
    for (_, value) in fields.as_object_mut().into_iter().flatten() {
        *value = Value::Null;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsm_common::stats::Count;

    #[test]
    fn counters_are_summed_and_named() {
        let mut stats = IfaceStats::ZERO;
        stats.counts[Hook::TcEgress as usize][Verdict::Nat as usize] = Count {
            packets: 2,
            bytes: 120,
        };
        let counters = counters(3, Some("eth0"), &[stats, stats]);
        let expected = json!([{
            "iface": "eth0", "ifindex": 3, "hook": "tc", "dir": "egress", "verdict": "nat",
            "packets": 4, "bytes": 240,
        }]);
        assert_eq!(json!(counters), expected);
    }

    #[test]
    fn drops_and_notes_are_apart() {
        let counts: Vec<_> = Reason::ALL.iter().map(|reason| (*reason, 1)).collect();
        let (drops, notes) = (reasons(&counts, true), reasons(&counts, false));
        assert_eq!(drops.len() + notes.len(), Reason::ALL.len());
        assert!(drops.contains_key("acl_deny") && !drops.contains_key("flow_new"));
        assert!(notes.contains_key("flow_new"));
    }

    #[test]
    fn the_fields_are_there_without_the_daemon() {
        let pinned = Pinned {
            generation: 4,
            ..Pinned::default()
        };
        let all = to_json(None, Some(&pinned));
        assert_eq!(
            (&all["daemon"], &all["generation"]),
            (&json!("not running"), &json!(4))
        );
        assert_eq!(
            (&all["fail"], &all["pid"]),
            (&json!("closed"), &Value::Null)
        );
        let with = to_json(Some(&Status::default()), Some(&pinned));
        let keys = |value: &Value| {
            value
                .as_object()
                .map(|o| o.keys().cloned().collect::<Vec<_>>())
        };
        assert_eq!(keys(&all), keys(&with));
        assert_eq!(with["daemon"], "running");
    }
}
