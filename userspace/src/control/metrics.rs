//! Prometheus text over HTTP. Every scrape reads the maps: nothing is kept or sampled in between.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fsm_common::{
    maps::{IFACE_SLOTS, MAPS, MapKind},
    stats::{Hook, Verdict},
};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use tiny_http::{Header, Response, Server};
use tokio::sync::{mpsc, oneshot};

use super::Daemon;
use crate::view::nat::NatRow;
use crate::view::protect::Protected;

/// How long a scrape may wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reloads so far.
#[derive(Debug, Default)]
pub struct Reloads {
    ok: u64,
    failed: u64,
}

impl Reloads {
    /// Counts one.
    pub fn count(&mut self, ok: bool) {
        *(if ok { &mut self.ok } else { &mut self.failed }) += 1;
    }
}

/// Where the text of one scrape goes.
pub type Scrape = oneshot::Sender<String>;

/// Listens; each scrape goes to `scrapes`.
pub fn listen(address: SocketAddr, scrapes: mpsc::Sender<Scrape>) -> anyhow::Result<()> {
    let server = Server::http(address)
        .map_err(|error| anyhow::anyhow!("metrics cannot be served: {error}"))?;
    let server = Arc::new(server);
    std::thread::Builder::new()
        .name("fsm-metrics".into())
        .spawn(move || {
            for request in server.incoming_requests() {
                let text = match request.url() {
                    "/metrics" | "/" => ask(&scrapes),
                    _ => None,
                };
                let _ = match text {
                    Some(text) => {
                        let kind = "Content-Type: text/plain; version=0.0.4; charset=utf-8"
                            .parse::<Header>();
                        let mut response = Response::from_string(text);
                        if let Ok(kind) = kind {
                            response.add_header(kind);
                        }
                        request.respond(response)
                    }
                    None => request.respond(Response::empty(404)),
                };
            }
        })?;
    Ok(())
}

fn ask(scrapes: &mpsc::Sender<Scrape>) -> Option<String> {
    let (to, from) = oneshot::channel();
    scrapes.blocking_send(to).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, from).await.ok()?.ok() })
}

impl Daemon {
    /// The text of one scrape.
    pub(super) fn metrics(&self) -> String {
        self.collect()
            .unwrap_or_else(|error| format!("# {error:#}\n"))
    }

    fn collect(&self) -> anyhow::Result<String> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> anyhow::Result<IntCounterVec> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let labels = ["hook", "iface", "dir", "verdict"];
        let packets = counters(
            "fsm_packets_total",
            "Packets by hook, interface, direction and verdict",
            &labels,
        )?;
        let bytes = counters(
            "fsm_bytes_total",
            "Frame bytes by hook, interface, direction and verdict",
            &labels,
        )?;
        let drops = counters("fsm_drops_total", "Dropped packets by reason", &["reason"])?;
        let notes = counters(
            "fsm_notes_total",
            "Packets that went another way than wished, by reason",
            &["reason"],
        )?;
        let new = counters("fsm_flow_new_total", "Flows made", &[])?;
        let nat = counters("fsm_nat_total", "Packets translated", &[])?;
        let escalated = counters(
            "fsm_escalated_total",
            "Packets that waited for a worker",
            &[],
        )?;
        let evicted = counters(
            "fsm_flow_evicted_total",
            "Flows ended early because the table was nearly full",
            &[],
        )?;
        evicted.with_label_values::<&str>(&[]).inc_by(self.evicted);
        let reloads = counters("fsm_config_reload_total", "Reloads by result", &["result"])?;
        reloads.with_label_values(&["ok"]).inc_by(self.reloads.ok);
        reloads
            .with_label_values(&["failed"])
            .inc_by(self.reloads.failed);
        if let Some(log) = &self.eve {
            let lost = counters(
                "fsm_eve_lost_total",
                "Records of the event log that were lost",
                &[],
            )?;
            lost.with_label_values::<&str>(&[]).inc_by(log.lost());
            let written = counters("fsm_eve_written_total", "Records of the event log", &[])?;
            written.with_label_values::<&str>(&[]).inc_by(log.written());
        }
        self.packets(&packets, &bytes, [&nat, &escalated])?;
        for (reason, count) in self.node.maps.reasons()? {
            let vec = if reason.is_drop() { &drops } else { &notes };
            vec.with_label_values(&[reason.name()]).inc_by(count);
            if reason == fsm_common::Reason::FlowNew {
                new.with_label_values(&[] as &[&str]).inc_by(count);
            }
        }
        let sizes = IntGaugeVec::new(
            Opts::new("fsm_map_max_entries", "Capacity of a map"),
            &["map"],
        )?;
        registry.register(Box::new(sizes.clone()))?;
        for spec in MAPS
            .iter()
            .filter(|spec| !matches!(spec.kind, MapKind::ProgramArray | MapKind::XskMap))
        {
            let max = self.node.maps.max_entries(spec.name)?;
            sizes.with_label_values(&[spec.name]).set(max.into());
        }
        self.endpoints(&registry)?;
        let protected = counters(
            "fsm_protect_total",
            "New flows to protected destinations: passed, or over the rate",
            &["to", "proto", "family", "result"],
        )?;
        self.protected(&protected)?;
        self.flows(&registry)?;
        let latency = self.inspection(&registry)?;
        let mut families = registry.gather();
        families.extend(latency);
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }

    fn packets(
        &self,
        packets: &IntCounterVec,
        bytes: &IntCounterVec,
        [nat, escalated]: [&IntCounterVec; 2],
    ) -> anyhow::Result<()> {
        let names: std::collections::HashMap<_, _> = self
            .node
            .interfaces()
            .into_iter()
            .map(|i| (i.ifindex, i.name))
            .collect();
        for slot in 0..IFACE_SLOTS {
            let entry = self.node.maps.iface.get(&slot, 0)?;
            let Some(name) = names.get(&entry.ifindex) else {
                continue;
            };
            let cpus = self.node.maps.ifstats.get(&slot, 0)?;
            for hook in Hook::ALL {
                for verdict in Verdict::ALL {
                    let of = |stats: &fsm_common::stats::IfaceStats| {
                        stats.counts[hook as usize][verdict as usize]
                    };
                    let sum = cpus
                        .iter()
                        .map(of)
                        .fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
                    let (hook, dir) = hook.labels();
                    let labels = [hook, name.as_str(), dir, verdict.name()];
                    packets.with_label_values(&labels).inc_by(sum.0);
                    bytes.with_label_values(&labels).inc_by(sum.1);
                    match verdict {
                        Verdict::Nat => nat.with_label_values::<&str>(&[]).inc_by(sum.0),
                        Verdict::Escalate => {
                            escalated.with_label_values::<&str>(&[]).inc_by(sum.0);
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Endpoints of NAT entries.
    fn endpoints(&self, registry: &Registry) -> anyhow::Result<()> {
        let up = IntGaugeVec::new(
            Opts::new(
                "fsm_nat_endpoint_up",
                "1 while an endpoint of a NAT entry takes new flows",
            ),
            &["system", "direction", "proto", "to", "endpoint"],
        )?;
        registry.register(Box::new(up.clone()))?;
        for (key, value) in self.node.nat() {
            let row = NatRow::new(key, value);
            for endpoint in &row.endpoints {
                let labels = [
                    row.system,
                    row.direction,
                    row.proto.as_ref(),
                    row.to.as_str(),
                    endpoint.addr.as_str(),
                ];
                up.with_label_values(&labels)
                    .set(i64::from(endpoint.active && endpoint.weight > 0));
            }
        }
        Ok(())
    }

    fn protected(&self, flows: &IntCounterVec) -> anyhow::Result<()> {
        for entry in self.node.maps.guard.iter() {
            let (key, bucket) = entry?;
            let row = Protected::new(&key, &bucket);
            for (result, count) in [("passed", row.passed), ("over", row.over)] {
                let labels = [row.to.as_str(), row.proto, row.family.as_str(), result];
                flows.with_label_values(&labels).inc_by(count);
            }
        }
        Ok(())
    }

    /// Flows by protocol and state, and the fill of the tables, as the last full sweep saw them.
    fn flows(&self, registry: &Registry) -> anyhow::Result<()> {
        let flows = IntGaugeVec::new(
            Opts::new("fsm_flows", "Flows by protocol and state"),
            &["proto", "state"],
        )?;
        let fill = IntGaugeVec::new(Opts::new("fsm_map_entries", "Entries of a map"), &["map"])?;
        registry.register(Box::new(flows.clone()))?;
        registry.register(Box::new(fill.clone()))?;
        let census = self.sweep.census();
        for ((proto, state), count) in &census.flows {
            let proto = crate::view::proto(*proto);
            flows
                .with_label_values(&[proto.as_ref(), crate::view::state::name(*state)])
                .set(*count);
        }
        for (map, entries) in &census.entries {
            fill.with_label_values(&[*map]).set(*entries);
        }
        Ok(())
    }
}
