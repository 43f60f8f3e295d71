//! `check`: validates a configuration and says what it would do here.

use serde::Serialize;
use serde_json::json;

use super::out::{Out, table};
use super::{Failure, Global, pins};
use crate::config::{Config, Role, XdpMode};

/// An interface that would get programs.
#[derive(Debug, Serialize)]
struct Attachment {
    name: String,
    role: Role,
    xdp: XdpMode,
    tc: bool,
    /// Whether it is there now; else it gets its programs when it appears.
    present: bool,
}

pub fn run(global: &Global) -> Result<(), Failure> {
    let config = global.config()?;
    crate::control::eve::check(&config)?;
    let attachments = attachments(&config);
    let pending = config.not_built_yet();
    let summary = json!({
        "ok": true, "file": config.file(), "config_hash": config.hash(), "node": config.node.name,
        "interfaces": attachments, "nat": config.all_nat().len(), "acl": config.acl_count(),
        "max_flows": config.conntrack.max_flows, "not_built_yet": pending,
    });
    Ok(Out::new(global.output).one(&summary, || text(&config, &attachments, &pending))?)
}

/// Each interface of this namespace that an entry takes, then the entries that none is there for.
fn attachments(config: &Config) -> Vec<Attachment> {
    let names: Vec<String> = pins::interfaces().into_values().collect();
    let mut all = Vec::new();
    for name in &names {
        if let Some(entry) = config.interface_for(name) {
            let name = name.clone();
            all.push(Attachment {
                name,
                role: entry.role,
                xdp: entry.xdp,
                tc: true,
                present: true,
            });
        }
    }
    for entry in &config.interfaces {
        let takes = |name: &String| config.interface_for(name) == Some(entry);
        if !names.iter().any(takes) {
            let name = entry.name.to_string();
            all.push(Attachment {
                name,
                role: entry.role,
                xdp: entry.xdp,
                tc: true,
                present: false,
            });
        }
    }
    all
}

fn text(config: &Config, attachments: &[Attachment], pending: &[String]) -> String {
    let rows = attachments.iter().map(|at| {
        let present = if at.present { "now" } else { "when it appears" };
        vec![
            at.name.clone(),
            at.role.to_string(),
            at.xdp.to_string(),
            "yes".into(),
            present.into(),
        ]
    });
    let mut text = format!(
        "{}: ok, hash {}\n\n",
        config.file().display(),
        config.hash()
    );
    text += &table(
        &["INTERFACE", "ROLE", "XDP", "TC", "ATTACHED"],
        rows.collect(),
    );
    text += &format!(
        "\n\n{} NAT entries, {} ACL rules, room for {} flows",
        config.all_nat().len(),
        config.acl_count(),
        config.conntrack.max_flows,
    );
    for line in pending {
        text += &format!("\n{line}");
    }
    text
}
