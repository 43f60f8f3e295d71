//! Keys that are understood and checked, but whose code comes later. A feature
//! leaves this list with the change that builds it.

use super::{Attach, Config, DpiMode, Meter, Peer};

/// `FILE:LINE:COL: key.path: not built yet: …`, in the order of the file.
pub(super) fn not_built_yet(config: &Config) -> Vec<String> {
    let mut pending: Vec<(String, String)> = Vec::new();
    let mut add = |path: &str, what: &str| pending.push((path.to_owned(), what.to_owned()));
    for (i, interface) in config.interfaces.iter().enumerate() {
        if interface.attach == Attach::Inside {
            add(
                &format!("interface[{i}].attach"),
                "programs inside an app's namespace",
            );
        }
    }
    if config.forward.sockmap {
        add("forward.sockmap", "splicing sockets");
    }
    if config.dpi.mode != DpiMode::Off {
        for (i, policy) in config.dpi.policy.iter().enumerate() {
            for (side, peer) in [("from", &policy.from), ("to", &policy.to)] {
                if matches!(peer, Peer::Fqdn(_)) {
                    add(&format!("dpi.policy[{i}].{side}"), "domain names as peers");
                }
            }
        }
        if !config.dpi.signature.is_empty() {
            add("dpi.signature", "signatures");
        }
    }
    if config.dpi.mode != DpiMode::Off && config.dpi.meter != Meter::default() {
        add("dpi.meter", "meters");
    }
    let mut lines: Vec<_> = pending
        .into_iter()
        .map(|(path, what)| (config.place(&path), path, what))
        .collect();
    lines.sort();
    lines
        .into_iter()
        .map(|(_, path, what)| format!("{}: {path}: not built yet: {what}", config.at(&path)))
        .collect()
}
