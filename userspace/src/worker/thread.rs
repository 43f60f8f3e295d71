//! A worker's life: its thread, what it does between two rounds, and how it sleeps. When a round finds nothing, the
//! thread sleeps in `poll` until a packet, another worker or a question comes.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender},
    },
};

use tokio::sync::mpsc::Sender;

use super::{
    Told,
    frames::Frames,
    hop::{Bell, Hops},
    io::Room,
    process::Desk,
    stats::{Counters, Gauges, WorkerStatus},
    verdicts::Verdicts,
    word::Word,
};
use crate::{
    dpi::Engine,
    xsk::{Socket, Umem},
};

/// Longest sleep, milliseconds: the word is written as often.
const SLEEP_MS: i32 = 100;
/// The same while frames wait to be sent.
const RETRY_MS: i32 = 1;
/// How often the engine ends what is over, and the device is looked after.
const TICK_NS: u64 = 250_000_000;

/// What is done with an engine.
pub(super) type Call = Box<dyn FnOnce(&mut dyn Engine) + Send>;

/// What a worker is asked between two rounds.
pub(super) enum Ask {
    /// How it is.
    Status(SyncSender<WorkerStatus>),
    /// To do something with its engine.
    Engine(Call),
}

/// One worker; lives on its thread.
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) workers: u32,
    pub(super) core: u32,
    pub(super) socket: Socket,
    pub(super) umem: Arc<Umem>,
    pub(super) frames: Frames,
    pub(super) hops: Hops,
    pub(super) bell: Arc<Bell>,
    pub(super) desk: Desk,
    pub(super) verdicts: Verdicts,
    pub(super) word: Word,
    pub(super) asks: Receiver<Ask>,
    pub(super) events: Sender<Told>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) fail_open: Arc<AtomicBool>,
    pub(super) counters: Counters,
    pub(super) gauges: Gauges,
    pub(super) room: Room,
    /// It runs on its CPU alone.
    pub(super) is_pinned: bool,
    /// Its device is up.
    pub(super) is_up: bool,
    pub(super) ticked_ns: u64,
}

/// CLOCK_MONOTONIC, nanoseconds: what `bpf_ktime_get_ns` reads too.
pub fn clock_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Worker {
    /// Works until it is stopped, or its socket fails.
    pub(super) fn run(mut self) {
        let core = core_affinity::CoreId {
            id: self.core as usize,
        };
        self.is_pinned = core_affinity::set_for_current(core);
        if !self.is_pinned {
            tracing::warn!(
                worker = self.number,
                core = self.core,
                "the worker cannot be pinned to this CPU and runs on any"
            );
        }
        if let Err(error) = self.work() {
            tracing::error!(worker = self.number, "the worker has ended: {error}");
        }
    }

    fn work(&mut self) -> io::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let now_ns = clock_ns();
            if self.is_up {
                self.word.beat(now_ns);
            }
            while let Ok(ask) = self.asks.try_recv() {
                self.answer(ask);
            }
            self.tick(now_ns)?;
            if !self.round(now_ns)? {
                self.sleep()?;
            }
        }
        Ok(())
    }

    /// What is due a few times a second.
    fn tick(&mut self, now_ns: u64) -> io::Result<()> {
        if now_ns.saturating_sub(self.ticked_ns) < TICK_NS {
            return Ok(());
        }
        self.ticked_ns = now_ns;
        let worker = self.number;
        let mut lost = 0;
        let mut tell = |event| {
            lost += u64::from(self.events.try_send(Told { worker, event }).is_err());
        };
        let counters = &mut self.counters;
        self.desk
            .guarded(counters, |engine| engine.tick(now_ns, &mut tell));
        self.counters.events_lost += lost;
        self.look_after()
    }

    fn sleep(&mut self) -> io::Result<()> {
        self.bell.sleep();
        let is_idle = !self.hops.has_visits() && !self.stop.load(Ordering::Relaxed);
        let timeout = match (is_idle, self.socket.tx.pending()) {
            (false, _) => 0,
            (true, 0) => SLEEP_MS,
            (true, _) => RETRY_MS,
        };
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [entry(self.socket.as_raw_fd()), entry(self.bell.fd())];
        // SAFETY: pointer and length describe `fds`. Polling an AF_XDP socket also sends what is on its TX ring.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
        self.bell.wake();
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        }
        if fds[1].revents != 0 {
            self.bell.hush();
        }
        Ok(())
    }

    /// Whether the device is still there, and up. While it is not, the hooks are to know that nobody listens.
    fn look_after(&mut self) -> io::Result<()> {
        let is_up = self.socket.is_up()?;
        if std::mem::replace(&mut self.is_up, is_up) && !is_up {
            self.word.beat(0);
        }
        Ok(())
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Engine(call) => {
                self.desk.guarded(&mut self.counters, call);
            }
            Ask::Status(to) => {
                // Who asked may have given up.
                let _ = to.try_send(self.status());
            }
        }
    }

    fn status(&self) -> WorkerStatus {
        let mut status = WorkerStatus {
            worker: self.number,
            core: self.core,
            is_pinned: self.is_pinned,
            // SAFETY: takes nothing.
            tid: unsafe { libc::gettid() },
            is_zero_copy: self.socket.is_zero_copy().unwrap_or(false),
            counters: self.counters,
            frames: self.frames.view(),
            xsk: self.socket.stats().unwrap_or_default(),
            engine: self.desk.engine().stats(),
            ..WorkerStatus::default()
        };
        self.gauges.show(&mut status);
        status
    }
}
