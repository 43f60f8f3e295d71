//! One AF_XDP socket: on one queue of one device, with its four rings.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use super::{
    ring::{Consumer, Desc, Producer},
    umem::Umem,
};

/// How long a queue may stay occupied after its last socket was closed: the kernel lets go of it in the background.
const RETRIES: u32 = 200;
const RETRY: Duration = Duration::from_millis(10);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("AF_XDP on queue {queue} of device {ifindex}: {step}: {source}")]
pub struct XskError {
    /// Device.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
    /// What was being done.
    pub step: &'static str,
    /// Why it failed.
    pub source: io::Error,
}

/// Sizes of the rings, powers of two, and the way to bind.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Frames received and not looked at.
    pub rx: u32,
    /// Frames to be sent.
    pub tx: u32,
    /// Free frames that wait for packets.
    pub fill: u32,
    /// Frames sent and not taken back.
    pub completion: u32,
    /// Tries zero copy first, for a socket on a network card's queue.
    pub zero_copy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rx: 2048,
            tx: 2048,
            fill: 2048,
            completion: 2048,
            zero_copy: false,
        }
    }
}

/// `struct xdp_statistics` (`linux/if_xdp.h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XskStats {
    /// Dropped for other reasons: too long for a frame.
    pub rx_dropped: u64,
    /// Fill descriptors that the kernel refused.
    pub rx_invalid: u64,
    /// TX descriptors that the kernel refused.
    pub tx_invalid: u64,
    /// Dropped, the RX ring being full.
    pub rx_ring_full: u64,
    /// Times that no free frame was there.
    pub fill_empty: u64,
    /// Times that there was nothing to send.
    pub tx_empty: u64,
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain call; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this process may have such sockets on this kernel.
///
/// # Errors
/// What the kernel says.
pub fn is_there() -> io::Result<()> {
    open().map(drop)
}

/// A bound socket. The rings are the kernel's own terms: addresses from the beginning of the [`Umem`].
#[derive(Debug)]
pub struct Socket {
    /// Free frames for the kernel.
    pub fill: Producer<u64>,
    /// Frames that were sent.
    pub completion: Consumer<u64>,
    /// Frames that arrived.
    pub rx: Consumer<Desc>,
    /// Frames to be sent.
    pub tx: Producer<Desc>,
    fd: OwnedFd,
    /// Registered with the kernel for as long as the socket lives.
    umem: Arc<Umem>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Socket {
    /// A socket on a queue. The first one registers the memory; `shares` names it to those that come after, on
    /// other queues of the same device (Linux 5.10).
    ///
    /// # Errors
    /// See [`XskError`].
    pub fn bind(
        umem: &Arc<Umem>,
        shares: Option<&Socket>,
        ifindex: u32,
        queue: u32,
        options: &Options,
    ) -> Result<Self, XskError> {
        let fail = |step| {
            move |source| XskError {
                ifindex,
                queue,
                step,
                source,
            }
        };
        let fd = open().map_err(fail("socket"))?;
        // Sending allocates kernel memory until the packet is gone: as much as a TX ring of frames may take.
        let buffer = (options.tx * umem.chunk() * 2) as libc::c_int;
        set(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &buffer).map_err(fail("send buffer"))?;
        if shares.is_none() {
            let (addr, len) = umem.area();
            let area = libc::xdp_umem_reg {
                addr,
                len,
                chunk_size: umem.chunk(),
                headroom: 0,
                flags: 0,
                tx_metadata_len: 0,
            };
            set(&fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &area).map_err(fail("register memory"))?;
        }
        for (option, size) in [
            (libc::XDP_UMEM_FILL_RING, options.fill),
            (libc::XDP_UMEM_COMPLETION_RING, options.completion),
            (libc::XDP_RX_RING, options.rx),
            (libc::XDP_TX_RING, options.tx),
        ] {
            set(&fd, libc::SOL_XDP, option, &size).map_err(fail("make a ring"))?;
        }
        let offsets: libc::xdp_mmap_offsets =
            get(&fd, libc::XDP_MMAP_OFFSETS).map_err(fail("read the rings' layout"))?;
        let map = fail("map a ring");
        let at = fd.as_fd();
        let fill = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let completion = libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t;
        let socket = Self {
            fill: Producer::map(at, options.fill, &offsets.fr, fill).map_err(map)?,
            completion: Consumer::map(at, options.completion, &offsets.cr, completion)
                .map_err(map)?,
            rx: Consumer::map(at, options.rx, &offsets.rx, libc::XDP_PGOFF_RX_RING).map_err(map)?,
            tx: Producer::map(at, options.tx, &offsets.tx, libc::XDP_PGOFF_TX_RING).map_err(map)?,
            umem: umem.clone(),
            fd,
        };
        let copy = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP;
        let zero_copy = libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP;
        let ways: &[u16] = match shares {
            // The others follow the first in everything else.
            Some(_) => &[libc::XDP_SHARED_UMEM],
            None if options.zero_copy => &[zero_copy, copy],
            None => &[copy],
        };
        let mut result = Ok(());
        for &flags in ways {
            result = socket.try_bind(shares, ifindex, queue, flags);
            if result.is_ok() {
                break;
            }
        }
        result.map_err(fail("bind"))?;
        Ok(socket)
    }

    fn try_bind(
        &self,
        shares: Option<&Socket>,
        ifindex: u32,
        queue: u32,
        flags: u16,
    ) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shares.map_or(0, |first| first.as_raw_fd() as u32),
        };
        let len = size_of_val(&address) as libc::socklen_t;
        let mut tries = RETRIES;
        loop {
            // SAFETY: pointer and length describe `address`.
            let result = unsafe { libc::bind(self.as_raw_fd(), (&raw const address).cast(), len) };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) || tries == 0 {
                return Err(error);
            }
            tries -= 1;
            std::thread::sleep(RETRY);
        }
    }

    /// The memory.
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// Whether the device writes into the memory itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let options: libc::xdp_options = get(&self.fd, libc::XDP_OPTIONS)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stats(&self) -> io::Result<XskStats> {
        let stats: libc::xdp_statistics = get(&self.fd, libc::XDP_STATISTICS)?;
        Ok(XskStats {
            rx_dropped: stats.rx_dropped,
            rx_invalid: stats.rx_invalid_descs,
            tx_invalid: stats.tx_invalid_descs,
            rx_ring_full: stats.rx_ring_full,
            fill_empty: stats.rx_fill_ring_empty_descs,
            tx_empty: stats.tx_ring_empty_descs,
        })
    }

    /// Whether the device is up.
    ///
    /// # Errors
    /// What the kernel says where it is gone.
    pub fn is_up(&self) -> io::Result<bool> {
        match self.kick() {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the kernel to send; fine too where it takes no more for now.
    fn kick(&self) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT;
        let (fd, none) = (self.as_raw_fd(), std::ptr::null());
        // SAFETY: nothing is read, and no address is given.
        if unsafe { libc::sendto(fd, none, 0, flags, none.cast(), 0) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(()),
            _ => Err(error),
        }
    }

    /// Makes the kernel send what is on the TX ring; what is left when it takes no more for now. A call sends 32
    /// frames at most (`TX_BATCH_SIZE`, net/xdp/xsk.c).
    ///
    /// # Errors
    /// What the kernel says, where it will not do better later.
    pub fn send(&mut self) -> io::Result<u32> {
        loop {
            let before = self.tx.pending();
            if before == 0 || !self.tx.needs_wakeup() {
                return Ok(before);
            }
            match self.kick() {
                Ok(()) => {}
                // Nothing is sent while the device is down.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => return Ok(before),
                Err(error) => return Err(error),
            }
            let after = self.tx.pending();
            if after >= before {
                return Ok(after);
            }
        }
    }
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = (&raw const *value).cast();
    // SAFETY: pointer and length describe a value that lives through the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `T` is one of the kernel's structs of integers, for which zero is a value.
fn get<T: Copy>(fd: &OwnedFd, option: libc::c_int) -> io::Result<T> {
    // SAFETY: see above; private to this file, and called with such structs only.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    let to = (&raw mut value).cast();
    // SAFETY: pointer and length describe `value`.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, to, &mut len) };
    match result {
        0 if len as usize == size_of::<T>() => Ok(value),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
