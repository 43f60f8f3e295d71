//! Arguments that every verb takes, and what follows from them: where the pins and the daemon are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, Format, pins};
use crate::api::{self, Request, Response};
use crate::config::{self, Config, Node};
use crate::maps::Maps;

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/fsm-fastpath/node.toml";
/// Defaults of `node.bpffs` and `node.api`, for verbs that need no configuration.
const DEFAULT_BPFFS: &str = "/sys/fs/bpf/fsm";
const DEFAULT_API: &str = "/run/fsm-fastpath.sock";

/// Arguments of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The node's configuration [default: /etc/fsm-fastpath/node.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the maps are pinned, instead of the configuration's node.bpffs
    #[arg(long, global = true, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// The daemon's socket, instead of the configuration's node.api
    #[arg(long, global = true, value_name = "SOCKET")]
    pub api: Option<PathBuf>,
    /// How answers are written
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

impl Global {
    /// The configuration's file.
    pub fn config_path(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG))
    }

    /// The configuration, with what the arguments say instead of it.
    pub fn config(&self) -> Result<Config, Failure> {
        let mut config = config::load(self.config_path())?;
        if let Some(bpffs) = &self.bpffs {
            config.node.bpffs.clone_from(bpffs);
        }
        if let Some(api) = &self.api {
            config.node.api.clone_from(api);
        }
        Ok(config)
    }

    /// `[node]`, unless no file was named and there is none at the usual place.
    fn node(&self) -> Result<Option<Node>, Failure> {
        if self.config.is_none() && !Path::new(DEFAULT_CONFIG).exists() {
            return Ok(None);
        }
        Ok(Some(self.config()?.node))
    }

    /// Where the maps are pinned.
    pub fn bpffs(&self) -> Result<PathBuf, Failure> {
        if let Some(bpffs) = &self.bpffs {
            return Ok(bpffs.clone());
        }
        Ok(self
            .node()?
            .map_or_else(|| DEFAULT_BPFFS.into(), |node| node.bpffs))
    }

    /// The daemon's socket.
    pub fn api(&self) -> Result<PathBuf, Failure> {
        if let Some(api) = &self.api {
            return Ok(api.clone());
        }
        Ok(self
            .node()?
            .map_or_else(|| DEFAULT_API.into(), |node| node.api))
    }

    /// The pinned maps.
    pub fn maps(&self) -> Result<Maps, Failure> {
        Ok(Maps::open(&self.bpffs()?)?)
    }

    /// Names of the interfaces by index: as the daemon sees them, which may run in another network
    /// namespace; without it, as this process does.
    pub fn interfaces(&self) -> BTreeMap<u32, String> {
        let mut names = pins::interfaces();
        if let Ok(response) = self.ask(&Request::Status)
            && let Ok(status) = serde_json::from_value::<api::Status>(response.data)
        {
            names.extend(status.interfaces.into_iter().map(|i| (i.ifindex, i.name)));
        }
        names
    }

    /// Asks the daemon.
    pub fn ask(&self, request: &Request) -> Result<Response, Failure> {
        Ok(api::ask(&self.api()?, request)?)
    }
}
