//! Inspection on this node: the pair of devices, the workers on it, and the engines that they run.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fsm_common::{
    escalate::HEAD,
    wire::l2::{ETH_LEN, VLAN_LEN},
};
use rtnetlink::Handle;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::{
    apply::ToWorkers,
    attach::TcKind,
    devices::Device,
    dpi::{self, NAMES, Pair},
    node::NodeError,
    objects::Objects,
};
use crate::{
    config::{Config, DpiMode, Fail},
    dpi::{Engine, Inspector, Policies, SessionView, Settings},
    worker::{Factory, Setup, Told, WorkerStatus, Workers, max_frame},
};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a frame with its headroom: the small size, and the large one.
const FRAME_BYTES: [u32; 2] = [2048, 4096];
/// What a frame can be longer than its MTU: Ethernet header and a VLAN tag inside.
const L2: u32 = (ETH_LEN + VLAN_LEN) as u32;

/// What an engine is made with. Engines that take the place of one that has panicked are made with it too.
#[derive(Clone)]
struct Terms {
    settings: Settings,
    policies: Arc<Policies>,
}

/// What takes other workers when it changes.
#[derive(Clone, PartialEq, Eq)]
struct Shape {
    cores: Vec<u32>,
    frames: u32,
    frame_bytes: u32,
    /// Of the pair.
    mtu: u32,
    /// Bytes of the largest frame.
    frame: u32,
    max_sessions: u32,
}

impl Shape {
    fn of(config: &Config, devices: &[Device]) -> Self {
        let largest = devices
            .iter()
            .filter(|device| config.interface_for(&device.name).is_some())
            .map(|device| device.mtu)
            .max()
            .unwrap_or(1500);
        let fits = |bytes: &u32| max_frame(*bytes) >= largest + L2;
        let frame_bytes = FRAME_BYTES.into_iter().find(fits).unwrap_or(FRAME_BYTES[1]);
        let mtu = dpi::mtu_for(largest);
        Self {
            cores: cores(config),
            frames: config.dpi.frames,
            frame_bytes,
            mtu,
            frame: max_frame(frame_bytes).min(mtu + ETH_LEN as u32 - HEAD as u32),
            max_sessions: config.dpi.max_sessions,
        }
    }
}

/// The configured ones; without any, the last CPU alone: the first ones serve interrupts on most hosts.
fn cores(config: &Config) -> Vec<u32> {
    if !config.dpi.cores.is_empty() {
        return config.dpi.cores.clone();
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    vec![cpus - 1]
}

/// Pair, workers, engines.
pub struct Inspection {
    shape: Shape,
    pair: Pair,
    workers: Workers,
    terms: Arc<Mutex<Terms>>,
}

impl Inspection {
    /// Makes the pair and starts the workers, over maps that are there. Packets come once the pair has its programs
    /// ([`Self::attach`]) and the settings say so; both are so already where an earlier daemon has left them.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(
        config: &Config,
        devices: &[Device],
        dir: &Path,
        handle: &Handle,
        events: Sender<Told>,
    ) -> Result<Self, NodeError> {
        let shape = Shape::of(config, devices);
        let terms = Arc::new(Mutex::new(terms(config)?));
        let queues = shape.cores.len() as u32;
        let pair = dpi::ensure(handle, NAMES, queues, shape.mtu).await?;
        let setup = Setup {
            fail_open: config.node.fail == Fail::Open,
            frame_bytes: shape.frame_bytes,
            frames: shape.frames,
            ..Setup::new(
                pair.back.ifindex,
                shape.cores.clone(),
                dir.to_owned(),
                events,
            )
        };
        let workers = Workers::start(&setup, &factory(&terms)).map_err(NodeError::Workers)?;
        info!(
            mode = %config.dpi.mode,
            cores = ?shape.cores,
            largest_frame = shape.frame,
            adopted = pair.is_adopted,
            "inspection is on"
        );
        Ok(Self {
            shape,
            pair,
            workers,
            terms,
        })
    }

    /// Puts the programs on the pair.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn attach(&self, objects: &mut Objects, dir: &Path, tc: TcKind) -> Result<(), NodeError> {
        Ok(dpi::attach(objects, dir, &self.pair, tc)?)
    }

    /// Whether this configuration, on a host with these devices, takes other workers; also where one has ended.
    pub fn must_restart(&self, config: &Config, devices: &[Device]) -> bool {
        let is_there = [&self.pair.front, &self.pair.back]
            .iter()
            .all(|end| devices.iter().any(|d| d.ifindex == end.ifindex && d.is_up));
        self.shape != Shape::of(config, devices) || !is_there || self.workers.has_ended()
    }

    /// Whether a worker has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.workers.has_ended()
    }

    /// Gives the engines another mode and other policies. Waits for them: what is in force in the kernel afterwards
    /// is judged by these.
    ///
    /// # Errors
    /// Where a policy cannot be compiled; nothing is changed then.
    pub fn configure(&self, config: &Config) -> Result<(), NodeError> {
        let new = terms(config)?;
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = new.clone();
        self.workers.set_fail_open(config.node.fail == Fail::Open);
        let (mode, policies) = (new.settings.mode, new.policies);
        let told: Vec<_> = (0..self.workers.len())
            .filter_map(|worker| {
                let policies = policies.clone();
                self.workers
                    .with_engine(worker, move |engine| engine.configure(mode, &policies))
            })
            .collect();
        let heard = told
            .into_iter()
            .filter(|from| from.recv_timeout(PATIENCE).is_ok())
            .count();
        if heard < self.workers.len() {
            warn!(
                "{} of {} workers have not heard of the new policy yet",
                self.workers.len() - heard,
                self.workers.len()
            );
        }
        Ok(())
    }

    /// What the kernel is told of the way to the workers.
    pub fn way(&self) -> ToWorkers {
        ToWorkers {
            ifindex: self.pair.front.ifindex,
            count: self.workers.len() as u16,
            frame: self.shape.frame,
        }
    }

    /// Every worker's numbers.
    pub fn status(&self) -> Vec<WorkerStatus> {
        self.workers.status()
    }

    /// Up to `limit` open sessions of all workers.
    pub fn sessions(&self, now_ns: u64, limit: usize) -> Vec<(usize, SessionView)> {
        let asked: Vec<_> = (0..self.workers.len())
            .filter_map(|worker| {
                let sessions = move |engine: &mut dyn Engine| engine.sessions(now_ns, limit);
                Some((worker, self.workers.with_engine(worker, sessions)?))
            })
            .collect();
        asked
            .into_iter()
            .flat_map(|(worker, from)| {
                let sessions = from.recv_timeout(PATIENCE).unwrap_or_default();
                sessions.into_iter().map(move |session| (worker, session))
            })
            .take(limit)
            .collect()
    }
}

/// What the configuration says of engines.
///
/// # Errors
/// Where a policy cannot be compiled.
fn terms(config: &Config) -> Result<Terms, NodeError> {
    let dpi = &config.dpi;
    let policies = Policies::compile(dpi).map_err(NodeError::Policy)?;
    let workers = cores(config).len();
    Ok(Terms {
        settings: Settings {
            mode: dpi.mode,
            max_sessions: (dpi.max_sessions as usize).div_ceil(workers),
            stream_depth: dpi.stream_depth.0,
        },
        policies: Arc::new(policies),
    })
}

/// Makes engines by the terms of the moment.
fn factory(terms: &Arc<Mutex<Terms>>) -> Factory {
    let terms = terms.clone();
    Arc::new(move |worker| {
        let Terms { settings, policies } =
            terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Unguessable, and another for each engine.
        let seed = RandomState::new().hash_one(worker);
        Box::new(Inspector::new(settings, policies, seed))
    })
}

/// Whether a configuration wants inspection.
pub fn is_wanted(config: &Config) -> bool {
    config.dpi.mode != DpiMode::Off
}
