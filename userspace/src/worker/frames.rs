//! Where each frame of a worker's region is. Every one is in exactly one place; a move is checked against the place
//! that it is to have come from, so that a frame that comes twice, or from where it never went, is a fault that is
//! counted and not memory that two use.

use std::sync::Arc;

use crate::xsk::{
    Frame, Umem,
    ring::{Desc, Producer},
    umem::HEADROOM,
};

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    /// Free, at hand.
    Spare,
    /// Given to the kernel for packets: on the fill ring, in the kernel, or on the RX ring.
    Fill,
    /// Looked at in this round.
    Hand,
    /// Given to the kernel to be sent: on the TX ring, on its way, or on the completion ring.
    Tx,
    /// With another worker.
    Away,
}

/// Frames by place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FramesView {
    /// All of the region.
    pub total: u32,
    /// Free.
    pub spare: u32,
    /// With the kernel, for packets.
    pub fill: u32,
    /// In hand: none between two rounds.
    pub hand: u32,
    /// With the kernel, to be sent.
    pub tx: u32,
    /// With other workers.
    pub away: u32,
    /// Others' frames that are here.
    pub guests: u32,
    /// Frames that are nowhere, and moves that cannot be: 0, or there is a bug.
    pub leaked: u64,
}

/// The frames of one region.
#[derive(Debug)]
pub struct Frames {
    umem: Arc<Umem>,
    /// Number of the region's first chunk.
    first: u32,
    places: Box<[Place]>,
    /// By [`Place`].
    counts: [u32; 5],
    spare: Vec<Frame>,
    /// Others' frames in hand, and on their way out.
    guests: [u32; 2],
    faults: u64,
}

impl Frames {
    /// All frames of region `number`, free. Each region is taken once.
    pub fn new(umem: Arc<Umem>, number: u32, frames: u32) -> Self {
        let first = number * frames;
        let mut spare = Vec::with_capacity(frames as usize);
        for chunk in (first..first + frames).rev() {
            // SAFETY: a region that nobody has had before.
            spare.extend(unsafe { umem.claim(start_of(&umem, chunk)) });
        }
        Self {
            umem,
            first,
            places: vec![Place::Spare; frames as usize].into(),
            counts: [frames, 0, 0, 0, 0],
            spare,
            guests: [0; 2],
            faults: 0,
        }
    }

    /// Number of the region that a frame belongs to.
    pub fn home(&self, frame: &Frame) -> usize {
        self.umem.chunk_of(frame.at()) as usize / self.places.len()
    }

    /// Whether it is this one.
    pub fn is_own(&self, frame: &Frame) -> bool {
        self.index(frame.at()).is_some()
    }

    fn index(&self, at: u64) -> Option<usize> {
        let index = self.umem.chunk_of(at).checked_sub(self.first)? as usize;
        (index < self.places.len()).then_some(index)
    }

    /// Notes a move; false where it cannot be.
    fn shift(&mut self, at: u64, from: Place, to: Place) -> bool {
        let place = self.index(at).and_then(|index| self.places.get_mut(index));
        match place {
            Some(place) if *place == from => *place = to,
            _ => {
                self.faults += 1;
                return false;
            }
        }
        self.counts[from as usize] -= 1;
        self.counts[to as usize] += 1;
        true
    }

    /// Gives the kernel as many free frames as its ring takes, but keeps `keep`.
    pub fn refill(&mut self, ring: &mut Producer<u64>, keep: usize) {
        if self.spare.len() <= keep || ring.room() == 0 {
            return;
        }
        while self.spare.len() > keep && ring.room() > 0 {
            let Some(frame) = self.spare.pop() else { break };
            let at = frame.into_desc().addr;
            self.shift(at, Place::Spare, Place::Fill);
            let _ = ring.push(at);
        }
        ring.publish();
    }

    /// One that came with a packet.
    pub fn arrive(&mut self, desc: Desc) -> Option<Frame> {
        self.take(desc, Place::Fill)
    }

    /// One that has been with another worker.
    pub fn come_back(&mut self, desc: Desc) -> Option<Frame> {
        self.take(desc, Place::Away)
    }

    fn take(&mut self, desc: Desc, from: Place) -> Option<Frame> {
        if !self.shift(desc.addr, from, Place::Hand) {
            return None;
        }
        // SAFETY: it was at that place, from which it has just been given back.
        let frame = unsafe { self.umem.claim(desc) };
        if frame.is_none() {
            self.faults += 1;
        }
        frame
    }

    /// A free one.
    pub fn spare(&mut self) -> Option<Frame> {
        let mut frame = self.spare.pop()?;
        self.shift(frame.at(), Place::Spare, Place::Hand);
        self.umem.clear(&mut frame);
        Some(frame)
    }

    /// Free again.
    pub fn free(&mut self, mut frame: Frame) {
        if self.shift(frame.at(), Place::Hand, Place::Spare) {
            self.umem.clear(&mut frame);
            self.spare.push(frame);
        }
    }

    /// To be sent, own or not.
    pub fn send(&mut self, frame: Frame) -> Desc {
        if self.is_own(&frame) {
            self.shift(frame.at(), Place::Hand, Place::Tx);
        } else {
            self.guests[0] -= 1;
            self.guests[1] += 1;
        }
        frame.into_desc()
    }

    /// Sent: the chunk in which `addr` lies can be used again.
    pub fn sent(&mut self, addr: u64) -> Option<Frame> {
        let desc = start_of(&self.umem, self.umem.chunk_of(addr));
        if self.index(addr).is_some() {
            return self.take(desc, Place::Tx);
        }
        if self.guests[1] == 0 {
            self.faults += 1;
            return None;
        }
        self.guests[1] -= 1;
        self.guests[0] += 1;
        // SAFETY: `send` has given it to the kernel, which gives it back; its home checks that once more.
        unsafe { self.umem.claim(desc) }
    }

    /// To another worker.
    pub fn leave(&mut self, frame: Frame) -> Desc {
        self.shift(frame.at(), Place::Hand, Place::Away);
        frame.into_desc()
    }

    /// Another's, to be looked at here.
    pub fn visit(&mut self, desc: Desc) -> Option<Frame> {
        // SAFETY: its home has given it up with `leave`.
        let frame = unsafe { self.umem.claim(desc) };
        match frame {
            Some(_) => self.guests[0] += 1,
            None => self.faults += 1,
        }
        frame
    }

    /// Another's, back to it.
    pub fn give_back(&mut self, frame: Frame) -> Desc {
        self.guests[0] -= 1;
        frame.into_desc()
    }

    /// Counts something that cannot be.
    pub fn fault(&mut self) {
        self.faults += 1;
    }

    /// Free ones.
    pub fn spares(&self) -> usize {
        self.spare.len()
    }

    /// Frames that are nowhere, and moves that cannot be; asked between two rounds.
    pub fn leaked(&self) -> u64 {
        let at = |place: Place| u64::from(self.counts[place as usize]);
        let all: u64 = self.counts.iter().copied().map(u64::from).sum();
        self.faults
            + at(Place::Hand)
            + u64::from(self.guests[0])
            + at(Place::Spare).abs_diff(self.spare.len() as u64)
            + all.abs_diff(self.places.len() as u64)
    }

    /// Frames by place.
    pub fn view(&self) -> FramesView {
        let [spare, fill, hand, tx, away] = self.counts;
        FramesView {
            total: self.places.len() as u32,
            spare,
            fill,
            hand,
            tx,
            away,
            guests: self.guests[0] + self.guests[1],
            leaked: self.leaked(),
        }
    }
}

/// An empty frame in this chunk.
fn start_of(umem: &Umem, chunk: u32) -> Desc {
    Desc {
        addr: u64::from(chunk) * u64::from(umem.chunk()) + u64::from(HEADROOM),
        ..Desc::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> [Frames; 2] {
        let umem = Arc::new(Umem::new(2048, 8, false).unwrap());
        [0, 1].map(|number| Frames::new(umem.clone(), number, 4))
    }

    #[test]
    fn a_frame_goes_round_and_nothing_leaks() {
        let [mut a, mut b] = two();
        let frame = a.spare().unwrap();
        assert_eq!(
            (a.view().hand, a.leaked()),
            (1, 1),
            "in hand between rounds"
        );
        let desc = a.send(frame);
        assert_eq!(a.leaked(), 0);
        let frame = a.sent(desc.addr + 32).unwrap();
        let visit = a.leave(frame);
        let guest = b.visit(visit).unwrap();
        assert_eq!((b.home(&guest), b.is_own(&guest)), (0, false));
        let desc = b.send(guest);
        let guest = b.sent(desc.addr).unwrap();
        assert_eq!((b.leaked(), b.view().guests), (1, 1));
        let frame = a.come_back(b.give_back(guest)).unwrap();
        a.free(frame);
        assert_eq!((a.leaked(), b.leaked()), (0, 0));
        assert_eq!((a.view().spare, b.view().guests), (4, 0));
    }

    #[test]
    fn what_comes_twice_is_a_fault_and_no_frame() {
        let [mut a, _] = two();
        let frame = a.spare().unwrap();
        let desc = a.send(frame);
        assert_eq!(a.arrive(desc), None, "never filled");
        let frame = a.sent(desc.addr).unwrap();
        assert_eq!(a.sent(desc.addr), None);
        a.free(frame);
        assert_eq!(a.leaked(), 2);
        assert_eq!(a.sent(7 * 2048 + 256), None, "a guest that never came");
        assert_eq!(a.leaked(), 3);
    }
}
