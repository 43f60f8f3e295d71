//! What the daemon makes of inspection: its events, its numbers, its answers.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::{Daemon, Then, sweep};
use crate::{
    dpi::Event,
    view::{
        dpi::{AppRow, SessionRow, ThreatRow},
        worker::{Frames, Hops, Verdicts, Ways, WorkerRow},
    },
    worker::{Told, WorkerStatus},
};

/// A worker whose last round is longer ago is called hung, nanoseconds.
const HUNG_NS: u64 = fsm_common::escalate::STALE_NS;
/// Protocols and threats that are told apart; engines have far fewer.
const MAX_NAMES: usize = 1024;

/// What events have said since the daemon started.
#[derive(Debug, Default)]
pub struct Heard {
    apps: BTreeMap<&'static str, (u64, String)>,
    threats: BTreeMap<&'static str, (u64, String, String)>,
    /// Flows that a policy was against, by its number and whether they were stopped.
    pub violations: BTreeMap<(usize, bool), u64>,
    /// Sessions that have ended.
    pub sessions_ended: u64,
}

impl Heard {
    /// Takes note of an event.
    pub fn note(&mut self, told: Told) {
        match told.event {
            Event::App { app, info, .. } => {
                if self.apps.len() < MAX_NAMES || self.apps.contains_key(app) {
                    let entry = self.apps.entry(app).or_default();
                    entry.0 += 1;
                    let said = info.iter().map(|(name, value)| format!("{name}={value}"));
                    entry.1 = said.collect::<Vec<_>>().join(" ");
                }
            }
            Event::Threat { from, to, name, .. } => {
                if self.threats.len() < MAX_NAMES || self.threats.contains_key(name) {
                    let entry = self.threats.entry(name).or_default();
                    *entry = (entry.0 + 1, from.to_string(), to.to_string());
                }
            }
            Event::Violation {
                client,
                server,
                proto,
                app,
                policy,
                denied,
            } => {
                *self.violations.entry((policy, denied)).or_default() += 1;
                let what = if denied { "denied" } else { "violation" };
                let proto = crate::view::proto(proto);
                info!(%client, %server, %proto, app, policy, "{what}");
            }
            Event::Flow { .. } => self.sessions_ended += 1,
        }
    }

    /// Flows by protocol.
    pub fn apps(&self) -> Vec<AppRow> {
        let row = |(app, (flows, last)): (&&str, &(u64, String))| AppRow {
            app: (*app).to_owned(),
            flows: *flows,
            last: last.clone(),
        };
        self.apps.iter().map(row).collect()
    }

    /// Threats by name.
    pub fn threats(&self) -> Vec<ThreatRow> {
        let row = |(name, (count, from, to)): (&&str, &(u64, String, String))| ThreatRow {
            name: (*name).to_owned(),
            count: *count,
            from: from.clone(),
            to: to.clone(),
        };
        self.threats.iter().map(row).collect()
    }
}

impl Daemon {
    /// Workers as `status` shows them.
    pub(super) fn worker_rows(&self) -> Vec<WorkerRow> {
        let status = self.node.inspection().map(|i| i.status());
        status.unwrap_or_default().iter().map(row).collect()
    }

    /// Open sessions.
    pub(super) fn session_rows(&self, limit: usize) -> Vec<SessionRow> {
        let sessions = self
            .node
            .inspection()
            .map(|inspection| inspection.sessions(sweep::now_ns(), limit));
        sessions
            .unwrap_or_default()
            .iter()
            .map(|(worker, session)| SessionRow::new(*worker, session))
            .collect()
    }

    /// Sets `dpi.mode` until the next reload, or shows it.
    pub(super) async fn dpi_mode(
        &mut self,
        mode: Option<String>,
        save: bool,
    ) -> anyhow::Result<String> {
        let Some(mode) = mode else {
            return Ok(self.node.config().dpi.mode.to_string());
        };
        self.edit(|config| super::change::dpi_mode(config, &mode, save), "set")
            .await
    }

    /// Workers are looked after.
    pub(super) async fn tend(&mut self) -> Then {
        if let Err(error) = self.node.keep_staffed(&mut self.netlink).await {
            warn!("inspection cannot go on: {error}");
        }
        Then::GoOn
    }
}

fn row(status: &WorkerStatus) -> WorkerRow {
    let counters = &status.counters;
    let state = if status.has_ended {
        "ended"
    } else if status.age_ns.is_none_or(|age| age > HUNG_NS) {
        "hung"
    } else {
        "alive"
    };
    let us = |ns: u64| ns as f64 / 1000.0;
    WorkerRow {
        worker: status.worker,
        core: status.core,
        state: state.to_owned(),
        tid: status.tid,
        packets: Ways {
            rx: counters.rx_packets,
            tx: counters.tx_packets,
        },
        bytes: Ways {
            rx: counters.rx_bytes,
            tx: counters.tx_bytes,
        },
        verdicts: Verdicts {
            pass: counters.passed,
            allow: counters.allowed,
            drop: counters.dropped,
            deny: counters.denied,
            reset: counters.reset,
        },
        hops: Hops {
            into: counters.hop_in,
            out: counters.hop_out,
            full: counters.hop_full,
        },
        restarts: counters.restarts,
        events_lost: counters.events_lost,
        lost: lost(status),
        frames: Frames {
            total: status.frames.total.into(),
            fill: status.frames.fill.into(),
            leaked: status.frames.leaked,
        },
        sessions: status.engine.sessions,
        sessions_refused: status.engine.no_room,
        batch: [status.batch.p50, status.batch.p99],
        latency_us: [
            us(status.latency.p50),
            us(status.latency.p99),
            us(status.latency.max),
        ],
    }
}

/// Packets that were lost at a worker or before its socket.
pub(super) fn lost(status: &WorkerStatus) -> u64 {
    let (counters, xsk) = (&status.counters, &status.xsk);
    counters.hop_full
        + counters.tx_full
        + counters.too_long
        + counters.strange
        + xsk.rx_dropped
        + xsk.rx_ring_full
        + xsk.fill_empty
}
