//! TCP connections of tests: from a chosen port, and requests over one that stays open.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::set_option;

/// Longest wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A C address and its length.
pub fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a value of this struct.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is large enough for each kind of address and aligned for all.
            let to = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as u16;
            to.sin_port = v4.port().to_be();
            to.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let to = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as u16;
            to.sin6_port = v6.port().to_be();
            to.sin6_addr.s6_addr = v6.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

/// A socket of this thread's namespace.
pub fn socket(family_of: SocketAddr, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let family = if family_of.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds a socket.
pub fn bind(socket: &impl AsRawFd, address: SocketAddr) -> Result<()> {
    let (raw, length) = raw_address(address);
    // SAFETY: pointer and length describe `raw`.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// A connection from `from` (port 0: any), also where a connection from that port is in TIME_WAIT.
pub fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = socket(to, libc::SOCK_STREAM, 0)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(&socket, from)?;
    let (raw, length) = raw_address(to);
    // Bounds connect as well.
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // SAFETY: pointer and length describe `raw`.
    match unsafe { libc::connect(stream.as_raw_fd(), (&raw const raw).cast(), length) } {
        0 => Ok(stream),
        _ => Err(Error::last_os_error()),
    }
}

/// A connection that gives up after [`PATIENCE`].
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks the lab's web server over a connection that stays open; gives the answer's body.
pub fn ask(stream: &mut TcpStream, path: &str) -> Result<Vec<u8>> {
    request(stream, path, "keep-alive")
}

/// The same, and the server closes.
pub fn ask_last(stream: &mut TcpStream, path: &str) -> Result<Vec<u8>> {
    let body = request(stream, path, "close")?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    match rest.is_empty() {
        true => Ok(body),
        false => Err(Error::other("bytes after the answer")),
    }
}

fn request(stream: &mut TcpStream, path: &str, then: &str) -> Result<Vec<u8>> {
    let text = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: {then}\r\n\r\n");
    stream.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 65_536];
    loop {
        if let Some((head, length)) = head(&answer) {
            while answer.len() < head + length {
                more(stream, &mut part, &mut answer)?;
            }
            return Ok(answer.split_off(head));
        }
        more(stream, &mut part, &mut answer)?;
    }
}

fn more(stream: &mut TcpStream, part: &mut [u8], answer: &mut Vec<u8>) -> Result<()> {
    match stream.read(part)? {
        0 => Err(Error::other("closed before the answer was complete")),
        length => {
            answer.extend(&part[..length]);
            Ok(())
        }
    }
}

/// Bytes of an answer's head, once it is whole, and of its body.
fn head(answer: &[u8]) -> Option<(usize, usize)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|l| l.strip_prefix("content-length:"))?;
    Some((end, length.trim().parse().ok()?))
}

/// A TCP server that gives each connection to `serve` on a thread of its own, until the process ends. Call
/// it inside the host's namespace.
pub fn serve(listen: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = TcpListener::bind(listen).unwrap_or_else(|e| panic!("{listen}: {e}"));
    serve_on(listener, serve);
}

/// The same over a socket that listens already.
pub fn serve_on(listener: TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    std::thread::spawn(move || {
        // Threads started here are in the same namespace as this one.
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
}
