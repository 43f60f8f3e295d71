//! An inline bridge by AF_PACKET: rings of TPACKET_V3 or V2 for what arrives, of V2 for what goes
//! (`Documentation/networking/packet_mmap.rst`); past the queueing discipline.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use super::see;
use crate::sys;

/// Bytes of a ring's block, and blocks: 16 MiB.
const BLOCK: usize = 1 << 16;
const BLOCKS: usize = 256;
/// Bytes of a frame where frames have a fixed place.
const FRAME: usize = 2048;
/// V3 gives a block that is not full to the reader after this; the least that can be said.
const RETIRE_MS: u32 = 1;
/// Frames between two calls that send.
const BATCH: u32 = 64;
/// ETH_P_ALL, in network order.
const ALL: u16 = 3u16.to_be();
/// Of a `tpacket2_hdr`, aligned: where a frame to send begins.
const TO_SEND: usize = 32;

/// Which kind of ring packets arrive in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Version {
    /// A status a frame.
    V2,
    /// A status a block, which packets fill one after the other.
    V3,
}

/// Frames go from each of two devices to the other.
pub fn bridge(version: Version, first: &str, second: &str) -> Result<()> {
    let open = |device: &str| Port::open(version, device).context(device.to_owned());
    let (mut a, mut b) = (open(first)?, open(second)?);
    loop {
        let moved = a.receiver.each(&mut b.sender)? + b.receiver.each(&mut a.sender)?;
        if moved == 0 {
            let mut fds = [&a.receiver.ring, &b.receiver.ring].map(|ring| libc::pollfd {
                fd: ring.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: an array of as many as said.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, 100) };
        }
    }
}

struct Port {
    receiver: Receiver,
    sender: Sender,
}

impl Port {
    fn open(version: Version, device: &str) -> Result<Self> {
        let ifindex = sys::ifindex(device)?;
        let receiver = Receiver {
            ring: Ring::new(version, libc::PACKET_RX_RING, ifindex, ALL)?,
            version,
        };
        let sender = Sender {
            ring: Ring::new(Version::V2, libc::PACKET_TX_RING, ifindex, 0)?,
            waiting: 0,
        };
        Ok(Self { receiver, sender })
    }
}

/// A socket with memory that it shares with the kernel, as long as the process lives.
struct Ring {
    socket: OwnedFd,
    memory: *mut u8,
    /// The next frame or block.
    at: usize,
    step: usize,
}

impl Ring {
    fn new(version: Version, kind: libc::c_int, ifindex: u32, proto: u16) -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is nobody else's.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let frames = (BLOCK / FRAME * BLOCKS) as u32;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: frames,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let number = match version {
            Version::V2 => 1,
            Version::V3 => 2,
        };
        set(&socket, libc::PACKET_VERSION, &(number as libc::c_int))?;
        if kind == libc::PACKET_TX_RING {
            set(&socket, libc::PACKET_QDISC_BYPASS, &(1 as libc::c_int))?;
        } else {
            set(&socket, libc::PACKET_IGNORE_OUTGOING, &(1 as libc::c_int))?;
        }
        match version {
            Version::V3 => set(&socket, kind, &request)?,
            Version::V2 => {
                let request = libc::tpacket_req {
                    tp_block_size: request.tp_block_size,
                    tp_block_nr: request.tp_block_nr,
                    tp_frame_size: request.tp_frame_size,
                    tp_frame_nr: request.tp_frame_nr,
                };
                set(&socket, kind, &request)?;
            }
        }
        // SAFETY: a mapping where the kernel likes it; it stays until the process ends.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BLOCK * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zero is a value of this struct of integers, which lives through the call.
        let bound = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = proto;
            address.sll_ifindex = ifindex as i32;
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            memory: memory.cast(),
            at: 0,
            step: match version {
                Version::V2 => FRAME,
                Version::V3 => BLOCK,
            },
        })
    }

    /// Where the next one begins, and its status, `offset` bytes behind that.
    fn current(&self, offset: usize) -> (*mut u8, &AtomicU32) {
        // SAFETY: `at` stays within the mapping, in steps that divide it; the word is aligned, and the kernel
        // writes it, too.
        unsafe {
            let start = self.memory.add(self.at);
            (start, AtomicU32::from_ptr(start.add(offset).cast()))
        }
    }

    fn forward(&mut self) {
        self.at = (self.at + self.step) % (BLOCK * BLOCKS);
    }
}

fn set<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value lives through the call, and has the size that is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            (&raw const *value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

struct Receiver {
    ring: Ring,
    version: Version,
}

impl Receiver {
    /// Gives a block's, or a batch's, frames to the sender; their number.
    fn each(&mut self, to: &mut Sender) -> io::Result<u32> {
        let count = match self.version {
            Version::V2 => self.frames(to)?,
            Version::V3 => self.block(to)?,
        };
        to.send()?;
        Ok(count)
    }

    fn frames(&mut self, to: &mut Sender) -> io::Result<u32> {
        for count in 0..BATCH {
            let (start, status) = self.ring.current(0);
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return Ok(count);
            }
            // SAFETY: the kernel has filled header and frame, and leaves them until the status is given back.
            unsafe {
                let header = &*start.cast::<libc::tpacket2_hdr>();
                let frame = start.add(usize::from(header.tp_mac));
                to.put(std::slice::from_raw_parts(
                    frame,
                    header.tp_snaplen as usize,
                ))?;
            }
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.ring.forward();
        }
        Ok(BATCH)
    }

    fn block(&mut self, to: &mut Sender) -> io::Result<u32> {
        // behind version and offset
        let (start, status) = self.ring.current(8);
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return Ok(0);
        }
        // SAFETY: the kernel has filled the block, and leaves it until the status is given back.
        let count = unsafe {
            let header = &(*start.cast::<libc::tpacket_block_desc>()).hdr.bh1;
            let mut at = start.add(header.offset_to_first_pkt as usize);
            for _ in 0..header.num_pkts {
                let packet = &*at.cast::<libc::tpacket3_hdr>();
                let frame = at.add(usize::from(packet.tp_mac));
                to.put(std::slice::from_raw_parts(
                    frame,
                    packet.tp_snaplen as usize,
                ))?;
                at = at.add(packet.tp_next_offset as usize);
            }
            header.num_pkts
        };
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.ring.forward();
        Ok(count.max(1))
    }
}

struct Sender {
    ring: Ring,
    waiting: u32,
}

impl Sender {
    /// Puts a frame into the ring; where there is no room after all, it is lost.
    fn put(&mut self, frame: &[u8]) -> io::Result<()> {
        see(frame, super::FRAME_PAYLOAD);
        if frame.len() > FRAME - TO_SEND {
            return Ok(());
        }
        if self.waiting >= BATCH {
            self.send()?;
        }
        let (start, status) = self.ring.current(0);
        if status.load(Ordering::Acquire) != libc::TP_STATUS_AVAILABLE {
            return Ok(());
        }
        // SAFETY: the kernel has given this place back, which is as long as a frame may be.
        unsafe {
            std::ptr::copy_nonoverlapping(frame.as_ptr(), start.add(TO_SEND), frame.len());
            (*start.cast::<libc::tpacket2_hdr>()).tp_len = frame.len() as u32;
        }
        status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.ring.forward();
        self.waiting += 1;
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.waiting == 0 {
            return Ok(());
        }
        self.waiting = 0;
        // SAFETY: nothing but what is in the ring.
        let sent = unsafe {
            libc::send(
                self.ring.socket.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
            )
        };
        match sent {
            -1 => match io::Error::last_os_error() {
                // The device's own ring is full: these are lost, as for all the others.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }
}
