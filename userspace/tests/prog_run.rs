//! Every eBPF program, loaded, run by the kernel (BPF_PROG_TEST_RUN) on real frames: what becomes of each
//! frame, byte by byte, and every counter that changes. Names say what must hold.
//!
//! Needs root. Each test has its own namespaces, bpffs and maps. `fsm_origin` is not here: the kernel has no
//! test run for cgroup programs.

mod support;

#[path = "prog_run/acl.rs"]
mod acl;
#[path = "prog_run/bad.rs"]
mod bad;
#[path = "prog_run/e4lb.rs"]
mod e4lb;
#[path = "prog_run/exclude.rs"]
mod exclude;
#[path = "prog_run/flags.rs"]
mod flags;
#[path = "prog_run/fragments.rs"]
mod fragments;
#[path = "prog_run/fuzz.rs"]
mod fuzz;
#[path = "prog_run/fuzz_flows.rs"]
mod fuzz_flows;
#[path = "prog_run/guard.rs"]
mod guard;
#[path = "prog_run/icmp.rs"]
mod icmp;
#[path = "prog_run/inbound.rs"]
mod inbound;
#[path = "prog_run/inspect.rs"]
mod inspect;
#[path = "prog_run/lookup.rs"]
mod lookup;
#[path = "prog_run/maps.rs"]
mod maps;
#[path = "prog_run/nat.rs"]
mod nat;
#[path = "prog_run/nat_edges.rs"]
mod nat_edges;
#[path = "prog_run/policy.rs"]
mod policy;
#[path = "prog_run/redirect.rs"]
mod redirect;
#[path = "prog_run/reload.rs"]
mod reload;
#[path = "prog_run/tcp.rs"]
mod tcp;
#[path = "prog_run/udp_icmp.rs"]
mod udp_icmp;
