//! The app's end of a veth. Frames that XDP redirects into the host's end arrive only if the other end has
//! NAPI running, which GRO switches on (`veth_napi_enable`, drivers/net/veth.c); else the kernel drops them
//! without a word. So GRO is switched on there, and switched off again when the device is let go.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rtnetlink::Handle;

use super::{
    devices::{Device, namespace_id},
    ethtool::Ethtool,
};

/// What was found at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gro {
    /// It was on already.
    Was,
    /// It is on now.
    Set,
}

/// Namespaces that something on this host holds open: by name, or by a process.
fn candidates() -> Vec<PathBuf> {
    let list = |folder: &str| -> Vec<PathBuf> {
        std::fs::read_dir(folder).map_or_else(
            |_| Vec::new(),
            |entries| {
                entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .collect()
            },
        )
    };
    let mut paths: Vec<_> = ["/run/netns", "/run/docker/netns"]
        .into_iter()
        .flat_map(list)
        .collect();
    let is_pid = |path: &PathBuf| {
        path.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
    };
    paths.extend(
        list("/proc")
            .into_iter()
            .filter(is_pid)
            .map(|path| path.join("ns/net")),
    );
    paths
}

/// The namespace of the device's other end.
///
/// # Errors
/// Not found where nothing on this host shows it, else what the kernel says.
pub async fn namespace(handle: &mut Handle, device: &Device) -> io::Result<OwnedFd> {
    let wanted = device.peer_nsid.ok_or(io::ErrorKind::NotFound)?;
    for path in candidates() {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let file = OwnedFd::from(file);
        if matches!(namespace_id(handle, &file).await, Ok(Some(id)) if id == wanted) {
            return Ok(file);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether a device in `namespace`, or in this one, leaves checksums to a card: what it sends by a veth then arrives
/// unfinished.
///
/// # Errors
/// What the kernel says.
pub fn leaves_checksums(namespace: Option<OwnedFd>, ifindex: u32) -> io::Result<bool> {
    let asked = move || Ethtool::open(ifindex)?.is_on(|name| name.starts_with("tx-checksum"));
    match namespace {
        Some(namespace) => inside(namespace, asked),
        None => asked(),
    }
}

/// Switches GRO of device `ifindex` in `namespace`.
///
/// # Errors
/// What the kernel says.
pub fn set_gro(namespace: OwnedFd, ifindex: u32, on: bool) -> io::Result<Gro> {
    inside(namespace, move || switch_gro(ifindex, on))
}

/// On a thread of its own, whose namespace dies with it.
fn inside<T: Send + 'static>(
    namespace: OwnedFd,
    task: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::spawn(move || {
        // SAFETY: changes this thread only.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        task()
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread has died")))
}

fn switch_gro(ifindex: u32, on: bool) -> io::Result<Gro> {
    let ethtool = Ethtool::open(ifindex)?;
    if ethtool.gro()? == on {
        return Ok(Gro::Was);
    }
    ethtool.set_gro(on)?;
    Ok(Gro::Set)
}
