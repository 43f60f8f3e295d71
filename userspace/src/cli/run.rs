//! `run`: the daemon.

use super::{Failure, Global, wiring};

pub fn run(global: &Global) -> Result<(), Failure> {
    let config = global.config()?;
    Ok(wiring::run_daemon(config, global.config_path().to_owned())?)
}
