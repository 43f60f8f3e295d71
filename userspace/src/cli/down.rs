//! `down`: the daemon removes everything and ends; without a daemon it is removed here.

use serde_json::json;

use super::out::Out;
use super::{Failure, Global, wiring};
use crate::api::Request;

pub fn run(global: &Global) -> Result<(), Failure> {
    let out = Out::new(global.output);
    match global.ask(&Request::Down) {
        Ok(response) => Ok(out.response(&response)?),
        Err(failure) if failure.is_daemon_missing() => {
            let removed = wiring::take_down(&global.bpffs()?)?;
            let text = || match removed.is_empty() {
                true => "nothing was there to remove".to_owned(),
                false => removed
                    .iter()
                    .map(|what| format!("removed {what}"))
                    .collect::<Vec<_>>()
                    .join("\n"),
            };
            Ok(out.one(&json!({"ok": true, "removed": removed}), text)?)
        }
        Err(failure) => Err(failure),
    }
}
