//! Workers: pinned threads, each with an AF_XDP socket on one queue of `dpi1`, that have packets judged by an
//! [`Engine`](crate::dpi::Engine) and give them back to the data path.
//!
//! - [`Workers::start`] binds the sockets, enters them in `fsm_xsk` and starts the threads. [`Setup`] says how.
//! - [`Workers::status`] asks every worker for its numbers; one that hangs shows its last ones and a growing age.
//! - [`Workers::with_engine`] has something done with a worker's engine between two of its rounds.
//! - [`Workers::set_fail_open`] says what becomes of a packet over which the engine panics.
//! - [`Workers::has_ended`]: a worker's socket has failed (its device is gone): stop them all and start anew.
//! - [`Workers::stop`], or dropping it, ends the threads. Their words in `fsm_worker` become 0, and the hooks do
//!   without them.
//!
//! Events come out of the channel in [`Setup::events`]; when nobody reads it, events are lost and counted, packets
//! are not. Nothing is shared between workers but the frames' memory, whose frames change hands on rings ([`hop`]);
//! nothing is locked, and nothing allocated for a packet.
//!
//! The files: [`thread`] is a worker's life, [`io`] moves frames, [`process`] decides about packets, [`frames`] knows where each frame is,
//! [`verdicts`] tells the kernel of flows, [`reset`] writes RSTs, [`word`] says that a worker lives, [`stats`] counts.

pub mod frames;
pub mod hop;
pub mod io;
pub mod process;
pub mod reset;
pub mod stats;
pub mod thread;
pub mod verdicts;
pub mod word;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, MapError, XskMap};
use fsm_common::{
    escalate::{MAX_WORKERS, TRAILER},
    maps::name,
};

use self::{
    frames::Frames,
    hop::Bell,
    io::Room,
    process::Desk,
    thread::{Ask, Worker, clock_ns},
    verdicts::Verdicts,
    word::{Word, Words},
};
pub use self::{
    process::Factory,
    stats::{Counters, LATENCY_BOUNDS_NS, Spread, WorkerStatus},
};
use crate::{
    dpi::{Engine, Event},
    xsk::{Options, Socket, Umem, XskError, umem::HEADROOM},
};

/// Questions that a worker has not answered yet.
const ASKS: usize = 64;
/// How long [`Workers::status`] waits for an answer.
const PATIENCE: Duration = Duration::from_millis(250);

/// An event, and whose engine told it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The worker.
    pub worker: usize,
    /// The event.
    pub event: Event,
}

/// How workers are to be.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The workers' end of the pair, `dpi1`, with a queue for each of them.
    pub ifindex: u32,
    /// CPUs, one worker each.
    pub cores: Vec<u32>,
    /// Where the maps are pinned.
    pub pins: PathBuf,
    /// A packet over which the engine panics goes on.
    pub fail_open: bool,
    /// Where events go.
    pub events: tokio::sync::mpsc::Sender<Told>,
    /// Bytes of a frame with its headroom: 2048 or 4096; see [`max_frame`].
    pub frame_bytes: u32,
    /// Frames of each worker; more than the fill ring takes.
    pub frames: u32,
    /// Frames in huge pages, where the host has some reserved.
    pub huge_pages: bool,
    /// The rings.
    pub xsk: Options,
}

impl Setup {
    /// With 4096 frames of 2048 bytes for each worker, failing open.
    pub fn new(
        ifindex: u32,
        cores: Vec<u32>,
        pins: PathBuf,
        events: tokio::sync::mpsc::Sender<Told>,
    ) -> Self {
        Self {
            ifindex,
            cores,
            pins,
            fail_open: true,
            events,
            frame_bytes: 2048,
            frames: 4096,
            huge_pages: false,
            xsk: Options::default(),
        }
    }
}

/// The longest packet that a worker can take and give back, Ethernet header first ([`fsm_common::maps::Xcfg::dpi_frame`]).
pub const fn max_frame(frame_bytes: u32) -> u32 {
    frame_bytes - HEADROOM - TRAILER as u32
}

/// [`Setup::frame_bytes`] for packets of up to so many bytes; longer ones than [`max_frame`] of it are lost.
pub const fn frame_bytes_for(frame: u32) -> u32 {
    if frame <= max_frame(2048) { 2048 } else { 4096 }
}

/// Why workers cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// None, or too many.
    #[error("{0} workers: 1 to {MAX_WORKERS} are possible")]
    Count(usize),
    /// A map.
    #[error("{map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A socket.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// Memory or threads.
    #[error("{what}: {source}")]
    Refused {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// One worker, from outside.
struct Remote {
    asks: mpsc::SyncSender<Ask>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    /// Whether it took the question.
    fn ask(&self, ask: Ask) -> bool {
        let is_taken = self.asks.try_send(ask).is_ok();
        self.bell.call();
        is_taken
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// All workers. They end when this is dropped.
pub struct Workers {
    remotes: Vec<Remote>,
    words: Arc<Words>,
    sockets: XskMap<MapData>,
    stop: Arc<AtomicBool>,
    fail_open: Arc<AtomicBool>,
    /// What each said last.
    last: Mutex<Vec<WorkerStatus>>,
}

impl Workers {
    /// Starts a worker for each core. Packets can come as soon as this returns.
    ///
    /// # Errors
    /// See [`WorkerError`]; nothing runs then.
    pub fn start(setup: &Setup, make: &Factory) -> Result<Self, WorkerError> {
        let count = setup.cores.len();
        if count == 0 || count > MAX_WORKERS as usize {
            return Err(WorkerError::Count(count));
        }
        let map = |map| move |source| WorkerError::Map { map, source };
        let refused = |what| move |source| WorkerError::Refused { what, source };
        let words = Words::open(&setup.pins).map_err(map(name::FSM_WORKER))?;
        let xsk_map = MapData::from_pin(setup.pins.join(name::FSM_XSK))
            .and_then(|data| XskMap::try_from(Map::XskMap(data)))
            .map_err(map(name::FSM_XSK))?;
        let umem = Umem::new(
            setup.frame_bytes,
            setup.frames * count as u32,
            setup.huge_pages,
        )
        .map(Arc::new)
        .map_err(refused("memory for frames"))?;
        let mut sockets: Vec<Socket> = Vec::with_capacity(count);
        for queue in 0..count as u32 {
            let socket = Socket::bind(&umem, sockets.first(), setup.ifindex, queue, &setup.xsk)?;
            sockets.push(socket);
        }
        let bells = (0..count)
            .map(|_| Bell::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused("eventfd"))?;
        let mut workers = Self {
            remotes: Vec::with_capacity(count),
            words: words.clone(),
            sockets: xsk_map,
            stop: Arc::new(AtomicBool::new(false)),
            fail_open: Arc::new(AtomicBool::new(setup.fail_open)),
            last: Mutex::new(Vec::new()),
        };
        let ends = sockets.into_iter().zip(hop::connect(&bells)).zip(bells);
        for (number, ((mut socket, hops), bell)) in ends.enumerate() {
            let mut frames = Frames::new(umem.clone(), number as u32, setup.frames);
            frames.refill(&mut socket.fill, io::RESERVE);
            workers
                .sockets
                .set(number as u32, std::os::fd::AsFd::as_fd(&socket), 0)
                .map_err(map(name::FSM_XSK))?;
            let (asks, asked) = mpsc::sync_channel(ASKS);
            let worker = Worker {
                number,
                workers: count as u32,
                core: setup.cores[number],
                umem: umem.clone(),
                socket,
                frames,
                hops,
                bell: bell.clone(),
                desk: Desk::new(number, make.clone()),
                verdicts: Verdicts::open(&setup.pins).map_err(map(name::FSM_VERDICT))?,
                word: Word::new(&words, number),
                asks: asked,
                events: setup.events.clone(),
                stop: workers.stop.clone(),
                fail_open: workers.fail_open.clone(),
                counters: Counters::default(),
                gauges: stats::Gauges::default(),
                room: Room::new(),
                is_pinned: false,
                is_up: true,
                ticked_ns: 0,
            };
            let thread = std::thread::Builder::new()
                .name(format!("fsm-dpi-{number}"))
                .spawn(move || worker.run())
                .map_err(refused("thread"))?;
            workers.remotes.push(Remote {
                asks,
                bell,
                thread: Some(thread),
            });
        }
        // The hooks may send packets now.
        workers.status();
        Ok(workers)
    }

    /// Workers.
    pub fn len(&self) -> usize {
        self.remotes.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.remotes.is_empty()
    }

    /// Every worker's numbers.
    pub fn status(&self) -> Vec<WorkerStatus> {
        let asked: Vec<_> = self
            .remotes
            .iter()
            .map(|remote| {
                let (to, from) = mpsc::sync_channel(1);
                remote.ask(Ask::Status(to));
                from
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.resize_with(self.remotes.len(), WorkerStatus::default);
        for (worker, from) in asked.into_iter().enumerate() {
            if let Ok(status) = from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                last[worker] = status;
            }
        }
        let now_ns = clock_ns();
        for (worker, status) in last.iter_mut().enumerate() {
            status.worker = worker;
            status.has_ended = self.remotes[worker].has_ended();
            status.age_ns = self.words.age_ns(worker, now_ns);
        }
        last.clone()
    }

    /// Has something done with a worker's engine; the answer comes through the channel, or none where the worker
    /// has ended or the engine panics. `None`: there is no such worker, or it does not listen.
    pub fn with_engine<R: Send + 'static>(
        &self,
        worker: usize,
        call: impl FnOnce(&mut dyn Engine) -> R + Send + 'static,
    ) -> Option<mpsc::Receiver<R>> {
        let (to, from) = mpsc::sync_channel(1);
        let call = move |engine: &mut dyn Engine| {
            // Who asked may have given up.
            let _ = to.try_send(call(engine));
        };
        let remote = self.remotes.get(worker)?;
        remote.ask(Ask::Engine(Box::new(call))).then_some(from)
    }

    /// Whether a packet over which the engine panics goes on.
    pub fn set_fail_open(&self, fail_open: bool) {
        self.fail_open.store(fail_open, Ordering::Relaxed);
    }

    /// Whether a worker has ended though nobody stopped it.
    pub fn has_ended(&self) -> bool {
        self.remotes.iter().any(Remote::has_ended)
    }

    /// Ends them all.
    pub fn stop(self) {}
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for remote in &self.remotes {
            remote.bell.call();
        }
        for (queue, remote) in (0..).zip(&mut self.remotes) {
            if let Some(thread) = remote.thread.take() {
                // It has logged its own panic.
                let _ = thread.join();
            }
            let _ = self.sockets.unset(queue);
        }
    }
}
