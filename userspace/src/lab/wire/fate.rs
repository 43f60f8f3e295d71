//! What becomes of a frame: pure, and the same for the same seed.

use std::time::Duration;

use super::Wire;

/// What becomes of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives after this time.
    Arrives {
        /// Time on the wire.
        after: Duration,
        /// Held back, so that others overtake it.
        is_late: bool,
        /// And a copy with it.
        twice: bool,
    },
}

/// The fates of one direction's frames, in the order in which they are sent.
#[derive(Debug, Clone)]
pub struct Fates {
    wire: Wire,
    state: u64,
}

impl Fates {
    /// Of one direction; each has random numbers of its own.
    pub fn new(wire: Wire, direction: u64) -> Fates {
        let state = wire.seed ^ direction.wrapping_mul(0xd1b5_4a32_d192_ed03);
        Fates { wire, state }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// True in so many percent of all calls.
    fn chance(&mut self, percent: f64) -> bool {
        // 53 bits are what a f64 holds.
        let unit = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        unit * 100.0 < percent
    }

    /// The next frame's. Always takes as many random numbers, so that one setting does not change what
    /// another does.
    pub fn draw(&mut self) -> Fate {
        let lost = self.chance(self.wire.loss);
        let twice = self.chance(self.wire.duplicate);
        let is_late = self.chance(self.wire.reorder);
        let held_us = 500 + self.random() % (Wire::HELD_MS * 1000 - 500);
        if lost {
            return Fate::Lost;
        }
        let held = if is_late { held_us } else { 0 };
        Fate::Arrives {
            after: self.wire.delay + Duration::from_micros(held),
            is_late,
            twice,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_fates_and_each_direction_its_own() {
        let draw = |seed, direction| {
            let wire = Wire { seed, ..Wire::BAD };
            let mut fates = Fates::new(wire, direction);
            (0..1000).map(|_| fates.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, 0), draw(7, 0));
        assert_ne!(draw(7, 0), draw(8, 0));
        assert_ne!(draw(7, 0), draw(7, 1));
    }

    #[test]
    fn as_many_are_lost_repeated_and_late_as_was_asked_for() {
        let mut fates = Fates::new(Wire::BAD, 0);
        let (mut lost, mut late, mut double) = (0, 0, 0);
        for _ in 0..100_000 {
            match fates.draw() {
                Fate::Lost => lost += 1,
                Fate::Arrives {
                    after,
                    is_late,
                    twice,
                } => {
                    late += i32::from(is_late);
                    double += i32::from(twice);
                    let held = after - Wire::BAD.delay;
                    assert_eq!(is_late, !held.is_zero());
                    assert!(held < Duration::from_millis(Wire::HELD_MS));
                }
            }
        }
        for (percent, count) in [(2, lost), (5, late), (2, double)] {
            assert!((count - percent * 1000).abs() < 300, "{percent} %: {count}");
        }
    }

    #[test]
    fn a_good_wire_does_nothing() {
        let mut fates = Fates::new(Wire::default(), 0);
        let good = Fate::Arrives {
            after: Duration::ZERO,
            is_late: false,
            twice: false,
        };
        assert!((0..1000).all(|_| fates.draw() == good));
    }
}
