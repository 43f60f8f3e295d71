//! `[events]`: the log of what workers tell.

use std::{io, path::Path, time::Duration};

use serde_json::{Value, json};

use super::{Daemon, dpi::lost, sweep};
use crate::{
    config::{Config, ConfigErrors, ValueError},
    eve::log::Log,
    worker::Told,
};

const KEY: &str = "events.eve";
/// How often counters are written.
pub(super) const STATS_EVERY: Duration = Duration::from_secs(30);

/// Whether the log could be opened, as far as can be said without making a file.
///
/// # Errors
/// Its folder is not there.
pub fn check(config: &Config) -> Result<(), ConfigErrors> {
    let Some(path) = &config.events.eve else {
        return Ok(());
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    if path.is_dir() {
        return Err(refused(config, &format!("{} is a folder", path.display())));
    }
    match folder.is_dir() {
        true => Ok(()),
        false => Err(refused(
            config,
            &format!("there is no folder {}", folder.display()),
        )),
    }
}

/// Opens the log that a configuration asks for.
///
/// # Errors
/// It cannot be opened.
pub(super) fn open(config: &Config) -> Result<Option<Log>, ConfigErrors> {
    check(config)?;
    let Some(path) = &config.events.eve else {
        return Ok(None);
    };
    let failed = |error: io::Error| {
        let what = format!("{} cannot be opened: {error}", path.display());
        refused(config, &what)
    };
    Log::open(path, &config.node.name).map(Some).map_err(failed)
}

fn refused(config: &Config, what: &str) -> ConfigErrors {
    let allowed = "a file in a folder that is there, or \"\" for off";
    config.refused(KEY, &ValueError::new(what, allowed))
}

impl Daemon {
    /// The log for another configuration; `None` where the one there is stays.
    pub(super) fn other_log(&self, config: &Config) -> Result<Option<Option<Log>>, ConfigErrors> {
        let wanted = |c: &Config| (c.events.eve.clone(), c.node.name.clone());
        match wanted(config) == wanted(self.node.config()) {
            true => Ok(None),
            false => open(config).map(Some),
        }
    }

    /// Puts another log in place; what is queued for the old one is written meanwhile.
    pub(super) fn take_log(&mut self, log: Option<Log>) {
        let old = std::mem::replace(&mut self.eve, log);
        tokio::task::spawn_blocking(move || drop(old));
    }

    /// Takes note of what a worker tells.
    pub(super) fn hear(&mut self, told: Told) {
        if let Some(log) = &self.eve {
            log.event(sweep::now_ns(), told.event.clone());
        }
        self.heard.note(told);
    }

    /// Has counters written.
    pub(super) fn log_stats(&self) {
        if let Some(log) = &self.eve {
            log.stats(self.eve_stats());
        }
    }

    /// Counters of all workers, by Suricata's names where it has them, and of each.
    fn eve_stats(&self) -> Value {
        let status = self.node.inspection().map(|i| i.status());
        let status = status.unwrap_or_default();
        let sum = |of: &dyn Fn(&crate::worker::WorkerStatus) -> u64| -> u64 {
            status.iter().map(of).sum()
        };
        let workers: Vec<Value> = status
            .iter()
            .map(|worker| {
                let counters = &worker.counters;
                json!({
                    "worker": worker.worker, "core": worker.core,
                    "rx_packets": counters.rx_packets, "rx_bytes": counters.rx_bytes,
                    "tx_packets": counters.tx_packets, "tx_bytes": counters.tx_bytes,
                    "pass": counters.passed, "allow": counters.allowed, "drop": counters.dropped,
                    "deny": counters.denied, "reset": counters.reset, "lost": lost(worker),
                    "events_lost": counters.events_lost, "sessions": worker.engine.sessions,
                })
            })
            .collect();
        let packets = sum(&|w| w.counters.rx_packets);
        json!({
            "uptime": self.started.elapsed().as_secs(),
            "capture": {"kernel_packets": packets, "kernel_drops": sum(&lost)},
            "decoder": {
                "pkts": packets, "bytes": sum(&|w| w.counters.rx_bytes),
                "invalid": sum(&|w| w.engine.undecoded),
            },
            "flow": {
                "active": sum(&|w| w.engine.sessions as u64), "ended": self.heard.sessions_ended,
                "no_room": sum(&|w| w.engine.no_room), "evicted": sum(&|w| w.engine.evicted),
            },
            "detect": {"alert": self.heard.violations.values().sum::<u64>()},
            "eve": {
                "written": self.eve.as_ref().map(Log::written), "lost": self.eve.as_ref().map(Log::lost),
            },
            "workers": workers,
        })
    }
}
