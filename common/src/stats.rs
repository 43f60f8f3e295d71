//! Per-CPU packet counters: one block an interface, indexed by hook and verdict.

use crate::shared;

/// Where a packet was seen; first index of [`IfaceStats`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP, from the device.
    Xdp = 0,
    /// TC, from the device.
    TcIngress = 1,
    /// TC, to the device.
    TcEgress = 2,
}

impl Hook {
    /// In the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    /// (hook, direction) labels of metrics.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Xdp => ("xdp", "ingress"),
            Self::TcIngress => ("tc", "ingress"),
            Self::TcEgress => ("tc", "egress"),
        }
    }
}

/// What became of a packet; second index of [`IfaceStats`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on as it came.
    Pass = 0,
    /// Dropped; `fsm_reason` says why.
    Drop = 1,
    /// Translated, goes on.
    Nat = 2,
    /// Sent past the stack.
    Redirect = 3,
    /// Given to a DPI worker.
    Escalate = 4,
    /// Answered: the frame went back where it came from.
    Answer = 5,
}

impl Verdict {
    /// In the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Pass,
        Self::Drop,
        Self::Nat,
        Self::Redirect,
        Self::Escalate,
        Self::Answer,
    ];

    /// Name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Nat => "nat",
            Self::Redirect => "redirect",
            Self::Escalate => "escalate",
            Self::Answer => "answer",
        }
    }
}

shared! {
    /// Packets and frame bytes.
    pub struct Count {
        /// Packets; a GSO frame counts once here.
        pub packets: u64,
        /// Frame bytes.
        pub bytes: u64,
    }

    /// Value of `fsm_ifstats`.
    pub struct IfaceStats {
        /// `[Hook][Verdict]`.
        pub counts: [[Count; 6]; 3],
    }
}
