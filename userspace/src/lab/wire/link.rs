//! The two ends and what is under way between them: one thread a direction, frames in the order in which
//! they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::socket::PacketSocket;
use super::{Fate, Fates, Wire};
use crate::lab::error::{Result, file, socket};

/// Larger than any frame without segmentation offload.
const FRAME_BYTES: usize = 65_536 + 64;
/// Longest that a thread sleeps.
const IDLE: Duration = Duration::from_millis(100);
/// Frames read before what is due is sent.
const BATCH: usize = 64;
/// How often the counters are written.
const REPORT: Duration = Duration::from_millis(200);

/// What became of one direction's frames.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames that came in.
    pub taken: u64,
    /// Frames that went out, copies included.
    pub sent: u64,
    /// Frames that were lost on purpose.
    pub lost: u64,
    /// Frames that went out twice.
    pub duplicated: u64,
    /// Frames that others could overtake.
    pub reordered: u64,
    /// Frames that were lost because this program was too slow, or the far device did not take them.
    pub overrun: u64,
}

/// Both directions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// From the first device to the second.
    pub forth: Counters,
    /// From the second device to the first.
    pub back: Counters,
}

#[derive(Default)]
struct Live {
    taken: AtomicU64,
    sent: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    overrun: AtomicU64,
}

impl Live {
    fn counters(&self) -> Counters {
        Counters {
            taken: self.taken.load(Relaxed),
            sent: self.sent.load(Relaxed),
            lost: self.lost.load(Relaxed),
            duplicated: self.duplicated.load(Relaxed),
            reordered: self.reordered.load(Relaxed),
            overrun: self.overrun.load(Relaxed),
        }
    }
}

/// Passes frames between two devices of this network namespace until a socket fails. `stats` gets the
/// counters, several times a second.
pub fn run(wire: Wire, devices: [&str; 2], stats: Option<&Path>) -> Result<()> {
    let [left, right] = devices.map(|device| PacketSocket::open(device).map_err(socket(device)));
    let (left, right) = (Arc::new(left?), Arc::new(right?));
    let (ended, end) = mpsc::channel();
    let start = |from: &Arc<PacketSocket>, to: &Arc<PacketSocket>, direction| {
        let (from, to, ended) = (Arc::clone(from), Arc::clone(to), ended.clone());
        let (fates, count) = (Fates::new(wire, direction), Arc::new(Live::default()));
        let counted = Arc::clone(&count);
        // Both end with the process.
        thread::spawn(move || ended.send(carry(&from, &to, fates, &counted)));
        count
    };
    let (forth, back) = (start(&left, &right, 0), start(&right, &left, 1));
    loop {
        match end.recv_timeout(REPORT) {
            Ok(error) => return Err(socket("packet socket of the wire")(error)),
            Err(_) => {
                if let Some(path) = stats {
                    let (forth, back) = (forth.counters(), back.counters());
                    write(path, &Stats { forth, back })?;
                }
            }
        }
    }
}

/// Under another name first, so that no reader sees half of it.
fn write(path: &Path, stats: &Stats) -> Result<()> {
    let part = path.with_extension("part");
    let text = serde_json::to_vec(stats).unwrap_or_default();
    fs::write(&part, text).map_err(file(&part))?;
    fs::rename(&part, path).map_err(file(path))
}

/// A frame under way; the one that is due first is the greatest, of two the one sent first.
type UnderWay = Reverse<(Instant, u64, Vec<u8>)>;

/// One direction; gives the error that ended it.
fn carry(from: &PacketSocket, to: &PacketSocket, mut fates: Fates, count: &Live) -> io::Error {
    let mut under_way: BinaryHeap<UnderWay> = BinaryHeap::new();
    let mut buffer = vec![0; FRAME_BYTES];
    let mut number = 0;
    loop {
        let pause = under_way.peek().map_or(IDLE, |Reverse((due, ..))| {
            due.saturating_duration_since(Instant::now())
        });
        if !pause.is_zero() {
            from.wait(pause.min(IDLE));
        }
        for _ in 0..BATCH {
            match from.receive(&mut buffer) {
                Ok(Some(frame)) => {
                    number += 2;
                    take(frame, number, &mut fates, &mut under_way, count);
                }
                Ok(None) => break,
                Err(error) => return error,
            }
        }
        let now = Instant::now();
        while let Some(Reverse((due, ..))) = under_way.peek()
            && *due <= now
        {
            let Some(Reverse((.., frame))) = under_way.pop() else {
                break;
            };
            match to.send(&frame) {
                Ok(()) => count.sent.fetch_add(1, Relaxed),
                Err(_) => count.overrun.fetch_add(1, Relaxed),
            };
        }
        count.overrun.fetch_add(from.overruns(), Relaxed);
    }
}

fn take(
    frame: Vec<u8>,
    number: u64,
    fates: &mut Fates,
    under_way: &mut BinaryHeap<UnderWay>,
    count: &Live,
) {
    count.taken.fetch_add(1, Relaxed);
    let Fate::Arrives {
        after,
        is_late,
        twice,
    } = fates.draw()
    else {
        count.lost.fetch_add(1, Relaxed);
        return;
    };
    let due = Instant::now() + after;
    count.reordered.fetch_add(u64::from(is_late), Relaxed);
    if twice {
        count.duplicated.fetch_add(1, Relaxed);
        under_way.push(Reverse((due, number + 1, frame.clone())));
    }
    under_way.push(Reverse((due, number, frame)));
}
