//! A packet socket on one device: every frame that arrives there, and frames to be sent from it.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `ETH_P_ALL` (`linux/if_ether.h`).
const EVERY_PROTOCOL: u16 = 3;
/// Room for what arrives while the thread is away, bytes.
const RECEIVE_BUFFER: libc::c_int = 32 << 20;
/// `TP_STATUS_VLAN_VALID`, `TP_STATUS_VLAN_TPID_VALID` (`linux/if_packet.h`).
const VLAN_VALID: u32 = 1 << 4;
const TPID_VALID: u32 = 1 << 6;

/// `struct tpacket_auxdata` (`linux/if_packet.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Aux {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// A packet socket.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// On a device of this thread's network namespace.
    pub fn open(device: &str) -> io::Result<PacketSocket> {
        let index = match ifindex(device) {
            0 => return Err(io::Error::new(io::ErrorKind::NotFound, "no such device")),
            index => index,
        };
        // SAFETY: takes numbers only; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made and that nobody else has.
        let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        // Frames for others than the device itself too.
        // SAFETY: all zeroes is a value of this struct of numbers.
        let mut request: libc::packet_mreq = unsafe { zeroed() };
        request.mr_ifindex = index;
        request.mr_type = libc::PACKET_MR_PROMISC as u16;
        socket.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, request)?;
        // SAFETY: all zeroes is a value of this struct of numbers.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EVERY_PROTOCOL.to_be();
        address.sll_ifindex = index;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: pointer and length describe `address`.
        match unsafe { libc::bind(fd, (&raw const address).cast(), length) } {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: T) -> io::Result<()> {
        let (fd, length) = (self.0.as_raw_fd(), size_of::<T>() as libc::socklen_t);
        // SAFETY: pointer and length describe `value`.
        match unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for a frame, for so long at most.
    pub fn wait(&self, limit: Duration) {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(limit.subsec_nanos() as i32),
        };
        // A signal or an error only shortens the wait.
        // SAFETY: points to one pollfd and one timespec, which outlive the call.
        unsafe { libc::ppoll(&raw mut poll, 1, &raw const limit, std::ptr::null()) };
    }

    /// The next frame that has arrived, if there is one; its tag is back where it was on the wire.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        let mut control = [0_u64; 8];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all zeroes is a value of this struct of numbers and pointers.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message describes `buffer` and `control`, which outlive the call.
        let length =
            unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                // The device went down for a moment.
                _ if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
                _ => Err(error),
            };
        };
        let mut frame = buffer.get(..length).unwrap_or_default().to_vec();
        // SAFETY: `recvmsg` has filled the header in.
        if let Some(tag) = unsafe { tag_of(&message) }
            && frame.len() >= 12
        {
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }

    /// Sends a frame; what the device does not take is lost, as on any wire.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length describe `frame`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match sent {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Frames that found no room in the receive buffer since this was asked last.
    pub fn overruns(&self) -> u64 {
        // SAFETY: all zeroes is a value of this struct of numbers.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: pointer and length describe `stats`.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            u64::from(stats.tp_drops)
        } else {
            0
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The VLAN tag that the kernel has taken out of a frame, as bytes of the frame.
///
/// # Safety
/// `message` was filled in by `recvmsg`, and its control buffer still exists.
unsafe fn tag_of(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: as this function's.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !next.is_null() {
        // SAFETY: points into the control buffer.
        let header = unsafe { &*next };
        if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: this type of message holds one `tpacket_auxdata`.
            let aux: Aux = unsafe { libc::CMSG_DATA(next).cast::<Aux>().read_unaligned() };
            if aux.status & VLAN_VALID == 0 {
                return None;
            }
            let tpid = if aux.status & TPID_VALID == 0 {
                0x8100
            } else {
                aux.vlan_tpid
            };
            let ([a, b], [c, d]) = (tpid.to_be_bytes(), aux.vlan_tci.to_be_bytes());
            return Some([a, b, c, d]);
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
    None
}

/// Index of a device in this thread's namespace; 0 where there is none.
fn ifindex(device: &str) -> libc::c_int {
    let Ok(name) = std::ffi::CString::new(device) else {
        return 0;
    };
    // SAFETY: a string that ends with zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    libc::c_int::try_from(index).unwrap_or(0)
}

/// MAC address of a device in this thread's namespace.
pub fn mac_of(device: &str) -> io::Result<[u8; 6]> {
    // SAFETY: all zeroes is a value of this struct.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: this request reads and writes one `ifreq`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in the address.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(bytes) {
        *to = from as u8;
    }
    Ok(mac)
}
