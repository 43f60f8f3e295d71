//! The few `bpf(2)` calls for links that aya does not offer alike for all kinds of program: one way to make,
//! pin, open, update and read XDP, TCX and cgroup links. aya's own XDP attach also falls back to netlink
//! without a word, whose result cannot be pinned.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Commands of `bpf(2)` (`linux/bpf.h`).
#[repr(i64)]
#[derive(Clone, Copy)]
pub(super) enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    InfoByFd = 15,
    LookupBatch = 24,
    UpdateBatch = 26,
    DeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// Where a link attaches its program (`enum bpf_attach_type`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachType {
    /// `BPF_CGROUP_GETSOCKOPT`
    CgroupGetsockopt = 21,
    /// `BPF_XDP`
    Xdp = 37,
    /// `BPF_TCX_INGRESS`
    TcxIngress = 46,
    /// `BPF_TCX_EGRESS`
    TcxEgress = 47,
}

/// `XDP_FLAGS_SKB_MODE` (`linux/if_link.h`).
pub const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub const XDP_NATIVE: u32 = 1 << 2;

/// The front of `union bpf_attr`, as far as these commands use it.
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct Attr {
    pub(super) words: [u32; 16],
}

impl Attr {
    pub(super) fn new(words: &[u32]) -> Self {
        let mut attr = Self::default();
        attr.words[..words.len()].copy_from_slice(words);
        attr
    }

    pub(super) fn with_address(mut self, at: usize, address: u64) -> Self {
        let bytes = address.to_ne_bytes();
        let half =
            |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        (self.words[at], self.words[at + 1]) = (half(0), half(4));
        self
    }
}

pub(super) fn bpf(command: Command, attr: &Attr) -> io::Result<i64> {
    // SAFETY: `attr` is as large as said and zero behind what the command reads; pointers in it are to
    // memory that the callers below keep alive.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i64,
            &raw const *attr,
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// For commands that write into `attr`.
pub(super) fn bpf_mut(command: Command, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: as for `bpf`; the memory is ours alone meanwhile.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i64,
            &raw mut *attr,
            size_of::<Attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A link: a program on its hook. Goes when the last descriptor and pin go.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the kernel says of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the link.
    pub id: u32,
    /// Id of its program.
    pub prog_id: u32,
    /// Device of an XDP or TCX link; 0 once the device is gone.
    pub ifindex: u32,
}

impl Link {
    /// Attaches a program. `target` is an interface index or a cgroup's descriptor; `flags` are those of
    /// XDP, else 0.
    ///
    /// # Errors
    /// EBUSY or EEXIST where another program is there already; whatever else the kernel says.
    pub fn create(
        program: &impl AsFd,
        target: u32,
        kind: AttachType,
        flags: u32,
    ) -> io::Result<Self> {
        let program = program.as_fd().as_raw_fd() as u32;
        bpf(
            Command::LinkCreate,
            &Attr::new(&[program, target, kind as u32, flags]),
        )
        .map(|fd| Self(owned(fd)))
    }

    /// Opens a pin; `Ok(None)` where there is none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let path = c_path(path)?;
        match bpf(
            Command::ObjGet,
            &Attr::default().with_address(0, path.as_ptr() as u64),
        ) {
            Ok(fd) => Ok(Some(Self(owned(fd)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pins it, so that it outlives this process.
    ///
    /// # Errors
    /// EEXIST where something is pinned there.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = c_path(path)?;
        let attr =
            Attr::new(&[0, 0, self.0.as_raw_fd() as u32]).with_address(0, path.as_ptr() as u64);
        bpf(Command::ObjPin, &attr).map(drop)
    }

    /// Puts another program in its place, without a packet in between that sees none.
    ///
    /// # Errors
    /// ENOLINK where the device is gone.
    pub fn update(&self, program: &impl AsFd) -> io::Result<()> {
        let program = program.as_fd().as_raw_fd() as u32;
        bpf(
            Command::LinkUpdate,
            &Attr::new(&[self.0.as_raw_fd() as u32, program, 0, 0]),
        )
        .map(drop)
    }

    /// What the kernel says of it.
    ///
    /// # Errors
    /// What the kernel says instead.
    pub fn info(&self) -> io::Result<LinkInfo> {
        // type, id, prog_id, padding, then the kind's own: XDP and TCX begin with the device
        let mut info = [0u32; 32];
        let attr = Attr::new(&[self.0.as_raw_fd() as u32, size_of_val(&info) as u32])
            .with_address(2, info.as_mut_ptr() as u64);
        bpf(Command::InfoByFd, &attr)?;
        Ok(LinkInfo {
            id: info[1],
            prog_id: info[2],
            ifindex: info[4],
        })
    }
}

/// Reads a map many entries at a time: one call for thousands, where key by key takes two calls each. A hash map
/// is read bucket by bucket, so that nothing is seen twice.
#[derive(Debug, Default)]
pub struct Batch {
    /// Where to go on: a bucket of a hash map, else the last key; `None` before the first.
    position: Option<Position>,
}

/// Room for the longest key of ours.
type Position = [u64; 8];

impl Batch {
    /// The next entries, about `count` (more where a bucket holds more); `Ok(None)` once the map has been read to
    /// its end, after which it begins again. Entries that come or go meanwhile may be seen or not.
    ///
    /// # Errors
    /// What the kernel says: EINVAL or ENOTSUPP where it cannot read this kind of map so.
    pub fn next<K: aya::Pod, V: aya::Pod>(
        &mut self,
        map: &impl AsFd,
        count: usize,
    ) -> io::Result<Option<Vec<(K, V)>>> {
        let mut room = count;
        loop {
            match self.read(map, room) {
                // One bucket holds more than that.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < MOST => {
                    room *= 4;
                }
                result => return result,
            }
        }
    }

    fn read<K: aya::Pod, V: aya::Pod>(
        &mut self,
        map: &impl AsFd,
        count: usize,
    ) -> io::Result<Option<Vec<(K, V)>>> {
        const { assert!(size_of::<K>() <= size_of::<Position>()) };
        let mut keys: Vec<K> = Vec::with_capacity(count);
        let mut values: Vec<V> = Vec::with_capacity(count);
        let (from, mut to) = (self.position, Position::default());
        let from = from.as_ref().map_or(0, |from| from.as_ptr() as u64);
        let mut attr = Attr::default()
            .with_address(0, from)
            .with_address(2, to.as_mut_ptr() as u64)
            .with_address(4, keys.as_mut_ptr() as u64)
            .with_address(6, values.as_mut_ptr() as u64);
        attr.words[8] = count as u32;
        attr.words[9] = map.as_fd().as_raw_fd() as u32;
        let result = bpf_mut(Command::LookupBatch, &mut attr);
        let is_end = match result {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let read = (attr.words[8] as usize).min(count);
        // SAFETY: the kernel has written `read` keys and values, any bytes of which are a value (`Pod`).
        unsafe {
            keys.set_len(read);
            values.set_len(read);
        }
        self.position = if is_end { None } else { Some(to) };
        if is_end && read == 0 {
            return Ok(None);
        }
        Ok(Some(keys.into_iter().zip(values).collect()))
    }

    /// Whether the next call begins at the front.
    pub fn is_at_start(&self) -> bool {
        self.position.is_none()
    }
}

/// Entries that the room for a batch never exceeds.
const MOST: usize = 1 << 22;

/// Waits until every program that runs now has ended (they run under RCU, and `MEMBARRIER_CMD_GLOBAL` is
/// `synchronize_rcu`; `kernel/sched/membarrier.c`): 5 to 25 ms. Where the kernel does not do that (`nohz_full`),
/// 100 ms: programs run for microseconds, with interrupts that could delay them at work.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
