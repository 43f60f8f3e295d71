//! What goes with a packet to a worker and back, and what the worker tells the kernel of its flow.
//!
//! A packet is taken (or copied) by a hook, reaches the worker on an AF_XDP socket with an [`Escalated`] in
//! front of it, and goes back with a [`Returned`] behind it. Both directions of a flow meet one worker, by
//! [`flow_hash`] and [`owner`].

use crate::{
    flow::{Address, FlowKey},
    shared,
};

/// Begins an [`Escalated`]; the last byte is the version of both structs.
pub const TAKEN: u32 = 0x6673_6d01;
/// Begins a [`Returned`].
pub const BACK: u32 = 0x6673_6d81;
/// Bytes in front of a frame on its way to the worker. XDP metadata is limited to 32
/// (`xdp_metalen_invalid`, Linux before 6.7).
pub const HEAD: usize = size_of::<Escalated>();
/// Bytes behind a frame on its way back.
pub const TRAILER: usize = size_of::<Returned>();
/// The pair of devices between the two: the data path's end, and the workers'. No `[[interface]]` means them.
pub const PAIR: [&str; 2] = ["dpi0", "dpi1"];
/// Workers at most; sockets in `fsm_xsk` and words in `fsm_worker`.
pub const MAX_WORKERS: u32 = 64;
/// A worker that has not written its word for this long is not given packets, nanoseconds.
pub const STALE_NS: u64 = 500_000_000;

/// Value of `skb->mark` on a packet that a worker gave back, until the hook that took it has it again. The bit of
/// [`crate::maps::MARK_REINJECTED`] is set, so that one test finds both.
pub const MARK_JUDGED: u32 = 0x6673_0000;

/// Bits of [`Escalated::flags`] and [`Returned::flags`].
pub mod taken {
    /// Of the answering direction.
    pub const REPLY: u8 = 1;
    /// A copy: the packet itself goes on, this one ends here.
    pub const COPY: u8 = 2;
    /// A VLAN tag stood beside the frame.
    pub const TAGGED: u8 = 4;
    /// It was one of 802.1ad.
    pub const TAG_AD: u8 = 8;
}

/// Value of [`Judged::verdict`].
pub mod verdict {
    /// The kernel forwards the flow alone from now on.
    pub const ALLOW: u8 = 1;
    /// Its packets are dropped.
    pub const DENY: u8 = 2;
    /// The same, and whoever sends is told by an RST.
    pub const RESET: u8 = 3;
}

shared! {
    /// In front of a frame that a worker gets.
    pub struct Escalated {
        /// [`TAKEN`].
        pub magic: u32,
        /// Device whose hook took the packet.
        pub ifindex: u32,
        /// CLOCK_MONOTONIC when it was taken, nanoseconds.
        pub at_ns: u64,
        /// [`crate::maps::Xcfg::dpi_policy`] by which it was.
        pub policy: u32,
        /// [`flow_hash`] of its flow: a later fragment has it too.
        pub hash: u32,
        /// [`crate::flow::Flow::born`] of its flow, the part that tells two flows of one tuple apart.
        pub born: u32,
        /// Tag control information, where `flags` has [`taken::TAGGED`].
        pub vlan: u16,
        /// Number of the [`crate::stats::Hook`].
        pub hook: u8,
        /// Bits of [`taken`].
        pub flags: u8,
    }

    /// Behind a frame that a worker gives back.
    pub struct Returned {
        /// [`BACK`].
        pub magic: u32,
        /// Device whose hook it goes on at.
        pub ifindex: u32,
        /// Tag control information, as in [`Escalated`].
        pub vlan: u16,
        /// Number of the [`crate::stats::Hook`]: from the device, or to it.
        pub hook: u8,
        /// Bits of [`taken`].
        pub flags: u8,
        /// Always zero.
        pub pad: u32,
    }

    /// Value of `fsm_verdict` and `fsm_verdict6`, keyed by a direction's tuple as its ends see it: before
    /// translation on arrival, after it on the way out.
    pub struct Judged {
        /// [`Escalated::policy`] of the packet that it was judged by: a later policy asks again.
        pub policy: u32,
        /// [`Escalated::born`] of the same: a later flow of this tuple asks again.
        pub born: u32,
        /// One of [`verdict`].
        pub verdict: u8,
        /// Always zero.
        pub pad: [u8; 7],
    }

    /// Value of `fsm_worker`.
    pub struct WorkerWord {
        /// CLOCK_MONOTONIC of the worker's last round, nanoseconds; 0: it has ended, or its socket has.
        pub alive_ns: u64,
    }
}

impl Returned {
    /// The way on for a packet that was taken.
    pub const fn of(taken: &Escalated) -> Self {
        Self {
            magic: BACK,
            ifindex: taken.ifindex,
            vlan: taken.vlan,
            hook: taken.hook,
            flags: taken.flags,
            pad: 0,
        }
    }
}

/// Hash of a flow, the same for both of its directions.
#[inline(always)]
pub fn flow_hash<A: Address>(key: &FlowKey<A>) -> u32 {
    let end = |addr: A, port: [u8; 2]| {
        let port = u32::from(u16::from_ne_bytes(port)).wrapping_mul(0x9e37_79b1);
        let head = u32::from_ne_bytes(addr.head()).rotate_left(15);
        mix(addr.sum().wrapping_mul(0x85eb_ca77) ^ head ^ port)
    };
    let both = end(key.saddr, key.sport).wrapping_add(end(key.daddr, key.dport));
    mix(both ^ key.proto as u32)
}

/// Murmur3's finalizer.
#[inline(always)]
const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

/// The worker of `workers` to which a flow with this hash belongs.
#[inline(always)]
pub const fn owner(hash: u32, workers: u32) -> u32 {
    ((hash as u64 * workers as u64) >> 32) as u32
}
