//! See `common/tests/fuzz/parse.rs`.
#![no_main]

#[path = "../../common/tests/fuzz/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::parse::check(data));
