//! Where tests run: network and mount namespaces of their own with a bpffs of their own, so that tests may run
//! side by side and leave nothing behind. Loading takes most of a second; a node is handed on, emptied, from
//! one test to the next.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use fsm_common::{
    flags,
    maps::{FragmentKey, FragmentPorts, IFACE_SLOTS, IfaceEntry, Xcfg, name, role},
    policy::CidrRules,
    track::State,
};
use fsm_fastpath::{
    loader::objects::{Objects, Sizes},
    maps::{Maps, pin_dir},
};

use super::node::{LO, Node};

/// Flows of the nodes that are handed on.
const FLOWS: u32 = 1024;
/// Where the namespace's own bpffs is mounted: any folder that exists would do.
const BPFFS: &CStr = c"/sys/fs/bpf";

static IDLE: Mutex<Vec<Node>> = Mutex::new(Vec::new());

/// Runs `test` with a node of 1024 flows.
pub fn alone(test: impl FnOnce(&mut Node) + Send + 'static) {
    run(FLOWS, test);
}

/// Runs `test` with a node of so many flows.
pub fn alone_with(flows: u32, test: impl FnOnce(&mut Node) + Send + 'static) {
    run(flows, test);
}

fn run(flows: u32, test: impl FnOnce(&mut Node) + Send + 'static) {
    // SAFETY: takes no arguments.
    let user = unsafe { libc::geteuid() };
    assert_eq!(
        user, 0,
        "prog_run loads eBPF programs and makes namespaces: run it as root"
    );
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    // Namespaces are a thread's.
    let test_thread = thread::spawn(move || {
        let mut node = match idle().pop().filter(|_| flows == FLOWS) {
            Some(node) => node.enter(),
            None => Node::load(flows),
        };
        node.reset();
        test(&mut node);
        if flows == FLOWS {
            idle().push(node);
        }
    });
    if let Err(panic) = test_thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The namespaces that a node lives in.
pub struct Home {
    net: File,
    mounts: File,
}

fn check(what: &str, result: libc::c_int) {
    assert_eq!(result, 0, "{what}: {}", io::Error::last_os_error());
}

impl Home {
    /// Makes this thread's own.
    fn new() -> Self {
        let null = std::ptr::null();
        // SAFETY: for this thread only; strings that end with zero, or null where the kernel wants none.
        unsafe {
            check(
                "unshare",
                libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS),
            );
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(
                "private mounts",
                libc::mount(null, c"/".as_ptr(), null, private, null.cast()),
            );
            let bpf = c"bpf".as_ptr();
            check(
                "mount bpffs",
                libc::mount(bpf, BPFFS.as_ptr(), bpf, 0, null.cast()),
            );
        }
        let open = |name| File::open(format!("/proc/thread-self/ns/{name}")).unwrap();
        Self {
            net: open("net"),
            mounts: open("mnt"),
        }
    }

    /// Moves this thread there.
    fn enter(&self) {
        // SAFETY: for this thread only, with open descriptors.
        unsafe {
            check("unshare", libc::unshare(libc::CLONE_FS));
            check(
                "setns",
                libc::setns(self.net.as_raw_fd(), libc::CLONE_NEWNET),
            );
            check(
                "setns",
                libc::setns(self.mounts.as_raw_fd(), libc::CLONE_NEWNS),
            );
        }
    }
}

impl Node {
    fn load(flows: u32) -> Self {
        let home = Home::new();
        let bpffs = Path::new(BPFFS.to_str().unwrap());
        let pins = pin_dir(bpffs);
        let objects = Objects::load(
            &pins,
            Sizes {
                flows,
                half_open: FLOWS,
            },
        )
        .unwrap_or_else(|e| panic!("{e}"));
        let maps = Maps::open(bpffs).unwrap_or_else(|e| panic!("{e}"));
        Self {
            maps,
            objects,
            arrived_on: 0,
            mark: 0,
            pins,
            home,
        }
    }

    fn enter(self) -> Self {
        self.home.enter();
        self
    }

    /// Nothing but the default flags, and the loopback as an app's device.
    fn reset(&mut self) {
        self.no_wires();
        (self.arrived_on, self.mark) = (0, 0);
        clear(&mut self.maps.flow4);
        clear(&mut self.maps.flow6);
        clear(&mut self.maps.half4);
        clear(&mut self.maps.half6);
        clear(&mut self.maps.xopt);
        clear(&mut self.maps.xopt_half);
        clear(&mut self.maps.acl4);
        clear(&mut self.maps.acl6);
        clear(&mut self.maps.xnat);
        clear(&mut self.maps.guard);
        let sets = self
            .maps
            .bulk::<u32, CidrRules>(name::FSM_CIDR_SET)
            .unwrap();
        sets.remove(&(0..1024).collect::<Vec<u32>>()).unwrap();
        let fragments = MapData::from_pin(self.pins.join(name::FSM_FRAG)).unwrap();
        let fragments = aya::maps::HashMap::try_from(Map::LruHashMap(fragments));
        clear::<_, FragmentKey, FragmentPorts>(&mut fragments.unwrap());
        clear_trie(&mut self.maps.cidr4);
        clear_trie(&mut self.maps.cidr6);
        clear_trie(&mut self.maps.skip4);
        clear_trie(&mut self.maps.skip6);
        for slot in 0..IFACE_SLOTS {
            self.maps.iface.set(slot, IfaceEntry::ZERO, 0).unwrap();
        }
        for state in 0..State::ALL.len() as u32 {
            let seconds = if state == State::Established as u32 {
                432_000
            } else {
                10
            };
            self.maps
                .timeout
                .set(state, seconds * 1_000_000_000, 0)
                .unwrap();
        }
        let settings = Xcfg {
            ipv4: flags::DEFAULT,
            ipv6: flags::DEFAULT,
            generation: 1,
            fail_open: 1,
            csum_ipv6_flag: self.objects.csum_ipv6_flag().unwrap(),
            idle_check_ns: 10_000_000_000,
            ..Xcfg::ZERO
        };
        self.maps.set_settings(settings).unwrap();
        self.device(LO, role::ENDPOINT, 0);
    }
}

fn clear<T: std::borrow::BorrowMut<MapData>, K: Pod, V: Pod>(
    map: &mut aya::maps::HashMap<T, K, V>,
) {
    let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
    keys.iter().for_each(|key| map.remove(key).unwrap());
}

fn clear_trie<K: Pod, V: Pod>(map: &mut aya::maps::lpm_trie::LpmTrie<MapData, K, V>) {
    let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
    keys.iter().for_each(|key| map.remove(key).unwrap());
}
