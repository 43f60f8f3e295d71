//! From worker to worker: a frame that arrived on the wrong queue goes to the worker that its flow belongs to, and
//! comes back when it has been sent. One ring each way for each pair of workers, of one producer and one consumer.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use crate::xsk::ring::Desc;

/// Frames of one worker that another may have at a time.
pub const LANE: usize = 512;

/// Wakes one worker.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Bell {
    /// A silent one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes numbers only; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just given us this descriptor.
            event: unsafe { OwnedFd::from_raw_fd(fd) },
            asleep: AtomicBool::new(false),
        })
    }

    /// To be polled.
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Wakes the worker, if it sleeps or is about to, to look at a ring.
    pub fn ring(&self) {
        // What it is to see was written before; `sleep` looks in the other order.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.call();
        }
    }

    /// Wakes the worker, or sees to it that its next sleep ends at once.
    pub fn call(&self) {
        let one = 1u64;
        // SAFETY: eight bytes that live through the call.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Says that the worker is about to sleep: it looks once more for work after this.
    pub fn sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub fn wake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Forgets that it was rung.
    pub fn hush(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes that live through the call, which does not block.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}

/// Between this worker and another.
#[derive(Debug)]
struct Lane {
    bell: Arc<Bell>,
    /// Own frames that the other is to look at, and how many it has.
    out: rtrb::Producer<Desc>,
    away: usize,
    /// The same, done.
    home: rtrb::Consumer<Desc>,
    /// The other's frames to be looked at here.
    visits: rtrb::Consumer<Desc>,
    /// The same, done.
    back: rtrb::Producer<Desc>,
    /// The other is to be woken at the end of the round.
    is_due: bool,
}

/// One worker's ends of all rings.
#[derive(Debug)]
pub struct Hops {
    /// By worker; none for this one.
    lanes: Vec<Option<Lane>>,
}

/// Connects every worker with every other.
pub fn connect(bells: &[Arc<Bell>]) -> Vec<Hops> {
    let count = bells.len();
    let mut lanes: Vec<Vec<Option<Lane>>> = (0..count)
        .map(|_| (0..count).map(|_| None).collect())
        .collect();
    for a in 0..count {
        for b in a + 1..count {
            let ring = || rtrb::RingBuffer::<Desc>::new(LANE);
            let (a_out, b_visits) = ring();
            let (b_out, a_visits) = ring();
            let (a_back, b_home) = ring();
            let (b_back, a_home) = ring();
            lanes[a][b] = Some(lane(&bells[b], a_out, a_home, a_visits, a_back));
            lanes[b][a] = Some(lane(&bells[a], b_out, b_home, b_visits, b_back));
        }
    }
    lanes.into_iter().map(|lanes| Hops { lanes }).collect()
}

fn lane(
    bell: &Arc<Bell>,
    out: rtrb::Producer<Desc>,
    home: rtrb::Consumer<Desc>,
    visits: rtrb::Consumer<Desc>,
    back: rtrb::Producer<Desc>,
) -> Lane {
    Lane {
        bell: bell.clone(),
        out,
        away: 0,
        home,
        visits,
        back,
        is_due: false,
    }
}

impl Hops {
    fn lane(&mut self, other: usize) -> Option<&mut Lane> {
        self.lanes.get_mut(other)?.as_mut()
    }

    /// Whether that worker can have one more.
    pub fn has_room(&mut self, to: usize) -> bool {
        self.lane(to).is_some_and(|lane| lane.away < LANE)
    }

    /// Sends a frame to the worker that it belongs to; only after [`Self::has_room`].
    pub fn send(&mut self, to: usize, desc: Desc) -> bool {
        let Some(lane) = self.lane(to) else {
            return false;
        };
        lane.away += 1;
        lane.is_due = true;
        lane.out.push(desc).is_ok()
    }

    /// The next of the frames that others want looked at, of `from`.
    pub fn visit(&mut self, from: usize) -> Option<Desc> {
        self.lane(from)?.visits.pop().ok()
    }

    /// Gives a frame back to its home. It has room: not more than [`LANE`] of its frames are away.
    pub fn give_back(&mut self, home: usize, desc: Desc) -> bool {
        self.lane(home)
            .is_some_and(|lane| lane.back.push(desc).is_ok())
    }

    /// The next own frame that comes back, of `from`.
    pub fn come_back(&mut self, from: usize) -> Option<Desc> {
        let lane = self.lane(from)?;
        let desc = lane.home.pop().ok()?;
        lane.away -= 1;
        Some(desc)
    }

    /// Whether something waits here.
    pub fn has_visits(&self) -> bool {
        let mut lanes = self.lanes.iter().flatten();
        lanes.any(|lane| !lane.visits.is_empty())
    }

    /// Wakes those to whom frames went in this round.
    pub fn ring(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            if std::mem::take(&mut lane.is_due) {
                lane.bell.ring();
            }
        }
    }
}
