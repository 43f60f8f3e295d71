//! A small transparent gateway for tests: `lab proxy`. It accepts what was steered to it, finds
//! out where that was going, writes one JSON line, and passes bytes both ways.
//!
//! It stands in for a service mesh's gateway where HAProxy cannot: IPv6, and UDP.

pub mod original_dst;
mod tcp;
mod udp;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::error::{Result, socket};

/// Where UDP datagrams from a peer were going: `(listener, peer, protocol number)`.
pub type Origin = Arc<dyn Fn(SocketAddr, SocketAddr, u8) -> io::Result<SocketAddr> + Send + Sync>;

/// A listener: `name=tcp:address:port` or `name=udp:address:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// What log lines call it.
    pub name: String,
    /// TCP, or else UDP.
    pub is_tcp: bool,
    /// Where to listen.
    pub addr: SocketAddr,
}

impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Listener, String> {
        let wrong = || format!("{text:?}: expected NAME=tcp:ADDR:PORT or NAME=udp:ADDR:PORT");
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (proto, addr) = rest.split_once(':').ok_or_else(wrong)?;
        let is_tcp = match proto {
            "tcp" => true,
            "udp" => false,
            _ => return Err(wrong()),
        };
        let addr = addr.parse().map_err(|_| wrong())?;
        Ok(Listener {
            name: name.to_owned(),
            is_tcp,
            addr,
        })
    }
}

/// One connection as the gateway saw it; HAProxy logs the same in the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// The listener's name.
    pub listener: String,
    /// Who connected.
    pub client: SocketAddr,
    /// To which of our own addresses; HAProxy does not say.
    #[serde(default)]
    pub local: Option<SocketAddr>,
    /// Where it was going.
    #[serde(default)]
    pub original: Option<SocketAddr>,
    /// Why it was not passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where log lines go; shared by all connections.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Box<dyn Write + Send>>>);

impl Log {
    fn write(&self, seen: &Seen) {
        let Ok(mut line) = serde_json::to_vec(seen) else {
            return;
        };
        line.push(b'\n');
        // A log that cannot be written must not stop traffic; nobody else could be told.
        let mut out = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

/// Runs all listeners until one of them fails.
pub async fn run(
    listeners: Vec<Listener>,
    log: Box<dyn Write + Send>,
    origin: Origin,
) -> Result<()> {
    let log = Log(Arc::new(Mutex::new(log)));
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let what = format!("{} listener {}", listener.name, listener.addr);
        let (log, origin) = (log.clone(), Arc::clone(&origin));
        tasks.spawn(async move {
            let result = if listener.is_tcp {
                tcp::serve(listener, log).await
            } else {
                udp::serve(listener, log, origin).await
            };
            result.map_err(socket(what))
        });
    }
    match tasks.join_next().await {
        Some(ended) => ended.unwrap_or_else(|p| Err(socket("listener")(io::Error::other(p)))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read() {
        let listener: Listener = "inbound=tcp:[fd22::22]:15003".parse().unwrap();
        assert_eq!(listener.addr.port(), 15003);
        assert!(listener.is_tcp && listener.addr.is_ipv6());
        for bad in ["inbound", "x=sctp:1.2.3.4:5", "x=tcp:1.2.3.4"] {
            assert!(bad.parse::<Listener>().is_err(), "{bad}");
        }
    }
}
