//! `reload`: the daemon reads its configuration again.

use super::out::Out;
use super::{Failure, Global};
use crate::api::Request;

pub fn run(global: &Global) -> Result<(), Failure> {
    let response = global.ask(&Request::Reload)?;
    Ok(Out::new(global.output).response(&response)?)
}
