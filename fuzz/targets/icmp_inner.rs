//! See `common/tests/fuzz/icmp_inner.rs`.
#![no_main]

#[path = "../../common/tests/fuzz/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::icmp_inner::check(data));
