//! Packet logic and map definitions, compiled into both hooks, user space and the tests.
//!
//! A packet's way through this crate:
//!
//! 1. [`parse`] reads it once, over a [`view::PacketView`], into a [`parse::Parsed`] or a [`Reason`];
//! 2. its [`flow::FlowKey`] finds a [`flow::Flow`]: an established flow ends here, with one
//!    [`rewrite::Rewrite`] or a redirect;
//! 3. a new flow asks the flags ([`flags`]), the ACL ([`policy::decide`]) and NAT ([`nat::lookup`]), in
//!    this order, and the answer becomes two flow entries, one for each direction;
//! 4. whatever happened is counted by interface, hook and verdict ([`stats`]), a drop also by [`Reason`].
//!
//! [`maps`] lists every map once. The feature `ebpf` adds the kernel's side of steps 2 to 4 (`bpf`).

#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

#[cfg(feature = "ebpf")]
pub mod bpf;
pub mod checksum;
pub mod cookie;
pub mod escalate;
pub mod flags;
pub mod flow;
pub mod guard;
pub mod maps;
pub mod nat;
pub mod parse;
pub mod policy;
pub mod reason;
pub mod rewrite;
pub mod scratch;
pub mod shared;
pub mod stats;
pub mod track;
pub mod view;
pub mod wire;

pub use reason::Reason;
