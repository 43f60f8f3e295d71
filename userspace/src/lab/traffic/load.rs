//! Many HTTP connections at once, in groups that share one source port and differ only in their
//! destination: what a gateway sees of two of them is the same 4-tuple unless somebody keeps them
//! apart. Every answer says which server gave it, so a crossed connection shows.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lab::checks::Who;

/// Limit of one connection's whole life.
const LIMIT: Duration = Duration::from_secs(20);

/// What became of the connections.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct LoadReport {
    /// Connections tried.
    pub tried: usize,
    /// Connections that were answered, twice, by the server that they asked.
    pub ok: usize,
    /// Connections that had another server's answer.
    pub crossed: usize,
    /// What the others died of, each text once.
    pub errors: Vec<String>,
}

/// Opens `groups` × `to.len()` connections from ports `first_port..`, one port a group; asks each
/// for `/who`, waits until all are open, and asks again.
pub async fn run(to: Vec<SocketAddr>, groups: u16, first_port: u16) -> LoadReport {
    let total = to.len() * usize::from(groups);
    let all_open = std::sync::Arc::new(tokio::sync::Barrier::new(total));
    let mut tasks = JoinSet::new();
    for port in (0..groups).map(|group| first_port.saturating_add(group)) {
        for server in to.iter().copied() {
            let all_open = all_open.clone();
            tasks.spawn(async move {
                let first = timeout(LIMIT, open(port, server)).await;
                // Also those that failed go through: the others wait for everyone.
                let _ = timeout(LIMIT, all_open.wait()).await;
                let (connection, first) = first.map_err(|_| "timeout".to_owned())??;
                let second = timeout(LIMIT, ask(connection, "close"))
                    .await
                    .map_err(|_| "timeout of the second request".to_owned())??;
                Ok::<bool, String>(first && second.1.is(server))
            });
        }
    }
    let mut report = LoadReport {
        tried: total,
        ..LoadReport::default()
    };
    while let Some(ended) = tasks.join_next().await {
        match ended.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(true) => report.ok += 1,
            Ok(false) => report.crossed += 1,
            Err(error) if report.errors.contains(&error) => {}
            Err(error) => report.errors.push(error),
        }
    }
    report
}

/// Connects from a given port and asks once; says whether the right server answered.
async fn open(port: u16, server: SocketAddr) -> Result<(TcpStream, bool), String> {
    let why = |step: &'static str| move |error: std::io::Error| format!("{step}: {error}");
    let (socket, any): (_, SocketAddr) = if server.is_ipv4() {
        (TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, port).into())
    } else {
        (TcpSocket::new_v6(), (Ipv6Addr::UNSPECIFIED, port).into())
    };
    let socket = socket.map_err(why("socket"))?;
    // Lets several sockets have one port, as long as their destinations differ.
    socket.set_reuseaddr(true).map_err(why("reuseaddr"))?;
    socket.bind(any).map_err(why("bind"))?;
    let connection = socket.connect(server).await.map_err(why("connect"))?;
    let (connection, who) = ask(connection, "keep-alive").await?;
    Ok((connection, who.is(server)))
}

async fn ask(mut connection: TcpStream, then: &str) -> Result<(TcpStream, Who), String> {
    let request = format!("GET /who HTTP/1.1\r\nHost: lab\r\nConnection: {then}\r\n\r\n");
    connection
        .write_all(request.as_bytes())
        .await
        .map_err(|e| format!("send: {e}"))?;
    let mut answer = Vec::new();
    loop {
        if let Some(body) = complete_body(&answer) {
            let who = serde_json::from_slice(body).map_err(|e| format!("answer: {e}"))?;
            return Ok((connection, who));
        }
        let read = connection
            .read_buf(&mut answer)
            .await
            .map_err(|e| format!("receive: {e}"))?;
        if read == 0 {
            return Err("closed before the answer was complete".to_owned());
        }
    }
}

/// The body of an HTTP answer, once all of it is there.
fn complete_body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let (head, body) = answer.split_at_checked(end)?;
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    body.get(..length.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_complete_or_it_is_not() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(complete_body(answer), Some(&b"body"[..]));
        assert_eq!(complete_body(&answer[..answer.len() - 1]), None);
        assert_eq!(complete_body(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
