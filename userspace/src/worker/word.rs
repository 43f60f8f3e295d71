//! The word by which the hooks know that a worker lives: its place in `fsm_worker`, mapped.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{MapData, MapError};
use fsm_common::{
    escalate::{MAX_WORKERS, WorkerWord},
    maps::name,
};

use crate::xsk::memory::Mapping;

/// All words.
#[derive(Debug)]
pub struct Words(Mapping);

impl Words {
    /// Maps them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(pins: &Path) -> Result<Arc<Self>, MapError> {
        // An array's elements are eight bytes apart at least, and its memory is whole pages (kernel/bpf/arraymap.c).
        const { assert!(size_of::<WorkerWord>() == size_of::<AtomicU64>()) };
        let map = MapData::from_pin(pins.join(name::FSM_WORKER))?;
        let len = (MAX_WORKERS as usize * size_of::<WorkerWord>()).next_multiple_of(4096);
        let fd = std::os::fd::AsFd::as_fd(map.fd());
        // It stays without the descriptor.
        let mapping =
            Mapping::shared(fd, len, 0).map_err(|error: io::Error| MapError::IoError(error))?;
        Ok(Arc::new(Self(mapping)))
    }

    fn word(&self, worker: usize) -> &AtomicU64 {
        assert!(worker < MAX_WORKERS as usize);
        // SAFETY: within the mapping, aligned, and only ever used as an atomic here.
        unsafe { self.0.start().cast::<AtomicU64>().add(worker).as_ref() }
    }

    /// Nanoseconds since that worker's last round, `now_ns` being the time; `None`: it does not run.
    pub fn age_ns(&self, worker: usize, now_ns: u64) -> Option<u64> {
        match self.word(worker).load(Ordering::Relaxed) {
            0 => None,
            then => Some(now_ns.saturating_sub(then)),
        }
    }
}

/// One worker's own. Cleared when it goes, however it goes.
#[derive(Debug)]
pub struct Word {
    words: Arc<Words>,
    worker: usize,
}

impl Word {
    /// That worker's.
    pub fn new(words: &Arc<Words>, worker: usize) -> Self {
        let words = words.clone();
        Self { words, worker }
    }

    /// It lives.
    pub fn beat(&self, now_ns: u64) {
        let word = self.words.word(self.worker);
        word.store(now_ns, Ordering::Relaxed);
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.beat(0);
    }
}
