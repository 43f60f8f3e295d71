//! Rings of one producer and one consumer in memory shared with the kernel. Each side writes its own index and
//! reads the other's: entries are written before the producer's index (release) and read after it (acquire), and
//! are read before the consumer's index moves on.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use super::memory::Mapping;

/// Entry of RX and TX rings (`struct xdp_desc`, `linux/if_xdp.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Desc {
    /// Of the frame's first byte, from the memory's beginning.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Zero: no parts, no metadata.
    pub options: u32,
}

/// What both sides of a ring have.
#[derive(Debug)]
struct Shared<T> {
    /// Keeps the pointers good.
    _memory: Mapping,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    /// Entries less one: a power of two.
    mask: u32,
}

// SAFETY: the pointers are into `_memory`, and each end is used through `&mut`.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        offsets: &libc::xdp_ring_offset,
        page: libc::off_t,
    ) -> io::Result<Self> {
        let len = offsets.desc as usize + size as usize * size_of::<T>();
        Ok(Self::over(Mapping::shared(fd, len, page)?, size, offsets))
    }

    fn over(memory: Mapping, size: u32, offsets: &libc::xdp_ring_offset) -> Self {
        assert!(size.is_power_of_two() && size > 1);
        let end = offsets.desc as usize + size as usize * size_of::<T>();
        assert!(end <= memory.len());
        let start = memory.start();
        // SAFETY: the kernel's offsets, all of them before the entries, which end within the mapping.
        let index = |offset: u64| unsafe { start.add(offset as usize) }.cast();
        Self {
            producer: index(offsets.producer),
            consumer: index(offsets.consumer),
            flags: index(offsets.flags),
            // SAFETY: likewise.
            entries: unsafe { start.add(offsets.desc as usize) }.cast(),
            mask: size - 1,
            _memory: memory,
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: into the mapping, aligned (the kernel's struct), for as long as `self`.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as above.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: masked, so within the entries.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }
}

/// The end that fills: of fill and TX rings.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Shared<T>,
    /// Entries written, published or not.
    written: u32,
    /// The consumer's index as it was when last looked at.
    read: u32,
}

impl<T: Copy> Producer<T> {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        offsets: &libc::xdp_ring_offset,
        page: libc::off_t,
    ) -> io::Result<Self> {
        Shared::map(fd, size, offsets, page).map(Self::new)
    }

    fn new(ring: Shared<T>) -> Self {
        Self {
            written: ring.producer().load(Ordering::Relaxed),
            read: ring.consumer().load(Ordering::Acquire),
            ring,
        }
    }

    /// Entries that can be written.
    pub fn room(&mut self) -> u32 {
        let size = self.ring.mask + 1;
        let room = size - self.written.wrapping_sub(self.read);
        if room > 0 {
            return room;
        }
        // Acquire: the consumer has read the entries that we are going to write over.
        self.read = self.ring.consumer().load(Ordering::Acquire);
        size - self.written.wrapping_sub(self.read)
    }

    /// Writes an entry, unseen by the other side until [`Self::publish`]; false where there is no room.
    #[must_use]
    pub fn push(&mut self, entry: T) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: a free entry, which is ours until published.
        unsafe { self.ring.entry(self.written).write(entry) };
        self.written = self.written.wrapping_add(1);
        true
    }

    /// Gives all entries written so far to the other side.
    pub fn publish(&mut self) {
        self.ring.producer().store(self.written, Ordering::Release);
    }

    /// Entries that the other side has not taken yet.
    pub fn pending(&mut self) -> u32 {
        self.read = self.ring.consumer().load(Ordering::Acquire);
        self.written.wrapping_sub(self.read)
    }

    /// Whether the kernel sleeps until a system call comes.
    pub fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// The end that empties: of completion and RX rings.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Shared<T>,
    /// Entries taken, released or not.
    taken: u32,
    /// The producer's index as it was when last looked at.
    written: u32,
}

impl<T: Copy> Consumer<T> {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        size: u32,
        offsets: &libc::xdp_ring_offset,
        page: libc::off_t,
    ) -> io::Result<Self> {
        Shared::map(fd, size, offsets, page).map(Self::new)
    }

    fn new(ring: Shared<T>) -> Self {
        Self {
            taken: ring.consumer().load(Ordering::Relaxed),
            written: ring.producer().load(Ordering::Acquire),
            ring,
        }
    }

    /// The next entry; it stays occupied until [`Self::release`].
    pub fn pop(&mut self) -> Option<T> {
        if self.taken == self.written {
            // Acquire: the entries were written before the index.
            self.written = self.ring.producer().load(Ordering::Acquire);
            if self.taken == self.written {
                return None;
            }
        }
        // SAFETY: written by the other side, which leaves it alone until it is released.
        let entry = unsafe { self.ring.entry(self.taken).read() };
        self.taken = self.taken.wrapping_add(1);
        Some(entry)
    }

    /// Gives the room of all entries taken so far back.
    pub fn release(&mut self) {
        // Release: the entries have been read.
        self.ring.consumer().store(self.taken, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSETS: libc::xdp_ring_offset = libc::xdp_ring_offset {
        producer: 0,
        consumer: 64,
        desc: 192,
        flags: 128,
    };

    /// Both ends of one ring, over one piece of memory that is never given back.
    fn pair(size: u32, start: u32) -> (Producer<u64>, Consumer<u64>) {
        let len = 192 + size as usize * 8;
        let file = std::fs::File::options();
        let path = format!("/dev/shm/fsm-ring-{}-{size}-{start}", std::process::id());
        let file = { file }
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let file = file.unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(len as u64).unwrap();
        let map = || {
            let fd = std::os::fd::AsFd::as_fd(&file);
            Shared::over(Mapping::shared(fd, len, 0).unwrap(), size, &OFFSETS)
        };
        let ring: Shared<u64> = map();
        ring.producer().store(start, Ordering::Relaxed);
        ring.consumer().store(start, Ordering::Relaxed);
        (Producer::new(ring), Consumer::new(map()))
    }

    #[test]
    fn entries_come_in_order_across_the_indices_end() {
        let (mut to, mut from) = pair(8, u32::MAX - 20);
        let (mut sent, mut seen) = (0u64, 0u64);
        for round in 0..100 {
            for _ in 0..round % 9 {
                if to.push(sent) {
                    sent += 1;
                }
            }
            to.publish();
            for _ in 0..round % 5 {
                if let Some(entry) = from.pop() {
                    assert_eq!(entry, seen);
                    seen += 1;
                }
            }
            from.release();
            assert_eq!(u64::from(to.pending()), sent - seen);
        }
        assert!(seen > 100);
    }

    #[test]
    fn a_full_ring_takes_nothing_and_what_is_unpublished_is_unseen() {
        let (mut to, mut from) = pair(4, 0);
        assert!((0..4).all(|i| to.push(i)));
        assert!(!to.push(4));
        assert_eq!(from.pop(), None);
        to.publish();
        assert_eq!(from.pop(), Some(0));
        assert!(!to.push(4), "taken, but not released");
        from.release();
        assert!(to.push(4));
        assert!(!to.push(5));
    }

    #[test]
    fn two_threads_lose_nothing() {
        let (mut to, mut from) = pair(64, u32::MAX - 1000);
        const COUNT: u64 = 200_000;
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < COUNT {
                while next < COUNT && to.push(next) {
                    next += 1;
                }
                to.publish();
                std::thread::yield_now();
            }
        });
        let mut next = 0;
        while next < COUNT {
            match from.pop() {
                Some(entry) => {
                    assert_eq!(entry, next);
                    next += 1;
                }
                None => {
                    from.release();
                    std::thread::yield_now();
                }
            }
        }
        sender.join().unwrap();
    }
}
