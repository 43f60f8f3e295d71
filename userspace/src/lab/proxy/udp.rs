//! UDP side of the test gateway: a socket towards the original destination for each client.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::tcp::refuse_self;
use super::{Listener, Log, Origin, Seen};

/// A client that is silent both ways for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// Largest datagram that is passed on.
const DATAGRAM_BYTES: usize = 65_535;
/// Datagrams that may wait for a client's socket; more are lost, as on any path.
const QUEUE: usize = 256;
const UDP: u8 = 17;

/// Receives for ever; datagrams of a client go to the task that keeps its socket.
pub(super) async fn serve(listener: Listener, log: Log, origin: Origin) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(listener.addr).await?);
    let local = socket.local_addr()?;
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0_u8; DATAGRAM_BYTES];
    loop {
        // An ICMP error that belongs to an earlier answer shows here; it concerns no one else.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some(data) = buffer.get(..length) else {
            continue;
        };
        let known = clients.get(&client).is_some_and(|queue| !queue.is_closed());
        if !known {
            clients.retain(|_, queue| !queue.is_closed());
            let (sender, receiver) = mpsc::channel(QUEUE);
            let seen = Seen {
                listener: listener.name.clone(),
                client,
                local: Some(local),
                original: None,
                error: None,
            };
            let task = relay(
                Arc::clone(&socket),
                receiver,
                seen,
                log.clone(),
                origin.clone(),
            );
            tokio::spawn(task);
            clients.insert(client, sender);
        }
        if let Some(queue) = clients.get(&client) {
            let _ = queue.try_send(data.to_vec());
        }
    }
}

/// Looks up where one client's datagrams go, then passes them there and answers back.
async fn relay(
    listener: Arc<UdpSocket>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut seen: Seen,
    log: Log,
    origin: Origin,
) {
    let upstream = connect(&mut seen, origin).await;
    seen.error = upstream.as_ref().err().map(ToString::to_string);
    log.write(&seen);
    let Ok(upstream) = upstream else { return };
    let mut buffer = vec![0_u8; DATAGRAM_BYTES];
    loop {
        // Datagrams may be lost on either side like anywhere; senders repeat what matters.
        let step = async {
            tokio::select! {
                data = queue.recv() => match data {
                    Some(data) => { let _ = upstream.send(&data).await; true }
                    None => false,
                },
                answer = upstream.recv(&mut buffer) => {
                    if let Ok(length) = answer {
                        let data = buffer.get(..length).unwrap_or_default();
                        let _ = listener.send_to(data, seen.client).await;
                    }
                    true
                }
            }
        };
        if !timeout(IDLE, step).await.unwrap_or(false) {
            return;
        }
    }
}

async fn connect(seen: &mut Seen, origin: Origin) -> io::Result<UdpSocket> {
    let client = seen.client;
    let local = seen
        .local
        .ok_or_else(|| io::Error::other("listener without an address"))?;
    // The lookup may ask another program; other clients must not wait for it.
    let original = tokio::task::spawn_blocking(move || origin(local, client, UDP))
        .await
        .map_err(io::Error::other)??;
    seen.original = Some(original);
    refuse_self(original, local)?;
    let any: SocketAddr = if original.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let upstream = UdpSocket::bind(any).await?;
    upstream.connect(original).await?;
    Ok(upstream)
}
