//! What the clients of one run have seen, before the flood, in it and after it.

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

/// One run. Times are seconds from the flood's start.
#[derive(Serialize)]
pub struct Series {
    /// Seconds that the flood lasted.
    pub flood_s: f64,
    /// Open connections: an interval's end, and their rate in it, Mbit/s.
    pub open: Vec<(f64, f64)>,
    /// Attempts to connect: when, and milliseconds until the answer; `None`: not in time.
    pub attempts: Vec<(f64, Option<f64>)>,
    /// Open connections that have failed, or send no more after the flood.
    pub lost: usize,
    /// Before the flood.
    pub before: Phase,
    /// In it.
    pub during: Phase,
    /// After it.
    pub after: Phase,
}

/// What a part of the run was like.
#[derive(Serialize)]
pub struct Phase {
    /// Of the open connections together.
    pub mbit_per_s: f64,
    /// New connections that succeeded.
    pub connected_per_s: f64,
    /// Of those tried.
    pub connected_share: f64,
    /// Of those that succeeded.
    pub p50_ms: f64,
    /// Likewise.
    pub p99_ms: f64,
}

impl Series {
    /// From what `load hold` and `load probe` have printed.
    pub fn new(hold: &Value, probe: &Value, start_ns: u64, end_ns: u64) -> Result<Self> {
        let at = |ns: &Value| -> Result<f64> {
            let ns = ns.as_u64().context("a time")?;
            Ok((ns as f64 - start_ns as f64) / 1e9)
        };
        let intervals = hold["intervals"].as_array().context("intervals")?;
        let (mut open, mut last) = (Vec::new(), at(&hold["start_ns"])?);
        for interval in intervals {
            let end = at(&interval["end_ns"])?;
            let bytes: u64 = bytes(interval).sum();
            open.push((end, bytes as f64 * 8.0 / 1e6 / (end - last)));
            last = end;
        }
        let attempts = probe["attempts"].as_array().context("attempts")?;
        let attempts = attempts
            .iter()
            .map(|attempt| {
                let took = attempt["took_us"].as_f64().map(|us| us / 1e3);
                Ok((at(&attempt["start_ns"])?, took))
            })
            .collect::<Result<Vec<_>>>()?;
        let flood_s = (end_ns - start_ns) as f64 / 1e9;
        // The connections' first moments are left out.
        let first = open.first().map_or(0.0, |(end, _)| *end);
        Ok(Self {
            flood_s,
            lost: lost(intervals, &open, flood_s),
            before: Phase::new(&open, &attempts, first, 0.0),
            during: Phase::new(&open, &attempts, 0.0, flood_s),
            after: Phase::new(&open, &attempts, flood_s, last),
            open,
            attempts,
        })
    }
}

fn bytes(interval: &Value) -> impl Iterator<Item = u64> + '_ {
    let all = interval["bytes"].as_array().into_iter().flatten();
    all.filter_map(Value::as_u64)
}

/// Connections that have sent nothing in the time after the flood.
fn lost(intervals: &[Value], open: &[(f64, f64)], flood_s: f64) -> usize {
    let connections = intervals.first().map_or(0, |first| bytes(first).count());
    let mut sent = vec![0; connections];
    for (interval, (end, _)) in intervals.iter().zip(open) {
        if *end > flood_s {
            for (sum, bytes) in sent.iter_mut().zip(bytes(interval)) {
                *sum += bytes;
            }
        }
    }
    sent.iter().filter(|bytes| **bytes == 0).count()
}

impl Phase {
    fn new(open: &[(f64, f64)], attempts: &[(f64, Option<f64>)], from: f64, to: f64) -> Self {
        // Each interval counts by the part of it that lies in this phase.
        let (mut mbit, mut seconds) = (0.0, 0.0);
        for pair in open.windows(2) {
            let (start, (end, rate)) = (pair[0].0, pair[1]);
            let inside = end.min(to) - start.max(from);
            if inside > 0.0 {
                mbit += rate * inside;
                seconds += inside;
            }
        }
        let tried: Vec<Option<f64>> = attempts
            .iter()
            .filter(|(start, _)| *start >= from && *start < to)
            .map(|(_, took)| *took)
            .collect();
        let mut took: Vec<f64> = tried.iter().copied().flatten().collect();
        took.sort_by(f64::total_cmp);
        let part = |share: f64| {
            let last = took.len().saturating_sub(1);
            took.get((last as f64 * share) as usize)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Self {
            mbit_per_s: mbit / seconds,
            connected_per_s: took.len() as f64 / (to - from),
            connected_share: took.len() as f64 / tried.len() as f64,
            p50_ms: part(0.5),
            p99_ms: part(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn phases_are_told_apart_and_silent_connections_are_lost() {
        let s = |seconds: f64| (seconds * 1e9) as u64;
        let interval = |end: f64, bytes: [u64; 2]| json!({ "end_ns": s(end), "bytes": bytes });
        let hold = json!({ "start_ns": s(8.0), "failed": 0, "intervals": [
            interval(9.0, [0, 0]), interval(10.0, [1_000_000, 0]), interval(11.0, [125_000, 0]),
            interval(12.0, [125_000, 0]),
        ]});
        let attempt = |at: f64, us: Option<u64>| json!({ "start_ns": s(at), "took_us": us });
        let probe = json!({ "attempts": [
            attempt(9.5, Some(1000)), attempt(10.2, Some(3000)), attempt(10.4, None),
        ]});
        let series = Series::new(&hold, &probe, s(10.0), s(11.0)).unwrap();
        assert_eq!(series.lost, 1);
        assert_eq!(series.before.mbit_per_s, 8.0);
        assert_eq!(series.during.mbit_per_s, 1.0);
        assert_eq!(series.during.connected_share, 0.5);
        assert_eq!(series.during.p50_ms, 3.0);
    }
}
