//! Counts over time, as the far ends print them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The first part of a run is not counted: caches, and what grows at its beginning.
const WARM: f64 = 0.2;

/// Times and packets; where bytes were counted, they must be whole frames of this length.
pub fn read(samples: &Value, frame: u64) -> Result<Vec<(u64, u64)>> {
    let samples = samples.as_array().context("counts")?;
    samples
        .iter()
        .map(|sample| {
            let number = |at: usize| sample[at].as_u64().context("a count");
            let packets = number(1)?;
            if let Some(bytes) = sample[2].as_u64() {
                ensure!(
                    bytes.abs_diff(packets * frame) <= frame,
                    "{packets} packets of {frame} bytes should not be {bytes}"
                );
            }
            Ok((number(0)?, packets))
        })
        .collect()
}

/// When the sender began and ended, by the clock of the counts.
pub fn times(blast: &Value) -> Result<(u64, u64)> {
    let number = |key: &str| blast[key].as_u64().context("blast");
    Ok((number("start_ns")?, number("end_ns")?))
}

/// Packets a second while the sender sent.
pub fn rate(samples: &[(u64, u64)], start: u64, end: u64) -> Result<f64> {
    let start = start + ((end - start) as f64 * WARM) as u64;
    let mut inside = samples.iter().filter(|(at, _)| (start..=end).contains(at));
    let (first, last) = (inside.next(), inside.next_back());
    let ((from, before), (to, after)) = first.zip(last).context("too few counts")?;
    Ok((after - before) as f64 * 1e9 / (to - from) as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_came_while_it_was_sent_counts() {
        let s = |seconds: f64| (seconds * 1e9) as u64;
        let sample = |at: f64, packets: u64| json!([s(at), packets, packets * 106]);
        let samples = json!([
            sample(1.0, 0),
            sample(2.1, 50),
            sample(2.2, 100),
            sample(2.7, 600),
            sample(3.0, 900),
            sample(3.1, 5000),
        ]);
        let samples = read(&samples, 106).unwrap();
        let rate = rate(&samples, s(2.0), s(3.0)).unwrap();
        assert!((rate - 1000.0).abs() < 1.0, "{rate}");
        assert!(read(&json!([[1, 1000, 1000 * 107]]), 106).is_err());
    }
}
