//! Numbers and header facts of the wire formats; no reading of packets here (see `parse`).

pub mod l2;
pub mod l3;
pub mod l4;
