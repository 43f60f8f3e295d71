//! Frames in, frames out. What is to become of a frame is decided in [`super::process`].
//!
//! A round takes back what was sent, gathers up to [`BATCH`] packets (and as many from other workers), has them
//! judged, sends what goes on, tells the kernel of flows, and gives free frames to the kernel.

use std::{io, sync::atomic::Ordering};

use fsm_common::{
    escalate::{Escalated, HEAD, Judged, Returned, TAKEN, owner, taken},
    stats::Hook,
};

use super::{
    Told,
    reset::{Rst, resets},
    thread::{Worker, clock_ns},
    verdicts::{Ruling, Tuple},
};
use crate::xsk::Frame;

/// Packets judged at a time, and as many again from other workers.
pub const BATCH: usize = 64;
/// Free frames that are kept for RSTs.
pub(super) const RESERVE: usize = 64;
/// A packet in hand.
struct Item {
    frame: Frame,
    said: Escalated,
}

/// Room for one round, made once.
pub(super) struct Room {
    batch: Vec<Item>,
    rulings: Vec<Ruling>,
    /// When the packets that go back were taken, nanoseconds.
    taken_at: Vec<u64>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            batch: Vec::with_capacity(2 * BATCH),
            rulings: Vec::with_capacity(2 * BATCH),
            taken_at: Vec::with_capacity(2 * BATCH),
        }
    }
}

impl Worker {
    /// One round; whether there was something to do.
    pub(super) fn round(&mut self, now_ns: u64) -> io::Result<bool> {
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
                && let Some(tuple) = Tuple::of(bytes, said.flags & taken::COPY != 0)
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
