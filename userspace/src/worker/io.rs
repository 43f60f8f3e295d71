//! A worker's loop: frames in, frames out. What is to become of a frame is decided in [`super::process`].
//!
//! A round takes back what was sent, gathers up to [`BATCH`] packets (and as many from other workers), has them
//! judged, sends what goes on, tells the kernel of flows, and gives free frames to the kernel. When a round finds
//! nothing, the thread sleeps in `poll` until a packet, another worker or a question comes.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender},
    },
};

use fsm_common::{
    escalate::{Escalated, HEAD, Judged, Returned, TAKEN, owner, taken},
    stats::Hook,
};
use tokio::sync::mpsc::Sender;

use super::{
    Told,
    frames::Frames,
    hop::{Bell, Hops},
    process::Desk,
    reset::{Rst, resets},
    stats::{Counters, Gauges, WorkerStatus},
    verdicts::{Ruling, Tuple, Verdicts},
    word::Word,
};
use crate::{
    dpi::Engine,
    xsk::{Frame, Socket, Umem},
};

/// Packets judged at a time, and as many again from other workers.
pub const BATCH: usize = 64;
/// Free frames that are kept for RSTs.
pub(super) const RESERVE: usize = 64;
/// Longest sleep, milliseconds: the word is written as often.
const SLEEP_MS: i32 = 100;
/// The same while frames wait to be sent.
const RETRY_MS: i32 = 1;
/// How often the engine ends what is over.
const TICK_NS: u64 = 250_000_000;

/// What a worker is asked between two rounds.
pub(super) enum Ask {
    /// How it is.
    Status(SyncSender<WorkerStatus>),
    /// To do something with its engine.
    Engine(Box<dyn FnOnce(&mut dyn Engine) + Send>),
}

/// A packet in hand.
struct Item {
    frame: Frame,
    said: Escalated,
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
}

/// Room for one round, made once.
#[derive(Default)]
pub(super) struct Room {
    batch: Vec<Item>,
    rulings: Vec<Ruling>,
    /// When the packets that go back were taken, nanoseconds.
    taken_at: Vec<u64>,
    is_pinned: bool,
    is_up: bool,
    ticked_ns: u64,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            batch: Vec::with_capacity(2 * BATCH),
            rulings: Vec::with_capacity(2 * BATCH),
            taken_at: Vec::with_capacity(2 * BATCH),
            is_up: true,
            ..Self::default()
        }
    }
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
        self.room.is_pinned = core_affinity::set_for_current(core);
        if !self.room.is_pinned {
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
            if self.room.is_up {
                self.word.beat(now_ns);
            }
            while let Ok(ask) = self.asks.try_recv() {
                self.answer(ask);
            }
            self.tick(now_ns);
            if !self.round(now_ns)? {
                self.sleep()?;
            }
        }
        Ok(())
    }

    /// One round; whether there was something to do.
    fn round(&mut self, now_ns: u64) -> io::Result<bool> {
        self.reclaim();
        let has_work = self.gather();
        if !self.room.batch.is_empty() {
            self.judge(now_ns);
            self.send()?;
            self.rule();
        }
        self.frames.refill(&mut self.socket.fill, RESERVE);
        debug_assert_eq!(self.frames.leaked(), 0, "{:?}", self.frames.view());
        Ok(has_work)
    }

    /// Takes back what was sent, here or by others.
    fn reclaim(&mut self) {
        while let Some(addr) = self.socket.completion.pop() {
            if let Some(frame) = self.frames.sent(addr) {
                self.let_go(frame);
            }
        }
        self.socket.completion.release();
        for other in 0..self.workers as usize {
            while let Some(desc) = self.hops.come_back(other) {
                if let Some(frame) = self.frames.come_back(desc) {
                    self.frames.free(frame);
                }
            }
        }
    }

    /// Fills the batch; whether anything came.
    fn gather(&mut self) -> bool {
        for other in 0..self.workers as usize {
            while self.room.batch.len() < BATCH
                && let Some(desc) = self.hops.visit(other)
            {
                self.counters.hop_in += 1;
                if let Some(frame) = self.frames.visit(desc) {
                    let said = self.said(&frame);
                    self.room.batch.push(Item { frame, said });
                }
            }
        }
        let mut received = 0;
        while received < BATCH
            && let Some(desc) = self.socket.rx.pop()
        {
            received += 1;
            if let Some(frame) = self.frames.arrive(desc) {
                self.counters.rx_packets += 1;
                self.counters.rx_bytes += frame.len() as u64;
                self.accept(frame);
            }
        }
        if received > 0 {
            self.socket.rx.release();
            self.hops.ring();
        }
        received > 0 || !self.room.batch.is_empty()
    }

    /// A packet that arrived here is judged here, or goes to the worker that its flow belongs to.
    fn accept(&mut self, frame: Frame) {
        let said = self.said(&frame);
        if said.magic != TAKEN {
            self.counters.strange += 1;
            return self.frames.free(frame);
        }
        let to = owner(said.hash, self.workers) as usize;
        if to == self.number {
            self.room.batch.push(Item { frame, said });
        } else if self.hops.has_room(to) && self.frames.spares() > RESERVE {
            self.counters.hop_out += 1;
            let desc = self.frames.leave(frame);
            if !self.hops.send(to, desc) {
                self.frames.fault();
            }
        } else {
            self.counters.hop_full += 1;
            self.frames.free(frame);
        }
    }

    fn said(&self, frame: &Frame) -> Escalated {
        let bytes = self.umem.before::<HEAD>(frame);
        // SAFETY: as many bytes, of integers only; their place is aligned to four.
        unsafe { bytes.as_ptr().cast::<Escalated>().read_unaligned() }
    }

    fn judge(&mut self, now_ns: u64) {
        self.gauges.batch(self.room.batch.len());
        let fail_open = self.fail_open.load(Ordering::Relaxed);
        let mut batch = std::mem::take(&mut self.room.batch);
        let mut lost = 0;
        for Item { frame, said } in batch.drain(..) {
            let bytes = self.umem.data(&frame);
            let worker = self.number;
            let mut tell = |event| {
                lost += u64::from(self.events.try_send(Told { worker, event }).is_err());
            };
            let counters = &mut self.counters;
            let decision = self
                .desk
                .judge(now_ns, &said, bytes, fail_open, counters, &mut tell);
            if decision.judged != 0
                && let Some(tuple) = Tuple::of(bytes)
            {
                self.note(tuple, &said, decision.judged);
            }
            if decision.reset
                && let Some(rsts) = resets(self.umem.data(&frame))
            {
                if let Some(rst) = &rsts.receiver {
                    self.send_rst(rst, &said);
                }
                self.send_rst(&rsts.sender, &opposite(&said));
            }
            if decision.goes_on {
                self.give_back(frame, &said);
            } else {
                self.let_go(frame);
            }
        }
        self.counters.events_lost += lost;
        self.room.batch = batch;
    }

    /// Notes a ruling; a burst of one flow's packets makes one.
    fn note(&mut self, tuple: Tuple, said: &Escalated, verdict: u8) {
        let judged = Judged {
            policy: said.policy,
            born: said.born,
            verdict,
            pad: [0; 7],
        };
        let ruling = Ruling { tuple, judged };
        if self.room.rulings.last() != Some(&ruling) {
            self.room.rulings.push(ruling);
        }
    }

    fn send_rst(&mut self, rst: &Rst, said: &Escalated) {
        let Some(mut frame) = self.frames.spare() else {
            return;
        };
        if self.umem.append(&mut frame, rst.frame()) && self.queue(frame, said) {
            self.counters.rsts += 1;
        }
    }

    fn give_back(&mut self, frame: Frame, said: &Escalated) {
        if self.queue(frame, said) {
            self.room.taken_at.push(said.at_ns);
        }
    }

    /// Puts a frame on the TX ring, with the way that it is to go on behind it.
    fn queue(&mut self, mut frame: Frame, said: &Escalated) -> bool {
        let bytes = frame.len() as u64;
        if !self.umem.append(&mut frame, Returned::of(said).as_bytes()) {
            self.counters.too_long += 1;
            self.let_go(frame);
            return false;
        }
        if self.socket.tx.room() == 0 {
            self.counters.tx_full += 1;
            self.let_go(frame);
            return false;
        }
        let desc = self.frames.send(frame);
        if !self.socket.tx.push(desc) {
            self.frames.fault();
        }
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += bytes;
        true
    }

    /// A frame that is done with.
    fn let_go(&mut self, frame: Frame) {
        if self.frames.is_own(&frame) {
            return self.frames.free(frame);
        }
        let home = self.frames.home(&frame);
        let desc = self.frames.give_back(frame);
        if !self.hops.give_back(home, desc) {
            self.frames.fault();
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.socket.tx.publish();
        self.socket.send()?;
        if !self.room.taken_at.is_empty() {
            let now_ns = clock_ns();
            for taken_ns in self.room.taken_at.drain(..) {
                self.gauges.latency(now_ns.saturating_sub(taken_ns));
            }
        }
        Ok(())
    }

    /// Tells the kernel of flows, now that their packets are ahead of those that it will forward alone.
    fn rule(&mut self) {
        for ruling in self.room.rulings.drain(..) {
            if self.verdicts.write(&ruling).is_err() {
                self.counters.verdicts_lost += 1;
            }
        }
    }

    fn tick(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.room.ticked_ns) < TICK_NS {
            return;
        }
        self.room.ticked_ns = now_ns;
        let worker = self.number;
        let mut lost = 0;
        let mut tell = |event| {
            lost += u64::from(self.events.try_send(Told { worker, event }).is_err());
        };
        let counters = &mut self.counters;
        self.desk
            .guarded(counters, |engine| engine.tick(now_ns, &mut tell));
        self.counters.events_lost += lost;
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
        if ready == 0 && timeout == SLEEP_MS {
            self.look_after()?;
        }
        Ok(())
    }

    /// Nothing has come for a while: whether the device is still there, and up. While it is not, the hooks are to
    /// know that nobody listens.
    fn look_after(&mut self) -> io::Result<()> {
        let is_up = self.socket.is_up()?;
        if std::mem::replace(&mut self.room.is_up, is_up) && !is_up {
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
            is_pinned: self.room.is_pinned,
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

/// For a packet the other way: where this one came from.
fn opposite(said: &Escalated) -> Escalated {
    let hook = match said.hook == Hook::TcEgress as u8 {
        true => Hook::TcIngress,
        false => Hook::TcEgress,
    };
    Escalated {
        hook: hook as u8,
        flags: said.flags ^ taken::REPLY,
        ..*said
    }
}
