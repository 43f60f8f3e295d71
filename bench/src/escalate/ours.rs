//! The daemon's configurations.

use std::path::Path;

use anyhow::Result;

use super::net::CONSUMER;
use crate::hosts::Hosts;

/// Whether this build inspects: without that there is nothing of ours to measure.
pub fn is_there(daemon: &Path) -> Result<bool> {
    Hosts::new("check", &["node"])?.accepts("node", daemon, &config(Dpi::Passing))
}

/// What the daemon does with flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dpi {
    /// Looks at none.
    Off,
    /// Looks at every packet: DNS is not given to the kernel, and that is what A sends.
    Passing,
    /// Gives flows to the kernel after their first bytes.
    Offloading,
}

impl Dpi {
    /// Its word in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Passing => "passing",
            Self::Offloading => "offloaded",
        }
    }
}

/// Behind `[node]`.
pub fn config(dpi: Dpi) -> String {
    let mut config = "[[interface]]\nname = \"up0\"\nrole = \"uplink\"\n\
         [[interface]]\nname = \"down0\"\nrole = \"endpoint\"\n"
        .to_owned();
    let depth = match dpi {
        Dpi::Off => return config + "[dpi]\nmode = \"off\"\n",
        Dpi::Passing => "1GiB",
        Dpi::Offloading => "64KiB",
    };
    config += &format!(
        "[dpi]\nmode = \"protect\"\ncores = [{CONSUMER}]\ninspect = \"all\"\nstream_depth = \"{depth}\"\n"
    );
    config
}
