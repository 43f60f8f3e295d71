//! Counting: packets by interface, hook and verdict; reasons.

use super::{
    judge::Dropped,
    maps::{FSM_IFSTATS, FSM_REASON},
};
use crate::{
    flow::Flow,
    reason::Reason,
    stats::{Hook, Verdict},
};

/// Counts what became of a frame. `slot` is from [`super::maps::iface`].
#[inline(always)]
pub fn packet(slot: u32, hook: Hook, verdict: Verdict, bytes: u64) {
    if let Some(stats) = FSM_IFSTATS.get_ptr_mut(slot) {
        // SAFETY: this CPU's own copy; indices are enum values within the arrays.
        unsafe {
            let count = &mut (*stats).counts[hook as usize][verdict as usize];
            count.packets += 1;
            count.bytes += bytes;
        }
    }
}

/// Counts a reason.
#[inline(always)]
pub fn reason(reason: Reason) {
    dropped(Dropped(reason as u32));
}

/// Counts the reason of a drop.
#[inline(always)]
pub fn dropped(reason: Dropped) {
    if let Some(count) = FSM_REASON.get_ptr_mut(reason.0) {
        // SAFETY: this CPU's own copy.
        unsafe { *count += 1 };
    }
}

/// Notes a packet in its flow's entry. The first hook that sees the flow counts and tracks it (then true);
/// the others only keep it alive.
#[inline(always)]
pub fn flow<A>(flow: &mut Flow<A>, ifindex: u32, now_ns: u64, packets: u64, bytes: u64) -> bool {
    flow.last_seen_ns = now_ns;
    if flow.ifindex != ifindex {
        if flow.ifindex != 0 {
            return false;
        }
        flow.ifindex = ifindex;
    }
    flow.packets += packets;
    flow.bytes += bytes;
    true
}
