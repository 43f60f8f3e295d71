//! `doctor`: what will work here, and what to do about the rest.

use super::{Failure, Global};

pub fn run(_global: &Global) -> Result<(), Failure> {
    Err(Failure::Said("not built yet".into()))
}
