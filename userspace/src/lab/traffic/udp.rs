//! UDP echo server, and a client that sends numbered datagrams at a steady pace and says which
//! of them came back.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::lab::error::{Result, socket};

/// How long answers to the last datagrams are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What became of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StreamReport {
    /// The client's own address and port.
    pub local: SocketAddr,
    /// Datagrams sent.
    pub sent: u64,
    /// Different datagrams that came back.
    pub received: u64,
    /// Numbers of the first ones that did not; times the pace, that is when.
    pub lost: Vec<u64>,
    /// Longest time without an answer.
    pub longest_gap_ms: u64,
}

/// Answers every datagram with itself, until a listener fails.
pub async fn echo(listen: Vec<SocketAddr>) -> Result<()> {
    let mut listeners = JoinSet::new();
    for address in listen {
        listeners.spawn(async move { echo_at(address).await.map_err(socket(address)) });
    }
    match listeners.join_next().await {
        Some(ended) => ended.unwrap_or_else(|panic| Err(socket("echo")(io::Error::other(panic)))),
        None => Ok(()),
    }
}

async fn echo_at(address: SocketAddr) -> io::Result<()> {
    let server = UdpSocket::bind(address).await?;
    let mut buffer = vec![0_u8; 65_535];
    loop {
        // Errors belong to earlier answers (ICMP); the next datagram is a new matter.
        if let Ok((length, peer)) = server.recv_from(&mut buffer).await {
            let _ = server
                .send_to(buffer.get(..length).unwrap_or_default(), peer)
                .await;
        }
    }
}

/// Sends `count` datagrams, one each `pace`, and counts the different ones that come back from
/// the address they were sent to (the socket is connected: others are not received).
pub async fn stream(to: SocketAddr, count: u64, pace: Duration) -> Result<StreamReport> {
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let client = UdpSocket::bind(any).await.map_err(socket(any))?;
    client.connect(to).await.map_err(socket(to))?;
    let local = client.local_addr().map_err(socket(to))?;
    let mut back = Answers::new(count);
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut buffer = [0_u8; 64];
    let mut sent = 0;
    while sent < count {
        tokio::select! {
            _ = ticks.tick() => {
                // A refused datagram counts as lost: it is sent, but never answered.
                let _ = client.send(&sent.to_be_bytes()).await;
                sent += 1;
            }
            Ok(length) = client.recv(&mut buffer) => back.note(buffer.get(..length)),
        }
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while back.received < count {
        tokio::select! {
            () = sleep_until(deadline) => break,
            Ok(length) = client.recv(&mut buffer) => back.note(buffer.get(..length)),
        }
    }
    let longest_gap_ms = back.longest_gap.max(back.last.elapsed()).as_millis() as u64;
    Ok(StreamReport {
        local,
        sent,
        received: back.received,
        lost: back.lost(),
        longest_gap_ms,
    })
}

/// Which numbers have come back; a duplicate counts once.
struct Answers {
    seen: Vec<bool>,
    received: u64,
    last: Instant,
    longest_gap: Duration,
}

impl Answers {
    fn new(count: u64) -> Answers {
        Answers {
            seen: vec![false; count as usize],
            received: 0,
            last: Instant::now(),
            longest_gap: Duration::ZERO,
        }
    }

    fn lost(&self) -> Vec<u64> {
        const NAMED: usize = 20;
        let lost = self.seen.iter().zip(0..).filter(|(seen, _)| !**seen);
        lost.map(|(_, number)| number).take(NAMED).collect()
    }

    fn note(&mut self, datagram: Option<&[u8]>) {
        let number = datagram
            .and_then(|data| data.try_into().ok())
            .map(u64::from_be_bytes);
        let Some(slot) = number.and_then(|number| self.seen.get_mut(number as usize)) else {
            return;
        };
        if !std::mem::replace(slot, true) {
            self.received += 1;
            self.longest_gap = self.longest_gap.max(self.last.elapsed());
            self.last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_and_strangers_do_not_count() {
        let mut answers = Answers::new(2);
        for number in [0_u64, 0, 7, 1] {
            answers.note(Some(&number.to_be_bytes()));
        }
        answers.note(Some(b"short"));
        assert_eq!(answers.received, 2);
        assert!(answers.lost().is_empty());
        assert_eq!(Answers::new(2).lost(), [0, 1]);
    }
}
