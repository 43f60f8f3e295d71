//! Fragments: the first one brings the ports, the later ones follow it (RFC 791 §3.2, RFC 8200 §4.5).
//! They are never matched by ports that they do not carry.

use super::maps::FSM_FRAG;
use crate::{
    flow::Address,
    maps::{FragmentKey, FragmentPorts},
    parse::{Fragment, Parsed},
    reason::Reason,
};

/// Gives a later fragment its flow's ports, and remembers those of a first one.
///
/// # Errors
/// [`Reason::FragmentOrphan`] for a later fragment whose first one has not passed here.
#[inline(always)]
pub fn resolve<A: Address>(packet: &mut Parsed<A>) -> Result<(), Reason> {
    if packet.fragment as u8 == Fragment::Whole as u8 || !packet.is_flow() {
        return Ok(());
    }
    let key = FragmentKey {
        saddr: packet.key.saddr.widen(),
        daddr: packet.key.daddr.widen(),
        id: packet.fragment_id,
        proto: packet.key.proto,
        pad: [0; 3],
    };
    if packet.fragment as u8 == Fragment::First as u8 {
        let ports = FragmentPorts {
            sport: packet.key.sport,
            dport: packet.key.dport,
            pad: [0; 4],
        };
        let _ = FSM_FRAG.insert(&key, &ports, 0);
        return Ok(());
    }
    // SAFETY: an evicted entry may be reused meanwhile; then two ports are wrong and no flow is found.
    let ports = unsafe { FSM_FRAG.get(&key) }.ok_or(Reason::FragmentOrphan)?;
    (packet.key.sport, packet.key.dport) = (ports.sport, ports.dport);
    Ok(())
}
