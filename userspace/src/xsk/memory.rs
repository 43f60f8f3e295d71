//! Memory that is mapped, and unmapped when its last user goes.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
};

/// A mapping, shared with the kernel or other threads: only its users know who may write where.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; what is done with the bytes is the users' affair.
unsafe impl Send for Mapping {}
// SAFETY: likewise.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Fresh, zeroed memory, present from the start; in huge pages where `huge` is set and the host has some
    /// reserved, else in pages of 4 KiB.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn anonymous(len: usize, huge: bool) -> io::Result<Self> {
        const HUGE: usize = 2 << 20;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        if huge
            && let Ok(mapping) =
                Self::map(len.next_multiple_of(HUGE), flags | libc::MAP_HUGETLB, -1, 0)
        {
            return Ok(mapping);
        }
        Self::map(len, flags, -1, 0)
    }

    /// `len` bytes of a file, socket or map, from `offset`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn shared(fd: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(len, flags, fd.as_raw_fd(), offset)
    }

    fn map(len: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice; the result is checked.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(at.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len })
    }

    /// First byte; page aligned.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: the kernel maps no empty range.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
