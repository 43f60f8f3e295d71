//! `dpi`: what inspection knows, asked of the daemon, whose workers hold it.

use clap::Subcommand;
use serde::{Serialize, de::DeserializeOwned};

use super::out::Out;
use super::{Failure, Global};
use crate::api::{ApiError, Request};
use crate::view::Row;
use crate::view::dpi::{AppRow, SessionRow, ThreatRow};

/// Sub-verbs of `dpi`.
#[derive(Debug, Subcommand)]
pub enum Dpi {
    /// Open sessions of the workers
    Sessions {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Protocols that were recognised, and how often
    Apps,
    /// What no honest peer sends, and how often it was seen
    Threats,
    /// Show the mode, or set it
    Mode {
        /// learn, monitor or protect; off takes a change of the file
        mode: Option<String>,
        /// Write it to the configuration too
        #[arg(long, requires = "mode")]
        save: bool,
    },
}

pub fn run(global: &Global, verb: Dpi) -> Result<(), Failure> {
    match verb {
        Dpi::Sessions { limit } => rows::<SessionRow>(global, &Request::DpiSessions { limit }),
        Dpi::Apps => rows::<AppRow>(global, &Request::DpiApps),
        Dpi::Threats => rows::<ThreatRow>(global, &Request::DpiThreats),
        Dpi::Mode { mode, save } => {
            let response = global.ask(&Request::DpiMode { mode, save })?;
            Ok(Out::new(global.output).response(&response)?)
        }
    }
}

fn rows<R: Row + Serialize + DeserializeOwned>(
    global: &Global,
    request: &Request,
) -> Result<(), Failure> {
    let response = global.ask(request)?;
    let rows: Vec<R> = serde_json::from_value(response.data).map_err(ApiError::Format)?;
    Ok(Out::new(global.output).rows(rows)?)
}
