//! What a worker counts. Only the worker writes; it answers with a copy when asked.

use hdrhistogram::Histogram;

use super::frames::FramesView;
use crate::{dpi, xsk::socket::XskStats};

/// Upper bounds of the latency buckets, nanoseconds: 1 µs to 10 ms; one more bucket is for what took longer.
pub const LATENCY_BOUNDS_NS: [u64; 11] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 10_000_000,
];
/// Latencies above this count as this.
const LONGEST_NS: u64 = 10_000_000_000;

/// Counters of one worker since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that arrived on this worker's queue.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that were given back to the data path, RSTs included.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that were judged: `rx_packets` less `hop_out` and `hop_full`, and `hop_in`.
    pub judged: u64,
    /// Of these, copies: they end here.
    pub copies: u64,
    /// Verdicts by kind: the flow's next packet is looked at too.
    pub passed: u64,
    /// The flow is the kernel's from now on.
    pub allowed: u64,
    /// This packet was dropped.
    pub dropped: u64,
    /// The flow was denied.
    pub denied: u64,
    /// The flow was denied and its ends were told.
    pub reset: u64,
    /// RSTs sent.
    pub rsts: u64,
    /// Packets that belonged to another worker and went there.
    pub hop_out: u64,
    /// Others' packets that came here.
    pub hop_in: u64,
    /// Packets dropped: their worker had too many already.
    pub hop_full: u64,
    /// Packets dropped: the TX ring was full.
    pub tx_full: u64,
    /// Packets dropped: too long for the trailer that takes them back.
    pub too_long: u64,
    /// Frames that no hook of ours has sent.
    pub strange: u64,
    /// Verdicts that the kernel did not take.
    pub verdicts_lost: u64,
    /// Times that the engine panicked and was made anew.
    pub restarts: u64,
    /// Events for which there was no room.
    pub events_lost: u64,
}

/// Where the middle and the end of a distribution are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// Values.
    pub count: u64,
    /// Half of them are at most this.
    pub p50: u64,
    /// 99 % of them are.
    pub p99: u64,
    /// All of them are.
    pub max: u64,
}

/// One worker at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerStatus {
    /// Its number: that of its queue, and of its word in `fsm_worker`.
    pub worker: usize,
    /// CPU that it is to run on.
    pub core: u32,
    /// Whether it could be pinned there.
    pub is_pinned: bool,
    /// Its thread.
    pub tid: i32,
    /// The device writes into our memory itself.
    pub is_zero_copy: bool,
    /// It has ended, though nobody stopped it.
    pub has_ended: bool,
    /// Nanoseconds since its last round; `None`: it does not run, or its device is down.
    pub age_ns: Option<u64>,
    /// Counters.
    pub counters: Counters,
    /// Where its frames are.
    pub frames: FramesView,
    /// Its socket, as the kernel counts.
    pub xsk: XskStats,
    /// Packets judged at a time.
    pub batch: Spread,
    /// Nanoseconds from a hook's taking a packet to its being given back.
    pub latency: Spread,
    /// The same in buckets, not added up: [`LATENCY_BOUNDS_NS`], then what took longer.
    pub latency_buckets: [u64; LATENCY_BOUNDS_NS.len() + 1],
    /// The same, added up.
    pub latency_sum_ns: u64,
    /// Its engine.
    pub engine: dpi::Stats,
}

/// Distributions, as the worker keeps them.
#[derive(Debug)]
pub struct Gauges {
    batch: Histogram<u64>,
    latency: Histogram<u64>,
    buckets: [u64; LATENCY_BOUNDS_NS.len() + 1],
    sum_ns: u64,
}

impl Default for Gauges {
    fn default() -> Self {
        let new = |most, digits| Histogram::new_with_bounds(1, most, digits);
        Self {
            batch: new(1024, 2).expect("constant bounds"),
            latency: new(LONGEST_NS, 2).expect("constant bounds"),
            buckets: [0; LATENCY_BOUNDS_NS.len() + 1],
            sum_ns: 0,
        }
    }
}

impl Gauges {
    /// A batch of so many.
    pub fn batch(&mut self, packets: usize) {
        self.batch.saturating_record(packets as u64);
    }

    /// A packet was given back so long after it was taken.
    pub fn latency(&mut self, ns: u64) {
        self.latency.saturating_record(ns);
        self.sum_ns += ns;
        self.buckets[LATENCY_BOUNDS_NS.partition_point(|&bound| bound < ns)] += 1;
    }

    /// Writes them into a status.
    pub fn show(&self, status: &mut WorkerStatus) {
        status.batch = spread(&self.batch);
        status.latency = spread(&self.latency);
        status.latency_buckets = self.buckets;
        status.latency_sum_ns = self.sum_ns;
    }
}

fn spread(histogram: &Histogram<u64>) -> Spread {
    Spread {
        count: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_the_first_bucket_that_holds_it() {
        let mut gauges = Gauges::default();
        for ns in [0, 1_000, 1_001, 10_000_000, 10_000_001, u64::MAX / 2] {
            gauges.latency(ns);
        }
        assert_eq!(gauges.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(spread(&gauges.latency).count, 6);
    }
}
