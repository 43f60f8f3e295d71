//! Every eBPF program, loaded, run by the kernel (BPF_PROG_TEST_RUN) on real frames: what becomes of each
//! frame, byte by byte, and every counter that changes. Names say what must hold.
//!
//! Needs root. Each test has its own namespaces, bpffs and maps.

mod support;

#[path = "prog_run/nat.rs"]
mod nat;
