//! TCP side of the test gateway.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::{Listener, Log, Seen, original_dst};

/// Pause after a failed accept, so that a lasting failure does not take a whole core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Accepts for ever; each connection is a task.
pub(super) async fn serve(listener: Listener, log: Log) -> io::Result<()> {
    let socket = TcpListener::bind(listener.addr).await?;
    loop {
        let (connection, client) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The client went away between SYN and accept, or files ran out for a moment.
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (name, log) = (listener.name.clone(), log.clone());
        tokio::spawn(async move {
            let mut seen = Seen {
                listener: name,
                client,
                local: None,
                original: None,
                error: None,
            };
            let upstream = connect(&connection, &mut seen).await;
            seen.error = upstream.as_ref().err().map(ToString::to_string);
            log.write(&seen);
            if let Ok(upstream) = upstream {
                splice(connection, upstream).await;
            }
        });
    }
}

/// Connects to where the connection was going, and notes what it learns on the way.
async fn connect(connection: &TcpStream, seen: &mut Seen) -> io::Result<TcpStream> {
    let local = connection.local_addr()?;
    seen.local = Some(local);
    let original = original_dst::of_tcp(connection, local)?;
    seen.original = Some(original);
    refuse_self(original, local)?;
    TcpStream::connect(original).await
}

/// A connection that nobody steered has ourselves as its destination: passing it on would loop.
pub(super) fn refuse_self(original: SocketAddr, local: SocketAddr) -> io::Result<()> {
    if original == local {
        return Err(io::Error::other(
            "not steered: the original destination is this listener",
        ));
    }
    Ok(())
}

/// Passes bytes both ways; each side's end of data is passed on by itself (half-close).
async fn splice(mut client: TcpStream, mut upstream: TcpStream) {
    // Small answers must not wait for more; where it cannot be set, they merely do.
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);
    // Either side may break the connection at any time; the other one sees it closed.
    let _ = copy_bidirectional(&mut client, &mut upstream).await;
}
