//! The frames' memory: equal chunks, one region of them for each worker.
//!
//! A received frame lies [`HEADROOM`] bytes into its chunk, with what XDP said of it (metadata) in front; behind
//! it is room for a trailer.

use std::{io, ptr::NonNull, slice};

use super::{memory::Mapping, ring::Desc};

/// `XDP_PACKET_HEADROOM` (`linux/bpf.h`): the kernel leaves so much in front of each frame.
pub const HEADROOM: u32 = 256;

/// Memory of frames, to be registered with the kernel.
#[derive(Debug)]
pub struct Umem {
    memory: Mapping,
    chunk: u32,
    frames: u32,
}

/// A frame and the right to use it. Letting go of one loses its chunk for good: it goes to a ring, or back to
/// the free ones.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Of its first byte, from the memory's beginning.
    at: u64,
    /// Bytes.
    len: u32,
}

impl Frame {
    /// Offset of its first byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What a ring takes; the right to use it goes with it.
    pub fn into_desc(self) -> Desc {
        Desc {
            addr: self.at,
            len: self.len,
            options: 0,
        }
    }
}

impl Umem {
    /// Memory for `frames` chunks of `chunk` bytes: 2048 or 4096, as AF_XDP wants them with aligned chunks.
    ///
    /// # Errors
    /// Another size; what the kernel says.
    pub fn new(chunk: u32, frames: u32, huge: bool) -> io::Result<Self> {
        if chunk != 2048 && chunk != 4096 {
            let text = format!("frames of {chunk} bytes: 2048 or 4096 are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let memory = Mapping::anonymous(chunk as usize * frames as usize, huge)?;
        Ok(Self {
            memory,
            chunk,
            frames,
        })
    }

    /// First byte and length, for the kernel.
    pub(super) fn area(&self) -> (u64, u64) {
        let len = u64::from(self.chunk) * u64::from(self.frames);
        (self.memory.start().as_ptr() as u64, len)
    }

    /// Bytes of a chunk.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Number of chunks.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Number of the chunk in which this offset lies.
    pub fn chunk_of(&self, at: u64) -> u32 {
        (at / u64::from(self.chunk)) as u32
    }

    /// Makes a frame of a descriptor, or of a chunk's number times its size; `None` where it does not lie in one
    /// chunk, with its headroom.
    ///
    /// # Safety
    /// The kernel, or whoever had the chunk, has given it up: no other [`Frame`] and no ring has it.
    pub unsafe fn claim(&self, desc: Desc) -> Option<Frame> {
        let start = desc.addr % u64::from(self.chunk);
        let fits = desc.addr < self.area().1
            && start >= u64::from(HEADROOM)
            && start + u64::from(desc.len) <= u64::from(self.chunk);
        fits.then_some(Frame {
            at: desc.addr,
            len: desc.len,
        })
    }

    fn pointer(&self, at: u64) -> NonNull<u8> {
        // SAFETY: only called with offsets of frames, which `claim` has found within the memory.
        unsafe { self.memory.start().add(at as usize) }
    }

    /// The frame's bytes.
    pub fn data<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: within the memory (`claim`), and nobody writes there while the frame is borrowed.
        unsafe { slice::from_raw_parts(self.pointer(frame.at).as_ptr(), frame.len()) }
    }

    /// The `N` bytes in front of the frame: what XDP said of it.
    pub fn before<'a, const N: usize>(&'a self, frame: &'a Frame) -> &'a [u8; N] {
        const { assert!(N <= HEADROOM as usize) };
        // SAFETY: `claim` has seen to the headroom; else as for `data`.
        unsafe { &*self.pointer(frame.at - N as u64).as_ptr().cast() }
    }

    /// Bytes that fit behind the frame.
    fn room(&self, frame: &Frame) -> usize {
        let start = (frame.at % u64::from(self.chunk)) as usize;
        self.chunk as usize - start - frame.len()
    }

    /// Adds bytes behind the frame; false, and nothing done, where they do not fit.
    pub fn append(&self, frame: &mut Frame, bytes: &[u8]) -> bool {
        if self.room(frame) < bytes.len() {
            return false;
        }
        let end = self.pointer(frame.at + u64::from(frame.len)).as_ptr();
        // SAFETY: `room` says that it is within the chunk, which is ours alone while we have the frame.
        unsafe { end.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        frame.len += bytes.len() as u32;
        true
    }

    /// Empties a frame, to write another into it.
    pub fn clear(&self, frame: &mut Frame) {
        let chunk = u64::from(self.chunk);
        frame.at = frame.at / chunk * chunk + u64::from(HEADROOM);
        frame.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(addr: u64, len: u32) -> Desc {
        Desc {
            addr,
            len,
            options: 0,
        }
    }

    #[test]
    fn a_frame_lies_in_one_chunk_behind_its_headroom() {
        let umem = Umem::new(2048, 4, false).unwrap();
        // SAFETY: nobody else uses this memory.
        let claim = |addr, len| unsafe { umem.claim(desc(addr, len)) }.is_some();
        assert!(claim(256, 1792));
        assert!(!claim(256, 1793));
        assert!(!claim(255, 10));
        assert!(claim(3 * 2048 + 300, 1748));
        assert!(!claim(4 * 2048 + 300, 10));
        assert!(!claim(u64::MAX, 10));
    }

    #[test]
    fn appending_stops_at_the_chunks_end() {
        let umem = Umem::new(2048, 1, false).unwrap();
        // SAFETY: nobody else uses this memory.
        let mut frame = unsafe { umem.claim(desc(256, 1780)) }.unwrap();
        assert!(!umem.append(&mut frame, &[7; 13]));
        assert!(umem.append(&mut frame, &[7; 12]));
        assert_eq!(frame.len(), 1792);
        assert_eq!(
            umem.data(&frame)[1779..],
            [0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
        );
        umem.clear(&mut frame);
        assert!(umem.append(&mut frame, &[9; 40]));
        assert_eq!(umem.data(&frame), [9; 40]);
        assert!(Umem::new(1024, 1, false).is_err());
    }
}
