//! A namespace with the pair, workers, and a wire (`near`, `far`) on which frames come out.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, PerCpuArray},
};
use fsm_common::{
    escalate::{Escalated, Judged, TAKEN, flow_hash, taken},
    flow::FlowKey,
    maps::{Xcfg, name},
    parse::{Packet, parse},
    stats::Hook,
};
use fsm_fastpath::{
    dpi::{Engine, Event, Meta, SessionView, Stats, Verdict},
    lab::wire::socket::PacketSocket,
    loader::{
        attach::{TcKind, link_dir},
        dpi::{self, NAMES, Pair},
        objects::{Objects, Sizes},
    },
    maps::{Maps, pin_dir},
    worker::{Counters, Factory, Setup, Told, WorkerStatus, Workers, frames::FramesView},
};
use tokio::sync::mpsc;

/// Where the namespace's own bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// MTU of the pair.
pub const MTU: u32 = 1600;
/// Longest frame that is read.
const FRAME_BYTES: usize = 70_000;

/// What the last byte of a frame has the engine do.
pub const PASS: u8 = b'p';
pub const ALLOW: u8 = b'a';
pub const DROP: u8 = b'd';
pub const DENY: u8 = b'n';
pub const RESET: u8 = b'r';
pub const PANIC: u8 = b'!';
pub const TELL: u8 = b't';

/// What engines have seen: worker, and what was said of the frame.
pub type Log = Arc<Mutex<Vec<(usize, Meta)>>>;

/// Does as frames say.
struct Obedient {
    worker: usize,
    log: Option<Log>,
}

impl Engine for Obedient {
    fn judge(&mut self, _: u64, meta: &Meta, frame: &[u8], tell: &mut dyn FnMut(Event)) -> Verdict {
        if let Some(log) = &self.log {
            log.lock().unwrap().push((self.worker, *meta));
        }
        match frame.last() {
            Some(&ALLOW) => Verdict::Allow,
            Some(&DROP) => Verdict::Drop,
            Some(&DENY) => Verdict::Deny,
            Some(&RESET) => Verdict::Reset,
            Some(&PANIC) => panic!("the frame says so"),
            Some(&TELL) => {
                let end = ([10, 0, 0, 1], 1).into();
                tell(Event::Threat {
                    from: end,
                    to: end,
                    proto: 6,
                    name: "told",
                });
                Verdict::Pass
            }
            _ => Verdict::Pass,
        }
    }
    fn tick(&mut self, _: u64, _: &mut dyn FnMut(Event)) {}
    fn stats(&self) -> Stats {
        Stats::default()
    }
    fn sessions(&self, _: u64, _: usize) -> Vec<SessionView> {
        Vec::new()
    }
}

/// Runs a command; it must succeed.
pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

fn check(what: &str, result: libc::c_int) {
    assert_eq!(result, 0, "{what}: {}", std::io::Error::last_os_error());
}

/// The programs over their maps, which take seconds to load: one test after the other has them.
pub struct Loaded {
    pub objects: Objects,
    pub pins: PathBuf,
    /// The mount namespace whose bpffs has the pins.
    mounts: File,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

impl Loaded {
    /// Moves this thread to where the pins are.
    fn enter() -> Self {
        let null = std::ptr::null();
        let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner).take();
        // SAFETY: for this thread only; strings that end with zero, or null where the kernel wants none.
        unsafe {
            if let Some(loaded) = loaded {
                check("unshare", libc::unshare(libc::CLONE_FS));
                let mounts = loaded.mounts.as_raw_fd();
                check("setns", libc::setns(mounts, libc::CLONE_NEWNS));
                return loaded;
            }
            check("unshare (root is needed)", libc::unshare(libc::CLONE_NEWNS));
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(
                "private mounts",
                libc::mount(null, c"/".as_ptr(), null, private, null.cast()),
            );
            let bpf = c"bpf".as_ptr();
            check(
                "bpffs",
                libc::mount(bpf, c"/sys/fs/bpf".as_ptr(), bpf, 0, null.cast()),
            );
        }
        let pins = pin_dir(Path::new(BPFFS));
        let sizes = Sizes {
            flows: 1024,
            half_open: 1024,
        };
        Self {
            objects: Objects::load(&pins, sizes).unwrap(),
            pins,
            mounts: File::open("/proc/thread-self/ns/mnt").unwrap(),
        }
    }
}

/// Runs `test` on a thread of its own, in a network namespace of its own.
pub fn alone(test: impl FnOnce(&mut Loaded) + Send + 'static) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = thread::spawn(move || {
        let mut loaded = Loaded::enter();
        // SAFETY: for this thread only.
        check("unshare", unsafe { libc::unshare(libc::CLONE_NEWNET) });
        let result = catch_unwind(AssertUnwindSafe(|| test(&mut loaded)));
        // Links end with their devices; their pins would be in the next test's way.
        let _ = std::fs::remove_dir_all(link_dir(&loaded.pins));
        *LOADED.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
        result
    });
    if let Err(panic) = thread.join().and_then(|result| result) {
        std::panic::resume_unwind(panic);
    }
}

/// Does something with netlink.
pub fn netlink<T>(work: impl AsyncFnOnce(&rtnetlink::Handle) -> T) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        work(&handle).await
    })
}

/// The pair and the wire.
pub struct Stage {
    pub pins: PathBuf,
    pub pair: Pair,
    /// Index of the device that packets are said to be of.
    pub near: u32,
    /// Frames go in here,
    inject: PacketSocket,
    /// and come out here.
    pub far: PacketSocket,
    pub log: Log,
    pub events: Option<mpsc::Receiver<Told>>,
    /// Sent so far, which makes their heads differ.
    sent: AtomicU32,
}

/// Puts the programs on the pair, but for the one that puts heads on: frames of most tests have theirs.
pub fn attach(loaded: &mut Loaded, pair: &Pair) {
    attach_all(loaded, pair);
    std::fs::remove_file(link_dir(&loaded.pins).join("dpi-tx")).unwrap();
}

/// Puts all the programs on the pair.
pub fn attach_all(loaded: &mut Loaded, pair: &Pair) {
    let mut tries = 100;
    // A link whose pin is removed goes a moment later.
    while let Err(error) = dpi::attach(&mut loaded.objects, &loaded.pins, pair, TcKind::Tcx) {
        assert!(tries > 0, "{error}");
        tries -= 1;
        thread::sleep(Duration::from_millis(20));
    }
}

impl Stage {
    pub fn new(loaded: &mut Loaded, queues: u32) -> Self {
        sh("ip link set lo up; ip link add near type veth peer name far
            for d in near far; do
                echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; ip link set $d up
            done");
        let pair = netlink(async |handle| dpi::ensure(handle, NAMES, queues, MTU).await).unwrap();
        attach(loaded, &pair);
        empty::<FlowKey<[u8; 4]>>(&loaded.pins, name::FSM_VERDICT);
        empty::<FlowKey<[u8; 16]>>(&loaded.pins, name::FSM_VERDICT6);
        Self {
            near: index("near"),
            inject: PacketSocket::open(NAMES[0]).unwrap(),
            far: PacketSocket::open("far").unwrap(),
            pins: loaded.pins.clone(),
            pair,
            log: Log::default(),
            events: None,
            sent: AtomicU32::new(0),
        }
    }

    /// How the workers are to be: on CPUs 0 and 1 in turn.
    pub fn setup(&mut self, events: usize) -> Setup {
        let (to, from) = mpsc::channel(events);
        self.events = Some(from);
        let queues = self.pair.back.queues[0];
        let cores = (0..queues).map(|queue| queue % cpus()).collect();
        Setup::new(self.pair.back.ifindex, cores, self.pins.clone(), to)
    }

    /// Engines that do as frames say, and log what they see where `is_logged` says so.
    pub fn engines(&self, is_logged: bool) -> Factory {
        let log = is_logged.then(|| self.log.clone());
        Arc::new(move |worker| {
            let log = log.clone();
            Box::new(Obedient { worker, log })
        })
    }

    pub fn start(&mut self) -> Workers {
        let setup = self.setup(1024);
        Workers::start(&setup, &self.engines(true)).unwrap()
    }

    /// What the data path says of this frame when a hook takes it.
    pub fn said(&self, frame: &[u8], hook: Hook) -> Escalated {
        let hash = match parse(frame) {
            Ok(Packet::V4(parsed)) => flow_hash(&parsed.key),
            Ok(Packet::V6(parsed)) => flow_hash(&parsed.key),
            _ => 0,
        };
        Escalated {
            magic: TAKEN,
            ifindex: self.near,
            // The middle of it is what the pair spreads frames over its queues by.
            at_ns: u64::from(self.sent.fetch_add(1, Ordering::Relaxed)) << 32,
            policy: 7,
            hash,
            born: 11,
            vlan: 0,
            hook: hook as u8,
            flags: 0,
        }
    }

    /// Tells the programs how many workers there are.
    pub fn set_workers(&self, workers: u32) {
        let mut maps = Maps::open(Path::new(BPFFS)).unwrap();
        let workers = workers as u16;
        let settings = Xcfg {
            workers,
            ..Xcfg::ZERO
        };
        maps.set_settings(settings).unwrap();
    }

    /// Sends a frame to the workers as a hook does: what is said of it waits for the program that puts heads on.
    pub fn escalate(&self, said: &Escalated, frame: &[u8]) {
        let data = MapData::from_pin(self.pins.join(name::FSM_ESCALATED)).unwrap();
        let mut map = PerCpuArray::<_, Escalated>::try_from(Map::PerCpuArray(data)).unwrap();
        let everywhere = vec![*said; aya::util::nr_cpus().unwrap()];
        map.set(0, everywhere.try_into().unwrap(), 0).unwrap();
        self.inject.send(frame).unwrap();
    }

    /// Sends a frame that no hook has taken; whether it is refused.
    pub fn is_refused(&self, frame: &[u8]) -> bool {
        self.inject.send(frame).is_err()
    }

    /// Sends a frame to the workers.
    pub fn inject(&self, said: &Escalated, frame: &[u8]) {
        let mut bytes = said.as_bytes().to_vec();
        bytes.extend(frame);
        self.inject.send(&bytes).unwrap();
    }

    /// Sends a frame as one that was on its way out of `near`.
    pub fn out(&self, frame: &[u8]) {
        self.inject(&self.said(frame, Hook::TcEgress), frame);
    }

    /// The same for a copy.
    pub fn copy(&self, frame: &[u8]) {
        let said = self.said(frame, Hook::TcEgress);
        let flags = taken::COPY;
        self.inject(&Escalated { flags, ..said }, frame);
    }

    /// The next frame that comes out.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; FRAME_BYTES];
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            if let Some(frame) = self.far.receive(&mut buffer).unwrap() {
                return Some(frame);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.far.wait(left);
        }
    }

    /// Whether nothing comes out for a while.
    pub fn is_silent(&self) -> bool {
        self.far.wait(Duration::from_millis(150));
        self.far
            .receive(&mut vec![0; FRAME_BYTES])
            .unwrap()
            .is_none()
    }
}

/// All entries of a verdict map, which has none then.
pub fn empty<K: Pod>(pins: &Path, name: &str) -> Vec<(K, Judged)> {
    let data = MapData::from_pin(pins.join(name)).unwrap();
    let mut map = HashMap::<_, K, Judged>::try_from(Map::LruHashMap(data)).unwrap();
    let entries: Vec<_> = map.iter().map(Result::unwrap).collect();
    for (key, _) in &entries {
        map.remove(key).unwrap();
    }
    entries
}

fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a string that ends with zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

pub fn cpus() -> u32 {
    thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Counters of all workers, added up, once `judged` packets were judged.
pub fn settled(workers: &Workers, judged: u64) -> Vec<WorkerStatus> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let status = workers.status();
        let sum =
            |get: fn(&Counters) -> u64| -> u64 { status.iter().map(|s| get(&s.counters)).sum() };
        let away: u32 = status.iter().map(|s| s.frames.away + s.frames.tx).sum();
        if sum(|c| c.judged) >= judged && away == 0 || Instant::now() > end {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Every frame is somewhere, and only the kernel has some.
pub fn whole(frames: &FramesView) {
    assert_eq!(frames.leaked, 0, "{frames:?}");
    assert_eq!(frames.spare + frames.fill, frames.total, "{frames:?}");
    assert_eq!(frames.guests, 0, "{frames:?}");
}
