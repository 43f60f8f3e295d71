//! The few `bpf(2)` calls that aya has no name for: maps and programs made by hand, timed test runs, and
//! batches of map entries.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

/// `enum bpf_prog_type` (`linux/bpf.h`): the two kinds measured here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// BPF_PROG_TYPE_SCHED_CLS
    Tc = 3,
    /// BPF_PROG_TYPE_XDP
    Xdp = 6,
}

/// `enum bpf_map_type`.
#[derive(Clone, Copy, Debug)]
pub enum TableKind {
    /// BPF_MAP_TYPE_ARRAY
    Array = 2,
    /// BPF_MAP_TYPE_PROG_ARRAY
    Programs = 3,
}

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP: i64 = 1;
const MAP_UPDATE: i64 = 2;
const PROG_LOAD: i64 = 5;
const OBJ_GET: i64 = 7;
const TEST_RUN: i64 = 10;
const LINK_CREATE: i64 = 28;
const UPDATE_BATCH: i64 = 26;
const DELETE_BATCH: i64 = 27;
/// BPF_F_XDP_HAS_FRAGS: a tail call needs the same on both sides.
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// BPF_XDP (`enum bpf_attach_type`).
const ATTACH_XDP: u32 = 37;
/// BPF_TCX_INGRESS
const ATTACH_TCX_INGRESS: u32 = 46;

/// `union bpf_attr`, one struct a command.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgRun {
    fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_sizes: [u32; 2],
    ctx: [u64; 2],
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    position: [u64; 2],
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: i64, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is plain data laid out as the kernel's for `command`; what it points to outlives the
    // call, which each caller sees to by borrowing it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: just returned by the kernel, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T>(value: &[T]) -> u64 {
    value.as_ptr() as u64
}

/// Makes a map with 4-byte keys.
pub fn table(kind: TableKind, value: u32, entries: u32) -> io::Result<OwnedFd> {
    bpf(
        MAP_CREATE,
        &mut MapCreate {
            kind: kind as u32,
            key: 4,
            value,
            entries,
        },
    )
    .map(owned)
}

/// Writes one entry of a map with 4-byte keys.
pub fn set(map: RawFd, index: u32, value: &[u8]) -> io::Result<()> {
    let key = index.to_ne_bytes();
    let (key, value) = (address(&key), address(value));
    bpf(
        MAP_UPDATE,
        &mut MapUpdate {
            fd: map as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        },
    )
    .map(drop)
}

/// Reads one entry of a map with 4-byte keys, whose values are as long as `value`.
pub fn get(map: RawFd, index: u32, value: &mut [u64]) -> io::Result<()> {
    let key = index.to_ne_bytes();
    let (key, value) = (address(&key), value.as_mut_ptr() as u64);
    bpf(
        MAP_LOOKUP,
        &mut MapUpdate {
            fd: map as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        },
    )
    .map(drop)
}

/// Opens a pinned map.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    bpf(
        OBJ_GET,
        &mut ObjGet {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
    .map(owned)
}

/// Inserts or replaces entries.
pub fn insert_all<K: Copy, V: Copy>(map: RawFd, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    let mut batch = Batch {
        fd: map as u32,
        count: keys.len() as u32,
        ..Batch::default()
    };
    (batch.keys, batch.values) = (address(keys), address(values));
    if keys.is_empty() {
        Ok(())
    } else {
        bpf(UPDATE_BATCH, &mut batch).map(drop)
    }
}

/// Removes entries; those that are not there are passed over. Gives the number removed.
pub fn remove_all<K: Copy>(map: RawFd, keys: &[K]) -> io::Result<usize> {
    let (mut at, mut removed) = (0, 0);
    while at < keys.len() {
        let mut batch = Batch {
            fd: map as u32,
            count: (keys.len() - at) as u32,
            ..Batch::default()
        };
        batch.keys = address(&keys[at..]);
        let result = bpf(DELETE_BATCH, &mut batch);
        at += batch.count as usize;
        removed += batch.count as usize;
        match result {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => at += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Loads a program written by hand.
pub fn load(kind: ProgramKind, insns: &[u64]) -> io::Result<OwnedFd> {
    let mut log = vec![0u8; 65536];
    let license = c"Dual MIT/GPL";
    let (flags, attach) = match kind {
        ProgramKind::Tc => (0, 0),
        ProgramKind::Xdp => (XDP_HAS_FRAGS, ATTACH_XDP),
    };
    let mut attr = ProgLoad {
        kind: kind as u32,
        insn_cnt: insns.len() as u32,
        insns: address(insns),
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        flags,
        attach,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut attr).map(owned).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        io::Error::new(
            error.kind(),
            format!("{error}: {}", String::from_utf8_lossy(&log[..end])),
        )
    })
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach: u32,
    flags: u32,
}

/// Attaches a program to a device, TC to what arrives, for as long as the answer lives.
pub fn attach(kind: ProgramKind, program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex,
        attach: match kind {
            ProgramKind::Tc => ATTACH_TCX_INGRESS,
            ProgramKind::Xdp => ATTACH_XDP,
        },
        flags: 0,
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

/// Number of a device of this namespace.
pub fn ifindex(device: &str) -> io::Result<u32> {
    let name = CString::new(device)?;
    // SAFETY: a string that ends with zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::other(format!("there is no device {device}"))),
        ifindex => Ok(ifindex),
    }
}

/// What a test run gives back.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// The last run's action.
    pub action: i32,
    /// Mean of a run, by the kernel's clock.
    pub ns: u32,
}

/// Runs a program `repeat` times on one buffer; `out` gets what it has become.
pub fn test_run(
    program: &OwnedFd,
    frame: &[u8],
    repeat: u32,
    out: Option<&mut [u8]>,
) -> io::Result<Ran> {
    let mut attr = ProgRun {
        fd: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        data_in: address(frame),
        repeat,
        ..ProgRun::default()
    };
    if let Some(out) = out {
        (attr.size_out, attr.data_out) = (out.len() as u32, out.as_mut_ptr() as u64);
    }
    bpf(TEST_RUN, &mut attr)?;
    Ok(Ran {
        action: attr.retval as i32,
        ns: attr.duration,
    })
}

/// BPF_F_TEST_XDP_LIVE_FRAMES: what the program says is done with the frames.
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that go through the kernel together.
const LIVE_BATCH: u32 = 64;

/// Sends `count` copies of a frame through an XDP program, each as a packet of its own.
pub fn send_live(program: &OwnedFd, frame: &[u8], count: u32) -> io::Result<()> {
    let mut attr = ProgRun {
        fd: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        data_in: address(frame),
        repeat: count,
        flags: LIVE_FRAMES,
        batch: LIVE_BATCH,
        ..ProgRun::default()
    };
    bpf(TEST_RUN, &mut attr).map(drop)
}
