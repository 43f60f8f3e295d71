//! What other data planes were seen to get wrong must hold here: with the real daemon and real traffic. The
//! table in `docs/development.md` says which test shows which point; names say what must hold.
//!
//! Needs root and the programs that `docs/lab.md` names; without them it fails and says so.

mod traffic;

#[path = "faults/closing.rs"]
mod closing;
#[path = "faults/endpoints.rs"]
mod endpoints;
#[path = "faults/fails_closed.rs"]
mod fails_closed;
#[path = "faults/fragments.rs"]
mod fragments;
#[path = "faults/headers.rs"]
mod headers;
#[path = "faults/late.rs"]
mod late;
#[path = "faults/linear.rs"]
mod linear;
#[path = "faults/mtu.rs"]
mod mtu;
#[path = "faults/opening.rs"]
mod opening;
#[path = "faults/ping.rs"]
mod ping;
#[path = "faults/table.rs"]
mod table;
#[path = "faults/tracing.rs"]
mod tracing;
