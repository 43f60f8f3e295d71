//! Why a verb failed, and the exit code for it.

use std::io;

use aya::maps::MapError;

use crate::api::ApiError;
use crate::config::ConfigErrors;
use crate::maps::PinError;

/// A verb that was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: one line a mistake.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The pins are missing or not ours.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The kernel refused a look at a map.
    #[error("a pinned map cannot be read: {0}")]
    Map(#[from] MapError),
    /// The daemon is not there or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Output could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    /// One sentence; empty where everything is said already.
    #[error("{0}")]
    Said(String),
    /// What the daemon, loader or lab said.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// 2 for wrong usage or configuration, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Other(error) if error.is::<ConfigErrors>() => 2,
            _ => 1,
        }
    }

    /// Whether no daemon runs, as opposed to one that must not be asked.
    pub fn is_daemon_missing(&self) -> bool {
        let Self::Api(ApiError::Connect { source, .. }) = self else {
            return false;
        };
        source.kind() != io::ErrorKind::PermissionDenied
    }

    /// Whether whoever reads the output has read enough (`| head`).
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The text for stderr: configuration errors begin with their file, as a compiler's do.
    pub fn labelled(&self, text: &str) -> String {
        match self {
            Self::Config(_) => text.to_owned(),
            Self::Other(error) if error.is::<ConfigErrors>() => text.to_owned(),
            _ => format!("error: {text}"),
        }
    }
}
