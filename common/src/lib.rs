//! skeleton
#![cfg_attr(not(test), no_std)]
#[cfg(feature = "ebpf")]
pub mod bpf;
