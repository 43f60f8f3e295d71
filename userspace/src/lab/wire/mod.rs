//! A bad wire: a link with delay, loss, duplication and reordering, for kernels without `netem` and the same
//! on all of them. `lab wire` stands between two devices and passes frames from each to the other; what
//! becomes of a frame depends on its number, its direction and the seed alone ([`fate`]).
//!
//! Frames are taken as they are on the wire: the devices' checksum and segmentation offloads have to be off
//! on whoever sends to them. VLAN tags are put back where the kernel has taken them out.

mod fate;
mod link;
pub mod socket;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use fate::{Fate, Fates};
pub use link::{Counters, Stats, run};

use super::error::{Error, Result, file};

/// How bad the wire is, the same in both directions. As text: `delay=5ms,loss=2%,reorder=5%,duplicate=2%,seed=1`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Wire {
    /// How long every frame takes.
    pub delay: Duration,
    /// Frames that are lost, percent.
    pub loss: f64,
    /// Frames that arrive twice, percent.
    pub duplicate: f64,
    /// Frames that are overtaken by those sent up to [`Wire::HELD_MS`] after them, percent.
    pub reorder: f64,
    /// Begin of the random numbers.
    pub seed: u64,
}

impl Wire {
    /// Longest that a frame is held back so that others overtake it, milliseconds.
    pub const HELD_MS: u64 = 4;
    /// The wire of the tests: bad, and not hopeless.
    pub const BAD: Wire = Wire {
        delay: Duration::from_millis(5),
        loss: 2.0,
        duplicate: 2.0,
        reorder: 5.0,
        seed: 1,
    };
}

impl Default for Wire {
    /// A wire that changes nothing.
    fn default() -> Wire {
        Wire {
            delay: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            seed: 1,
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delay_ms = self.delay.as_secs_f64() * 1000.0;
        write!(
            f,
            "delay={delay_ms}ms,loss={}%,reorder={}%,duplicate={}%,seed={}",
            self.loss, self.reorder, self.duplicate, self.seed
        )
    }
}

impl FromStr for Wire {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Wire, String> {
        let mut wire = Wire::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let wrong = || {
                format!("{part:?}: expected delay=5ms, loss=2%, reorder=5%, duplicate=2% or seed=1")
            };
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = |unit: &str, most: f64| {
                let number = value.strip_suffix(unit).unwrap_or(value);
                let number: f64 = number.parse().map_err(|_| wrong())?;
                (0.0..=most)
                    .contains(&number)
                    .then_some(number)
                    .ok_or_else(|| format!("{part:?}: expected 0 to {most}"))
            };
            match name {
                "delay" => wire.delay = Duration::from_secs_f64(number("ms", 10_000.0)? / 1000.0),
                "loss" => wire.loss = number("%", 100.0)?,
                "duplicate" => wire.duplicate = number("%", 100.0)?,
                "reorder" => wire.reorder = number("%", 100.0)?,
                "seed" => wire.seed = value.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(wire)
    }
}

/// Reads the counters that `lab wire --stats` has written last.
pub fn read_stats(path: &Path) -> Result<Stats> {
    let text = std::fs::read_to_string(path).map_err(file(path))?;
    serde_json::from_str(&text).map_err(|source| Error::Json {
        what: path.display().to_string(),
        text,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_read_and_written_the_same() {
        let text = "delay=5ms,loss=2%,reorder=5%,duplicate=2%,seed=1";
        assert_eq!(text.parse(), Ok(Wire::BAD));
        assert_eq!(Wire::BAD.to_string(), text);
        assert_eq!("".parse(), Ok(Wire::default()));
        for bad in ["loss=200%", "loss", "jitter=1ms", "delay=-1ms", "seed=x"] {
            assert!(bad.parse::<Wire>().is_err(), "{bad}");
        }
    }
}
