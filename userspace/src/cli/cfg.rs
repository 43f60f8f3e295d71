//! `cfg`: the flags of `fsm_xcfg`.

use clap::Subcommand;
use serde_json::json;

use super::out::{Format, Out};
use super::words::{on_off, word};
use super::{Failure, Global};
use crate::api::Request;
use crate::config::{Family, FlagSet, Flags, ValueError, flags};
use crate::view::cfg;

/// Sub-verbs of `cfg`.
#[derive(Debug, Subcommand)]
pub enum Cfg {
    /// Show every flag
    List,
    /// Show one flag
    Get {
        /// ipv4 or ipv6
        #[arg(value_parser = word::<Family>)]
        family: String,
        /// The flag's name
        #[arg(value_parser = flag)]
        flag: String,
    },
    /// Set a flag
    Set {
        /// ipv4 or ipv6
        #[arg(value_parser = word::<Family>)]
        family: String,
        /// The flag's name
        #[arg(value_parser = flag)]
        flag: String,
        /// on or off
        #[arg(action = clap::ArgAction::Set, value_name = "on|off", value_parser = on_off)]
        value: bool,
        /// Write it to the configuration too; else it lasts until the next reload
        #[arg(long)]
        save: bool,
    },
}

fn flag(name: &str) -> Result<String, ValueError> {
    flags::bit(name).map(|_| name.to_owned())
}

pub fn run(global: &Global, verb: Cfg) -> Result<(), Failure> {
    match verb {
        Cfg::List => list(global),
        Cfg::Get { family, flag } => get(global, &family, &flag),
        Cfg::Set {
            family,
            flag,
            value: on,
            save,
        } => {
            let response = global.ask(&Request::CfgSet {
                family,
                flag,
                on,
                save,
            })?;
            Ok(Out::new(global.output).response(&response)?)
        }
    }
}

fn live(global: &Global) -> Result<Flags, Failure> {
    let settings = global.maps()?.settings()?;
    Ok(Flags {
        ipv4: FlagSet::from_bits(settings.ipv4),
        ipv6: FlagSet::from_bits(settings.ipv6),
    })
}

fn list(global: &Global) -> Result<(), Failure> {
    let flags = live(global)?;
    let out = Out::new(global.output);
    match global.output {
        Format::Table => Ok(out.rows(cfg::rows(flags.ipv4, flags.ipv6))?),
        // As `[flags]` is.
        Format::Json => Ok(out.one(&flags, String::new)?),
    }
}

fn get(global: &Global, family: &str, flag: &str) -> Result<(), Failure> {
    let flags = live(global)?;
    let usage = |error: ValueError| Failure::Usage(error.to_string());
    let on = flags
        .of(family.parse().map_err(usage)?)
        .get(flag)
        .map_err(usage)?;
    let answer = json!({"family": family, "flag": flag, "on": on});
    Ok(Out::new(global.output).one(&answer, || cfg::on_off(on).to_owned())?)
}
