//! Metrics of inspection: the workers' own, and what their events say.

use fsm_common::escalate::STALE_NS;
use prometheus::{
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{Daemon, dpi::lost};
use crate::worker::{LATENCY_BOUNDS_NS, WorkerStatus};

/// A counter of workers: name, help, value.
type OfWorker = (&'static str, &'static str, fn(&WorkerStatus) -> u64);

const COUNTERS: [OfWorker; 12] = [
    (
        "fsm_worker_rx_packets_total",
        "Packets that a worker got",
        |w| w.counters.rx_packets,
    ),
    ("fsm_worker_rx_bytes_total", "Their bytes", |w| {
        w.counters.rx_bytes
    }),
    (
        "fsm_worker_tx_packets_total",
        "Packets that a worker gave back",
        |w| w.counters.tx_packets,
    ),
    ("fsm_worker_tx_bytes_total", "Their bytes", |w| {
        w.counters.tx_bytes
    }),
    (
        "fsm_worker_hops_total",
        "Packets that came by another worker's queue",
        |w| w.counters.hop_in,
    ),
    ("fsm_worker_rsts_total", "RSTs sent", |w| w.counters.rsts),
    (
        "fsm_worker_lost_total",
        "Packets lost at a worker or before its socket",
        lost,
    ),
    (
        "fsm_worker_restarts_total",
        "Engines made anew after a panic",
        |w| w.counters.restarts,
    ),
    (
        "fsm_worker_events_lost_total",
        "Events for which there was no room",
        |w| w.counters.events_lost,
    ),
    (
        "fsm_worker_sessions_refused_total",
        "Sessions for which there was no room",
        |w| w.engine.no_room,
    ),
    (
        "fsm_worker_undecoded_total",
        "Frames that no engine could read",
        |w| w.engine.undecoded,
    ),
    (
        "fsm_worker_verdicts_lost_total",
        "Verdicts that the kernel did not take",
        |w| w.counters.verdicts_lost,
    ),
];

impl Daemon {
    /// Registers them; gives the histogram, which the registry's own kinds cannot hold.
    pub(super) fn inspection(&self, registry: &Registry) -> anyhow::Result<Option<MetricFamily>> {
        for (name, help, label, rows) in [
            (
                "fsm_dpi_app_total",
                "Flows whose protocol was recognised",
                "app",
                self.heard
                    .apps()
                    .into_iter()
                    .map(|r| (r.app, r.flows))
                    .collect::<Vec<_>>(),
            ),
            (
                "fsm_dpi_threat_total",
                "Packets and flows that no honest peer sends",
                "name",
                self.heard
                    .threats()
                    .into_iter()
                    .map(|r| (r.name, r.count))
                    .collect(),
            ),
        ] {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            for (value, count) in rows {
                counters.with_label_values(&[value]).inc_by(count);
            }
        }
        let violations = IntCounterVec::new(
            Opts::new("fsm_dpi_violation_total", "Flows that a policy was against"),
            &["policy", "action"],
        )?;
        registry.register(Box::new(violations.clone()))?;
        for ((policy, denied), count) in &self.heard.violations {
            let action = if *denied { "deny" } else { "violate" };
            violations
                .with_label_values(&[policy.to_string().as_str(), action])
                .inc_by(*count);
        }
        let Some(inspection) = self.node.inspection() else {
            return Ok(None);
        };
        let status = inspection.status();
        for (name, help, value) in COUNTERS {
            let counters = IntCounterVec::new(Opts::new(name, help), &["core"])?;
            registry.register(Box::new(counters.clone()))?;
            for worker in &status {
                let core = worker.core.to_string();
                counters.with_label_values(&[&core]).inc_by(value(worker));
            }
        }
        let verdicts = IntCounterVec::new(
            Opts::new(
                "fsm_worker_verdicts_total",
                "Packets by what a worker said of them",
            ),
            &["core", "verdict"],
        )?;
        registry.register(Box::new(verdicts.clone()))?;
        let up = IntGaugeVec::new(
            Opts::new("fsm_worker_up", "1 while a worker takes packets"),
            &["core"],
        )?;
        registry.register(Box::new(up.clone()))?;
        for worker in &status {
            let (core, said) = (worker.core.to_string(), &worker.counters);
            for (verdict, count) in [
                ("pass", said.passed),
                ("allow", said.allowed),
                ("drop", said.dropped),
                ("deny", said.denied),
                ("reset", said.reset),
            ] {
                verdicts
                    .with_label_values(&[core.as_str(), verdict])
                    .inc_by(count);
            }
            let is_awake = worker.age_ns.is_some_and(|age| age < STALE_NS);
            let is_up = is_awake && !worker.has_ended;
            up.with_label_values(&[&core]).set(is_up.into());
        }
        let sessions = IntGauge::new("fsm_dpi_sessions", "Open sessions of all workers")?;
        registry.register(Box::new(sessions.clone()))?;
        sessions.set(status.iter().map(|w| w.engine.sessions as i64).sum());
        Ok(Some(latency(&status)))
    }
}

/// `fsm_escalation_latency_seconds`: from a hook's taking a packet to its being given back.
fn latency(status: &[WorkerStatus]) -> MetricFamily {
    let metrics = status.iter().map(|worker| {
        let mut sum = 0;
        let buckets =
            LATENCY_BOUNDS_NS
                .iter()
                .zip(&worker.latency_buckets)
                .map(|(bound, count)| {
                    sum += count;
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(*bound as f64 / 1e9);
                    bucket.set_cumulative_count(sum);
                    bucket
                });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(worker.latency_buckets.iter().sum());
        histogram.set_sample_sum(worker.latency_sum_ns as f64 / 1e9);
        let mut label = LabelPair::default();
        label.set_name("core".to_owned());
        label.set_value(worker.core.to_string());
        let mut metric = Metric::from_label(vec![label]);
        metric.set_histogram(histogram);
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name("fsm_escalation_latency_seconds".to_owned());
    family.set_help("From a hook's taking a packet to its being given back by a worker".to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(metrics.collect());
    family
}
