//! A worker, as `status` shows it.

use serde::{Deserialize, Serialize};

use super::Row;

/// One worker at one moment. Counts are since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Its number: that of its queue on `dpi1`.
    pub worker: usize,
    /// CPU that it is pinned to.
    pub core: u32,
    /// `alive`, `hung` (no round for half a second) or `ended`.
    pub state: String,
    /// Its thread.
    pub tid: i32,
    /// Packets that arrived, and that were given back.
    pub packets: Ways,
    /// Their bytes.
    pub bytes: Ways,
    /// Packets by what was said of them.
    pub verdicts: Verdicts,
    /// Packets that were another worker's.
    pub hops: Hops,
    /// Times that its engine has panicked and was made anew.
    pub restarts: u64,
    /// Events for which nobody had room.
    pub events_lost: u64,
    /// Packets that were lost here or before its socket, for any reason.
    pub lost: u64,
    /// Frames of packet memory.
    pub frames: Frames,
    /// Sessions that are open.
    pub sessions: usize,
    /// Sessions for which there was no room.
    pub sessions_refused: u64,
    /// Packets at a time: half of the batches have at most so many, 99 % of them.
    pub batch: [u64; 2],
    /// From a hook's taking a packet to its being given back, microseconds: median, 99th percentile, longest.
    pub latency_us: [f64; 3],
}

/// Both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ways {
    /// Arrived.
    pub rx: u64,
    /// Given back.
    pub tx: u64,
}

/// Packets by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Went on; the next one is looked at too.
    pub pass: u64,
    /// Went on; the flow is the kernel's now.
    pub allow: u64,
    /// Did not go on.
    pub drop: u64,
    /// Nor the rest of their flow.
    pub deny: u64,
    /// And both ends were told.
    pub reset: u64,
}

/// Packets that arrived on the queue of one worker and belong to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hops {
    /// From others.
    #[serde(rename = "in")]
    pub into: u64,
    /// To others.
    pub out: u64,
    /// Dropped, since the other had too many.
    pub full: u64,
}

/// Packet memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// All of this worker's.
    pub total: u64,
    /// Of these, with the kernel for packets to come.
    pub fill: u64,
    /// Frames that are nowhere: 0, or there is a bug.
    pub leaked: u64,
}

impl Row for WorkerRow {
    const HEAD: &'static [&'static str] = &[
        "WORKER", "CORE", "STATE", "RX", "TX", "ALLOW", "DENY", "LOST", "RESTARTS", "SESSIONS",
        "P50 US", "P99 US",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.to_string(),
            self.core.to_string(),
            self.state.clone(),
            self.packets.rx.to_string(),
            self.packets.tx.to_string(),
            self.verdicts.allow.to_string(),
            (self.verdicts.deny + self.verdicts.reset).to_string(),
            self.lost.to_string(),
            self.restarts.to_string(),
            self.sessions.to_string(),
            format!("{:.1}", self.latency_us[0]),
            format!("{:.1}", self.latency_us[1]),
        ]
    }
}
