//! `flow`: the live flows, one row each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use clap::{Args, Subcommand};
use fsm_common::maps::{feature, name};
use ipnet::IpNet;
use serde_json::json;

use super::flush::flush;
use super::out::{Out, table};
use super::words::{proto, seconds};
use super::{Failure, Global, pins};
use crate::api::Request;
use crate::config::{self, ValueError};
use crate::maps::Maps;
use crate::view;
use crate::view::dpi::SessionRow;
use crate::view::flow::FlowRow;
use crate::view::state::{self, State};

/// Sub-verbs of `flow`.
#[derive(Debug, Subcommand)]
pub enum Flow {
    /// Show the flows
    List(Filter),
    /// Count the flows by protocol and state
    Count(Filter),
    /// Forget the flows; a connection that goes on is judged as a new one
    Flush(Filter),
}

/// Which flows are meant: those that everything given is true of. Addresses and ports are those before
/// translation.
#[derive(Debug, Default, Clone, Args)]
pub struct Filter {
    /// Source address or network
    #[arg(long, value_name = "ADDR", value_parser = config::network)]
    src: Option<IpNet>,
    /// Destination address or network
    #[arg(long, value_name = "ADDR", value_parser = config::network)]
    dst: Option<IpNet>,
    /// Source or destination port
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp or a number
    #[arg(long, value_parser = proto)]
    proto: Option<u8>,
    /// A state, as ESTABLISHED or UNREPLIED
    #[arg(long, value_parser = known_state)]
    state: Option<&'static str>,
    /// Without a packet for at least this long: seconds, or as 90s, 5m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    older: Option<u64>,
}

fn known_state(text: &str) -> Result<&'static str, ValueError> {
    let mut names: Vec<_> = State::ALL.map(state::name).into();
    names.dedup();
    let upper = text.to_uppercase();
    let found = names.iter().find(|name| **name == upper);
    found
        .copied()
        .ok_or_else(|| ValueError::unknown("state", text, &names))
}

/// Sessions that are asked for their protocols.
const MAX_APPS: usize = 65_536;

impl Filter {
    /// Whether a flow is meant.
    pub fn matches(&self, row: &FlowRow) -> bool {
        let within = |net: Option<IpNet>, addr: &IpAddr| net.is_none_or(|net| net.contains(addr));
        within(self.src, &row.src)
            && within(self.dst, &row.dst)
            && self
                .port
                .is_none_or(|port| port == row.sport || port == row.dport)
            && self
                .proto
                .is_none_or(|number| view::proto(number) == row.proto)
            && self.state.is_none_or(|name| name == row.state)
            && self.older.is_none_or(|older_s| row.idle_s >= older_s)
    }
}

/// Calls `visit` for the rows of all flows that are meant.
pub fn each_row(
    global: &Global,
    maps: &Maps,
    filter: &Filter,
    mut visit: impl FnMut(FlowRow) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (names, now_ns) = (global.interfaces(), pins::now_ns());
    let named = |index: u32| names.get(&index).cloned();
    for map in [name::FSM_XFLOW, name::FSM_HALF] {
        pins::each_flow::<[u8; 4]>(&maps.dir, map, |key, flow, reply| {
            let row = FlowRow::new(key, flow, reply, now_ns, named(flow.ifindex));
            visit_row(filter, row, &mut visit)
        })?;
    }
    for map in [name::FSM_XFLOW6, name::FSM_HALF6] {
        pins::each_flow::<[u8; 16]>(&maps.dir, map, |key, flow, reply| {
            let row = FlowRow::new(key, flow, reply, now_ns, named(flow.ifindex));
            visit_row(filter, row, &mut visit)
        })?;
    }
    Ok(())
}

fn visit_row(
    filter: &Filter,
    row: FlowRow,
    visit: &mut impl FnMut(FlowRow) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if filter.matches(&row) {
        visit(row)
    } else {
        Ok(())
    }
}

pub fn run(global: &Global, verb: Flow) -> Result<(), Failure> {
    match verb {
        Flow::List(filter) => list(global, &filter),
        Flow::Count(filter) => count(global, &filter),
        Flow::Flush(filter) => {
            let flushed = flush(&mut global.maps()?, &filter)?;
            let out = Out::new(global.output);
            Ok(out.one(&json!({"flushed": flushed}), || {
                format!("flows forgotten: {flushed}")
            })?)
        }
    }
}

fn list(global: &Global, filter: &Filter) -> Result<(), Failure> {
    let maps = global.maps()?;
    let apps = apps(global, &maps)?;
    let mut list = Out::new(global.output).list();
    each_row(global, &maps, filter, |mut row| {
        let ends = (row.src, row.sport, row.dst, row.dport);
        row.app = apps.get(&(ends, row.proto.to_string())).cloned();
        Ok(list.push(&row)?)
    })?;
    Ok(list.end()?)
}

/// A flow's client and server.
type Ends = (IpAddr, u16, IpAddr, u16);

/// Protocols that the daemon's workers have recognised, by the flow's ends; none where no daemon inspects.
fn apps(global: &Global, maps: &Maps) -> Result<HashMap<(Ends, String), String>, Failure> {
    let mut apps = HashMap::new();
    if maps.settings()?.features & feature::INSPECT == 0 {
        return Ok(apps);
    }
    let request = Request::DpiSessions { limit: MAX_APPS };
    let rows = global.ask(&request).map(|response| response.data);
    let rows: Vec<SessionRow> = rows
        .ok()
        .and_then(|data| serde_json::from_value(data).ok())
        .unwrap_or_default();
    for row in rows {
        if let (Ok(src), Ok(dst), Some(app)) = (row.src.parse(), row.dst.parse(), row.app) {
            apps.insert(((src, row.sport, dst, row.dport), row.proto), app);
        }
    }
    Ok(apps)
}

fn count(global: &Global, filter: &Filter) -> Result<(), Failure> {
    let maps = global.maps()?;
    let mut counts: BTreeMap<String, BTreeMap<&str, u64>> = BTreeMap::new();
    each_row(global, &maps, filter, |row| {
        *counts
            .entry(row.proto.into_owned())
            .or_default()
            .entry(row.state)
            .or_default() += 1;
        Ok(())
    })?;
    let total: u64 = counts.values().flat_map(BTreeMap::values).sum();
    let text = || {
        let mut rows = Vec::new();
        for (proto, states) in &counts {
            for (state, count) in states {
                rows.push(vec![proto.clone(), (*state).to_owned(), count.to_string()]);
            }
        }
        rows.push(vec!["all".into(), "-".into(), total.to_string()]);
        table(&["PROTO", "STATE", "FLOWS"], rows)
    };
    Ok(Out::new(global.output).one(&json!({"count": total, "flows": counts}), text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::flow::Both;

    fn row() -> FlowRow {
        FlowRow {
            src: "10.0.0.1".parse().unwrap(),
            sport: 40000,
            dst: "20.0.0.2".parse().unwrap(),
            dport: 80,
            proto: "tcp".into(),
            family: "ipv4",
            state: "ESTABLISHED",
            dir: None,
            nat: None,
            packets: Both { orig: 1, reply: 0 },
            bytes: Both { orig: 60, reply: 0 },
            app: None,
            verdict: "pass",
            age_s: 100,
            idle_s: 50,
            iface: None,
        }
    }

    #[test]
    fn nothing_given_means_every_flow() {
        assert!(Filter::default().matches(&row()));
    }

    #[test]
    fn each_filter_alone_can_leave_a_flow_out() {
        let all = Filter {
            src: Some("10.0.0.0/8".parse().unwrap()),
            dst: Some("20.0.0.2/32".parse().unwrap()),
            port: Some(80),
            proto: Some(6),
            state: Some("ESTABLISHED"),
            older: Some(50),
        };
        assert!(all.matches(&row()));
        let others = [
            Filter {
                src: Some("11.0.0.0/8".parse().unwrap()),
                ..all.clone()
            },
            Filter {
                dst: Some("fd00::/8".parse().unwrap()),
                ..all.clone()
            },
            Filter {
                port: Some(81),
                ..all.clone()
            },
            Filter {
                proto: Some(17),
                ..all.clone()
            },
            Filter {
                state: Some("CLOSE"),
                ..all.clone()
            },
            Filter {
                older: Some(51),
                ..all
            },
        ];
        for other in others {
            assert!(!other.matches(&row()), "{other:?}");
        }
    }

    #[test]
    fn states_are_taken_in_any_case() {
        assert_eq!(known_state("time_wait").unwrap(), "TIME_WAIT");
        assert!(known_state("open").is_err());
    }
}
