//! The daemon: one task owns the data path and does one thing at a time, whatever asks for it (signals, the
//! API, netlink, timers). The data path itself needs none of this to go on.
//!
//! How it stops: SIGTERM and SIGINT end the daemon and leave the data path in place, for the next daemon to
//! take over; `down` removes the data path, then ends the daemon.

mod announce;
mod answer;
mod change;
mod dpi;
pub mod eve;
mod health;
mod metrics;
mod server;
pub mod sweep;
mod watch;
mod worker_metrics;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fsm_common::Reason;
use rtnetlink::Handle;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{debug, error, info, warn};

use crate::{
    api::Request,
    config::{self, Config, NatProto},
    loader::{
        node::{Node, NodeError},
        syn_cookie::Sysctls,
    },
};

/// How often a slice of the flow tables is swept.
const SWEEP_EVERY: Duration = Duration::from_millis(125);
/// How often they are while the main one is nearly full.
const SWEEP_PRESSED: Duration = Duration::from_millis(20);
/// How often virtual addresses are looked through for announcements, and workers are looked after.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// Events of workers that wait to be read; more are lost, and counted.
const EVENTS: usize = 16384;
/// Events that are read in one go.
const EVENTS_AT_ONCE: usize = 1024;
/// How long netlink events are gathered before they are acted upon.
const SETTLE: Duration = Duration::from_millis(30);

/// A request and where its answer goes.
struct Question {
    request: Request,
    answer: tokio::sync::oneshot::Sender<crate::api::Response>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Then {
    GoOn,
    Stop,
}

struct Daemon {
    node: Node,
    netlink: Handle,
    path: PathBuf,
    started: Instant,
    sweep: sweep::Sweep,
    reloads: metrics::Reloads,
    /// Flows ended for want of room.
    evicted: u64,
    /// [`Self::no_room`] at the last sweep.
    no_room: u64,
    checks: health::Checks,
    announcer: announce::Announcer,
    /// What workers have told.
    heard: dpi::Heard,
    /// The log of what they tell, where one is kept.
    eve: Option<crate::eve::log::Log>,
    /// The data path was removed on request.
    removed: bool,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Where it cannot start: one sentence that says why; the host is as it was.
pub fn run(config: Config, path: PathBuf) -> anyhow::Result<()> {
    let pending = config.not_built_yet();
    anyhow::ensure!(pending.is_empty(), "{}", pending.join("\n"));
    if !config.gateway.exclude_uids.is_empty() {
        warn!(
            "{}: the host's side of a veth does not see users: this does nothing without attach = \"inside\"",
            config.at("gateway.exclude_uids")
        );
    }
    warn_of_cookies(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    runtime.block_on(serve(config, path))
}

/// Says where the host's settings do not fit what `[[protect]]` asks for.
fn warn_of_cookies(config: &Config) {
    let Some(i) = config.protect.iter().position(|p| p.proto == NatProto::Tcp) else {
        return;
    };
    let sysctls = Sysctls::read();
    if let Some(lack) = sysctls.lack().or_else(|| sysctls.shortcoming()) {
        warn!("{}: {lack}", config.at(&format!("protect[{i}]")));
    }
}

async fn serve(config: Config, path: PathBuf) -> anyhow::Result<()> {
    let (connection, mut netlink, _) =
        rtnetlink::new_connection().context("netlink cannot be opened")?;
    tokio::spawn(connection);
    let api = config.node.api.clone();
    server::refuse_second(&api)?;
    let metrics_at = config.node.metrics;
    let log = eve::open(&config)?;
    let (tell, mut told) = mpsc::channel(EVENTS);
    let node = Node::start(config, &mut netlink, tell).await?;
    let (questions, mut asked) = mpsc::channel(64);
    server::listen(&api, questions)?;
    let (events, mut changed) = mpsc::channel(64);
    watch::start(events).context("netlink cannot be watched")?;
    let sweep = sweep::Sweep::new(&node.maps.dir)?.paced();
    let (reports, mut reported) = mpsc::channel(64);
    let mut daemon = Daemon {
        node,
        netlink,
        path,
        started: Instant::now(),
        sweep,
        reloads: metrics::Reloads::default(),
        evicted: 0,
        no_room: 0,
        checks: health::Checks::new(reports),
        announcer: announce::Announcer::default(),
        heard: dpi::Heard::default(),
        eve: log,
        removed: false,
    };
    daemon.has_changed();
    let (scrapes, mut scraped) = mpsc::channel(8);
    if let Some(address) = metrics_at {
        metrics::listen(address, scrapes).with_context(|| format!("node.metrics {address}"))?;
    }
    let (mut hangup, mut term, mut int) = (
        signal(SignalKind::hangup())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
    announce.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stats = tokio::time::interval_at(
        tokio::time::Instant::now() + eve::STATS_EVERY,
        eve::STATS_EVERY,
    );
    stats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    info!(
        node = daemon.node.config().node.name,
        adopted = daemon.node.adopted,
        "ready"
    );
    loop {
        let then = tokio::select! {
            Some(question) = asked.recv() => daemon.answer(question).await,
            Some(event) = changed.recv() => daemon.follow(event, &mut changed).await,
            Some(scrape) = scraped.recv() => {
                let _ = scrape.send(daemon.metrics());
                Then::GoOn
            }
            _ = tick.tick() => {
                let then = daemon.sweep();
                if daemon.sweep.is_pressed() {
                    tick.reset_after(SWEEP_PRESSED);
                }
                then
            }
            Some(report) = reported.recv() => daemon.health(report),
            Some(event) = told.recv() => {
                daemon.hear(event);
                // Not one round of this loop for each: a flood of them would be all that it does.
                for _ in 0..EVENTS_AT_ONCE {
                    let Ok(event) = told.try_recv() else { break };
                    daemon.hear(event);
                }
                Then::GoOn
            }
            _ = announce.tick() => {
                daemon.announcer.step(Instant::now());
                daemon.tend().await
            }
            _ = stats.tick() => {
                daemon.log_stats();
                Then::GoOn
            }
            _ = hangup.recv() => {
                if let Err(error) = daemon.reload().await {
                    error!("not reloaded, the old configuration stays: {error:#}");
                }
                Then::GoOn
            }
            _ = term.recv() => Then::Stop,
            _ = int.recv() => Then::Stop,
        };
        if then == Then::Stop {
            break;
        }
    }
    if daemon.removed {
        info!("ended; the data path is removed");
    } else {
        let _ = std::fs::remove_file(&api);
        info!("ended; the data path stays (remove it with `fsm-fastpath down`)");
    }
    Ok(())
}

impl Daemon {
    /// Reads the file again and takes it over.
    async fn reload(&mut self) -> anyhow::Result<String> {
        // Whatever becomes of the configuration: the log may have been renamed.
        if let Some(log) = &self.eve {
            log.reopen();
        }
        let result = self.reload_file().await;
        self.reloads.count(result.is_ok());
        result
    }

    async fn reload_file(&mut self) -> anyhow::Result<String> {
        let config = config::load(&self.path)?;
        let pending = config.not_built_yet();
        anyhow::ensure!(pending.is_empty(), "{}", pending.join("\n"));
        let old = self.node.config();
        let fixed = |c: &Config| {
            (
                c.node.bpffs.clone(),
                c.node.api.clone(),
                c.conntrack.max_flows,
                c.conntrack.max_half_open,
            )
        };
        anyhow::ensure!(
            fixed(old) == fixed(&config),
            "node.bpffs, node.api, conntrack.max_flows and max_half_open only change with a new start of the daemon"
        );
        let at_start = |c: &Config| (c.node.metrics, c.node.log, c.node.format);
        if at_start(old) != at_start(&config) {
            warn!(
                "node.metrics, node.log and node.format change with the next start of the daemon"
            );
        }
        warn_of_cookies(&config);
        let hash = config.hash().to_owned();
        let log = self.other_log(&config)?;
        self.change(config).await?;
        if let Some(log) = log {
            self.take_log(log);
        }
        info!(config = hash, "reloaded");
        Ok(format!("reloaded, configuration {hash}"))
    }

    /// Takes a changed configuration over as it is in memory.
    async fn change(&mut self, config: Config) -> Result<(), NodeError> {
        let result = self.node.reload(config, &mut self.netlink).await;
        self.has_changed();
        result
    }

    /// The node may have another configuration or other devices: probes and announcements follow.
    fn has_changed(&mut self) {
        self.checks.sync(self.node.config(), self.node.down());
        self.announcer
            .sync(self.node.vips().to_vec(), Instant::now());
    }

    /// An endpoint has gone down or come up.
    fn health(&mut self, report: health::Report) -> Then {
        let health::Report {
            endpoint,
            is_up,
            seen,
        } = report;
        let (key, addr) = endpoint;
        let to = crate::view::nat::target(&key, key.v6 != 0);
        match self.node.set_health(endpoint, is_up) {
            Ok(false) => {}
            Ok(true) if is_up => info!(endpoint = %addr, to, "endpoint up: {seen}"),
            Ok(true) => warn!(endpoint = %addr, to, "endpoint down: {seen}"),
            Err(error) => warn!(endpoint = %addr, to, "health cannot be set: {error}"),
        }
        Then::GoOn
    }

    fn sweep(&mut self) -> Then {
        let conntrack = self.node.config().conntrack;
        let no_room = self.no_room();
        let is_full = std::mem::replace(&mut self.no_room, no_room) < no_room;
        // A pass over a full table takes a minute; over a common one, a step.
        let swept = self
            .sweep
            .step(&mut self.node.maps, &conntrack, sweep::now_ns(), is_full);
        self.evicted += swept.evicted as u64;
        if swept.ended + swept.evicted > 0 {
            debug!(?swept, "swept");
        }
        Then::GoOn
    }

    /// Flows that have found the table full.
    fn no_room(&self) -> u64 {
        let count = |reason: Reason| self.node.maps.reason.get(&(reason as u32), 0);
        [Reason::TableFull, Reason::TableFullOpen]
            .into_iter()
            .filter_map(|reason| count(reason).ok())
            .map(|cpus| cpus.iter().sum::<u64>())
            .sum()
    }

    /// Devices, routes or neighbours have changed; several events close together are one.
    async fn follow(
        &mut self,
        first: watch::Event,
        more: &mut mpsc::Receiver<watch::Event>,
    ) -> Then {
        let mut devices = first == watch::Event::Device;
        tokio::time::sleep(SETTLE).await;
        while let Ok(event) = more.try_recv() {
            devices |= event == watch::Event::Device;
        }
        let result = if devices {
            self.node.reconcile(&mut self.netlink).await
        } else {
            self.node.next_generation().map(drop)
        };
        if let Err(error) = result {
            warn!("the host has changed and cannot be followed: {error}");
        }
        if devices {
            self.has_changed();
        }
        Then::GoOn
    }
}
