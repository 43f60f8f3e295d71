//! A map as a whole: read, written and emptied thousands of entries a call, and entry by entry where the kernel
//! cannot do that for its kind.

use std::{
    collections::HashSet,
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    time::Duration,
};

use aya::{
    Pod,
    maps::{MapData, MapError},
};

use super::sys::{Attr, Batch, Command, bpf, bpf_mut};

/// Entries a call: the buffers stay small, and the call's own cost is spread over many.
const CHUNK: usize = 16_384;
/// How often a write is tried again when the kernel has no memory at hand: it fetches more in the background.
const TRIES: u32 = 50;
/// `ENOTSUPP`, which the kernel gives user space though it has no name there.
const ENOTSUPP: i32 = 524;

/// A map, opened by its pin.
pub struct Bulk<K, V> {
    map: MapData,
    name: &'static str,
    entry: PhantomData<(K, V)>,
}

fn error(call: &'static str, io_error: io::Error) -> MapError {
    MapError::SyscallError(aya::sys::SyscallError { call, io_error })
}

/// Whether the kernel does not know the command for this kind of map; it has changed nothing then.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
    )
}

impl<K: Pod, V: Pod> Bulk<K, V> {
    /// Opens the pin.
    ///
    /// # Errors
    /// What the kernel says; or the map's keys and values are of another size.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self, MapError> {
        let map = MapData::from_pin(dir.join(name))?;
        let info = map.info()?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        if key != size_of::<K>() {
            return Err(MapError::InvalidKeySize {
                size: key,
                expected: size_of::<K>(),
            });
        }
        if value != size_of::<V>() {
            return Err(MapError::InvalidValueSize {
                size: value,
                expected: size_of::<V>(),
            });
        }
        Ok(Self {
            map,
            name,
            entry: PhantomData,
        })
    }

    /// Name of the map.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Entries that fit.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn max_entries(&self) -> Result<usize, MapError> {
        Ok(self.map.info()?.max_entries() as usize)
    }

    fn fd(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd() as u32
    }

    /// Calls `visit` once for each entry. Those that come or go meanwhile may be seen or not.
    ///
    /// # Errors
    /// What the kernel says, or `visit`.
    pub fn each<E: From<MapError>>(
        &self,
        mut visit: impl FnMut(K, V) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut batch = Batch::default();
        let mut is_first = true;
        loop {
            match batch.next(&self.map.fd().as_fd(), CHUNK) {
                Ok(Some(entries)) => {
                    for (key, value) in entries {
                        visit(key, value)?;
                    }
                    if batch.is_at_start() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(refused) if is_first && is_refused(&refused) => {
                    return self.each_by_key(visit);
                }
                Err(other) => return Err(error("BPF_MAP_LOOKUP_BATCH", other).into()),
            }
            is_first = false;
        }
    }

    /// [`Self::each`] with two calls an entry. A key that goes away makes the kernel begin again, so what was
    /// seen is remembered.
    ///
    /// # Errors
    /// What the kernel says, or `visit`.
    pub fn each_by_key<E: From<MapError>>(
        &self,
        mut visit: impl FnMut(K, V) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut seen: HashSet<Box<[u8]>> = HashSet::new();
        let mut last: Option<K> = None;
        loop {
            let mut key = Vec::<K>::with_capacity(1);
            let from = last.as_ref().map_or(0, |last| (&raw const *last) as u64);
            let attr = Attr::new(&[self.fd()])
                .with_address(2, from)
                .with_address(4, key.as_mut_ptr() as u64);
            match bpf(Command::MapNextKey, &attr) {
                // SAFETY: the kernel has written one key, any bytes of which are one (`Pod`).
                Ok(_) => unsafe { key.set_len(1) },
                Err(end) if end.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(other) => return Err(error("BPF_MAP_GET_NEXT_KEY", other).into()),
            }
            let key = key[0];
            last = Some(key);
            if seen.insert(bytes(&key).into())
                && let Some(value) = self.get(&key)?
            {
                visit(key, value)?;
            }
        }
    }

    /// The entry of a key.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = Vec::<V>::with_capacity(1);
        let attr = self.at(key).with_address(4, value.as_mut_ptr() as u64);
        match bpf(Command::MapLookup, &attr) {
            // SAFETY: the kernel has written one value, any bytes of which are one (`Pod`).
            Ok(_) => unsafe { value.set_len(1) },
            Err(none) if none.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(other) => return Err(error("BPF_MAP_LOOKUP_ELEM", other)),
        }
        Ok(Some(value[0]))
    }

    fn at(&self, key: &K) -> Attr {
        Attr::new(&[self.fd()]).with_address(2, (&raw const *key) as u64)
    }

    /// Inserts or replaces, in this order.
    ///
    /// # Errors
    /// What the kernel says; the entries before the one that failed are written then.
    pub fn write(&self, entries: &[(K, V)]) -> Result<(), MapError> {
        for chunk in entries.chunks(CHUNK) {
            let (keys, values): (Vec<K>, Vec<V>) = chunk.iter().copied().unzip();
            let mut done = 0;
            let mut tries = 0;
            while done < keys.len() {
                let (result, count) =
                    self.batch(Command::UpdateBatch, &keys[done..], &values[done..]);
                match result {
                    Ok(()) => break,
                    Err(refused) if is_refused(&refused) => {
                        for (key, value) in keys[done..].iter().zip(&values[done..]) {
                            let attr = self.at(key).with_address(4, (&raw const *value) as u64);
                            bpf(Command::MapUpdate, &attr)
                                .map_err(|source| error("BPF_MAP_UPDATE_ELEM", source))?;
                        }
                        break;
                    }
                    Err(full) if is_passing(&full) && tries < TRIES => {
                        (done, tries) = (done + count, tries + 1);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(other) => return Err(error("BPF_MAP_UPDATE_BATCH", other)),
                }
            }
        }
        Ok(())
    }

    /// Removes; what is not there is as good as removed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, keys: &[K]) -> Result<(), MapError> {
        for chunk in keys.chunks(CHUNK) {
            let mut done = 0;
            while done < chunk.len() {
                let (result, count) = self.batch::<V>(Command::DeleteBatch, &chunk[done..], &[]);
                match result {
                    Ok(()) => break,
                    // The one after those that were removed is not there.
                    Err(none) if none.kind() == io::ErrorKind::NotFound => done += count + 1,
                    Err(busy) if is_passing(&busy) => done += count,
                    Err(refused) if is_refused(&refused) => {
                        for key in &chunk[done..] {
                            match bpf(Command::MapDelete, &self.at(key)) {
                                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                                    return Err(error("BPF_MAP_DELETE_ELEM", source));
                                }
                                _ => {}
                            }
                        }
                        break;
                    }
                    Err(other) => return Err(error("BPF_MAP_DELETE_BATCH", other)),
                }
            }
        }
        Ok(())
    }

    /// One batch; with an error, how many entries came before it.
    fn batch<T: Pod>(&self, command: Command, keys: &[K], values: &[T]) -> (io::Result<()>, usize) {
        let mut attr = Attr::default().with_address(4, keys.as_ptr() as u64);
        if !values.is_empty() {
            attr = attr.with_address(6, values.as_ptr() as u64);
        }
        attr.words[8] = keys.len() as u32;
        attr.words[9] = self.fd();
        let result = bpf_mut(command, &mut attr).map(drop);
        // Still the number that was asked for: the error came before the first entry.
        let count = attr.words[8] as usize;
        (result, if count < keys.len() { count } else { 0 })
    }
}

/// Whether a try again may do: no memory at hand, or a bucket in use.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EBUSY | libc::EAGAIN | libc::EINTR)
    )
}

fn bytes<K: Pod>(key: &K) -> &[u8] {
    // SAFETY: plain data (`Pod`), borrowed for as long as `key`.
    unsafe { std::slice::from_raw_parts((&raw const *key).cast(), size_of::<K>()) }
}
