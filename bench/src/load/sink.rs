//! The far end: a TC program that counts datagrams where they arrive, and drops them, the same for all that have
//! sent them; no socket, so that it costs as little as it can.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use fsm_fastpath::control::sweep::now_ns;
use serde_json::{Value, json};

use crate::{
    escalate::Sink,
    sys::{self, ProgramKind},
};

/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Arguments.
#[derive(Args)]
pub struct Options {
    /// Device
    #[arg(long)]
    device: String,
    /// Port of the datagrams
    #[arg(long)]
    port: u16,
    /// How long
    #[arg(long)]
    seconds: f64,
}

/// Counts; gives back times, and packets and bytes until then.
pub fn run(options: &Options) -> Result<Value> {
    let sink = Sink::new(options.port).context("the far end's program")?;
    let _link = sys::attach(
        ProgramKind::Tc,
        &sink.program,
        sys::ifindex(&options.device)?,
    )
    .context("attach")?;
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed().as_secs_f64() < options.seconds {
        let [packets, bytes] = sink.counts()?;
        samples.push(json!([now_ns(), packets, bytes]));
        sleep(STEP);
    }
    Ok(Value::Array(samples))
}
