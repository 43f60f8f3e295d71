//! Probes of NAT endpoints (`[[nat]] health`): a task each, which says when an endpoint goes down or comes up.
//!
//! Probes come from this host itself, and what the host sends is never steered.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    time::Duration,
};

use fsm_common::nat::NatKey;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::{Config, Health, HealthKind},
    model::nat_key,
};

/// An endpoint of an entry.
pub type Endpoint = (NatKey, SocketAddr);

/// An endpoint has changed.
#[derive(Debug)]
pub struct Report {
    /// Which.
    pub endpoint: Endpoint,
    /// Whether it takes new flows from now on.
    pub is_up: bool,
    /// What the last probe has seen.
    pub seen: String,
}

/// The probes that run.
pub struct Checks {
    tasks: HashMap<(Endpoint, Health), Task>,
    reports: mpsc::Sender<Report>,
}

/// Ends with its handle.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checks {
    /// Without probes; what they find goes to `reports`.
    pub fn new(reports: mpsc::Sender<Report>) -> Self {
        Self {
            tasks: HashMap::new(),
            reports,
        }
    }

    /// Probes what a configuration says; what is probed alike already goes on. `down` are the endpoints known to be
    /// down.
    pub fn sync(&mut self, config: &Config, down: &HashSet<Endpoint>) {
        let mut wanted = HashSet::new();
        for entry in &config.nat {
            let Some(health) = &entry.health else {
                continue;
            };
            let (key, _) = nat_key(entry);
            wanted.extend(
                entry
                    .endpoints
                    .iter()
                    .map(|endpoint| ((key, endpoint.addr), health.clone())),
            );
        }
        let known: HashSet<Endpoint> = self.tasks.keys().map(|(endpoint, _)| *endpoint).collect();
        self.tasks.retain(|probe, _| wanted.contains(probe));
        for probe in wanted {
            if self.tasks.contains_key(&probe) {
                continue;
            }
            let (endpoint, health) = probe.clone();
            let is_known = known.contains(&endpoint) || down.contains(&endpoint);
            let tracker = Tracker::new(!down.contains(&endpoint), is_known);
            let task = watch(endpoint, health, tracker, self.reports.clone());
            let handle = tokio::spawn(task).abort_handle();
            self.tasks.insert(probe, Task(handle));
        }
    }
}

async fn watch(
    endpoint: Endpoint,
    health: Health,
    mut tracker: Tracker,
    reports: mpsc::Sender<Report>,
) {
    let mut next = Instant::now();
    loop {
        let result = probe(endpoint.1, &health).await;
        if let Some(is_up) = tracker.note(result.is_ok(), &health) {
            let seen = match result {
                Ok(seen) => seen,
                Err(error) => error.to_string(),
            };
            let report = Report {
                endpoint,
                is_up,
                seen,
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
        next = (next + Duration::from_secs(health.interval_s.into())).max(Instant::now());
        sleep_until(next).await;
    }
}

/// What the probes so far mean.
#[derive(Debug)]
struct Tracker {
    is_up: bool,
    /// Nothing is known yet: the first probe decides alone.
    is_new: bool,
    /// Probes in a row that say otherwise.
    against: u32,
}

impl Tracker {
    const fn new(is_up: bool, is_known: bool) -> Self {
        Self {
            is_up,
            is_new: !is_known,
            against: 0,
        }
    }

    /// Takes a probe's result; the new state where it has changed.
    fn note(&mut self, is_good: bool, health: &Health) -> Option<bool> {
        let is_new = std::mem::take(&mut self.is_new);
        if is_good == self.is_up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.is_up { health.fall } else { health.rise };
        if !is_new && self.against < needed {
            return None;
        }
        (self.is_up, self.against) = (is_good, 0);
        Some(is_good)
    }
}

async fn probe(endpoint: SocketAddr, health: &Health) -> io::Result<String> {
    let mut to = endpoint;
    to.set_port(health.port.unwrap_or(endpoint.port()));
    let patience = Duration::from_secs(health.timeout_s.into());
    match timeout(patience, ask(to, health)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::other(format!(
            "no answer in {} s",
            health.timeout_s
        ))),
    }
}

async fn ask(to: SocketAddr, health: &Health) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    if health.kind == HealthKind::Tcp {
        return Ok("connected".to_owned());
    }
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: fsm-fastpath\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        health.path
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < 256 {
        if stream.read_buf(&mut line).await? == 0 {
            break;
        }
    }
    match status(&line) {
        Some(status) if health.expect.contains(status) => Ok(format!("status {status}")),
        Some(status) => Err(io::Error::other(format!(
            "status {status}, not {}",
            health.expect
        ))),
        None => Err(io::Error::other("no HTTP")),
    }
}

/// The status of an HTTP/1 answer (RFC 9112 §4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\r' || *b == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words
        .next()
        .filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn it_takes_fall_failures_to_go_down_and_rise_successes_to_come_up() {
        let health = Health::new(HealthKind::Tcp);
        let mut tracker = Tracker::new(true, true);
        let results = [
            false, false, true, false, false, false, true, false, true, true, false,
        ];
        let changes: Vec<_> = results
            .iter()
            .map(|good| tracker.note(*good, &health))
            .collect();
        let mut expected = vec![None; results.len()];
        (expected[5], expected[9]) = (Some(false), Some(true));
        assert_eq!(changes, expected);
    }

    #[test]
    fn the_first_probe_of_an_unknown_endpoint_decides_alone() {
        let health = Health::new(HealthKind::Tcp);
        assert_eq!(Tracker::new(true, false).note(false, &health), Some(false));
        let mut good = Tracker::new(true, false);
        assert_eq!(good.note(true, &health), None);
        assert_eq!(good.note(false, &health), None, "known by now");
    }

    #[test]
    fn a_status_line_is_read_or_refused() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nX: y"), Some(204));
        assert_eq!(status(b"HTTP/1.0 200\r\n"), Some(200));
        for bad in [
            &b""[..],
            b"HTTP/2 200",
            b"200 OK",
            b"HTTP/1.1 20",
            b"SSH-2.0-x",
            b"\xff\xfe",
        ] {
            assert_eq!(status(bad), None);
        }
    }

    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn a_probe_says_what_it_has_seen() {
        let (good, bad) = (
            server(b"HTTP/1.1 200 OK\r\n\r\n").await,
            server(b"HTTP/1.1 503 Busy\r\n\r\n").await,
        );
        let (tcp, http) = (Health::new(HealthKind::Tcp), Health::new(HealthKind::Http));
        let said = async |to, health| probe(to, health).await.map_err(|e| e.to_string());
        assert_eq!(said(good, &http).await, Ok("status 200".into()));
        assert_eq!(
            said(bad, &http).await,
            Err("status 503, not 200-399".into())
        );
        assert_eq!(said(bad, &tcp).await, Ok("connected".into()));
        let other_port = Health {
            port: Some(good.port()),
            ..http.clone()
        };
        assert_eq!(said(bad, &other_port).await, Ok("status 200".into()));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = nobody.local_addr().unwrap();
        drop(nobody);
        assert!(said(addr, &tcp).await.is_err());
    }
}
