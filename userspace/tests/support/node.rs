//! One node: the programs loaded over maps of their own, in network and mount namespaces of their own, so
//! that tests may run side by side and leave nothing behind.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::programs::{TestRun as _, TestRunOptions};
use fsm_common::{
    flags,
    flow::{Address, Flow, FlowKey},
    maps::{IFACE_SLOTS, IfaceEntry, role},
    reason::Reason,
    stats::{self, Count, Verdict},
};
use fsm_fastpath::{
    loader::objects::{Objects, Sizes, program},
    maps::{Maps, pin_dir},
};

use super::seen::{Entry, Seen};

/// The loopback device, on which test runs are unless they say otherwise.
pub const LO: u32 = 1;

/// Where a frame is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `fsm_xdp`
    Xdp,
    /// `fsm_tc_ingress`
    TcIn,
    /// `fsm_tc_egress`
    TcOut,
}

impl Hook {
    fn counter(self) -> usize {
        let hook = match self {
            Self::Xdp => stats::Hook::Xdp,
            Self::TcIn => stats::Hook::TcIngress,
            Self::TcOut => stats::Hook::TcEgress,
        };
        hook as usize
    }
}

/// See the module.
pub struct Node {
    /// The maps, to be filled and read.
    pub maps: Maps,
    /// The programs.
    pub objects: Objects,
    /// Device that a frame came from before it is handed to [`Hook::TcOut`]; 0 for the host itself.
    pub arrived_on: u32,
    bpffs: Bpffs,
}

/// Runs `test` with a node of 1024 flows.
pub fn alone(test: impl FnOnce(&mut Node) + Send + 'static) {
    alone_with(1024, test);
}

/// Runs `test` with a node of so many flows.
pub fn alone_with(flows: u32, test: impl FnOnce(&mut Node) + Send + 'static) {
    let test_thread = thread::spawn(move || {
        let mut node = Node::new(flows);
        test(&mut node);
    });
    if let Err(panic) = test_thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A private bpffs, gone with the thread's mount namespace at the latest.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("fsm-prog-run-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        mount(
            Path::new("none"),
            Path::new("/"),
            None,
            libc::MS_REC | libc::MS_PRIVATE,
        );
        mount(Path::new("bpf"), &dir, Some("bpf"), 0);
        Self(dir)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let path = c_string(&self.0);
        // SAFETY: a string that ends with zero.
        let _ = unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        let _ = fs::remove_dir(&self.0);
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without zeros")
}

fn mount(source: &Path, target: &Path, kind: Option<&str>, flags: libc::c_ulong) {
    let (from, at) = (c_string(source), c_string(target));
    let kind = kind.map(|kind| CString::new(kind).expect("without zeros"));
    let kind = kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr());
    // SAFETY: strings that end with zero, or null where the kernel wants none.
    let result = unsafe { libc::mount(from.as_ptr(), at.as_ptr(), kind, flags, std::ptr::null()) };
    assert_eq!(
        result,
        0,
        "mount on {}: {}",
        target.display(),
        io::Error::last_os_error()
    );
}

impl Node {
    fn new(flows: u32) -> Self {
        // SAFETY: takes no arguments.
        let user = unsafe { libc::geteuid() };
        assert_eq!(
            user, 0,
            "prog_run loads eBPF programs and makes namespaces: run it as root"
        );
        // SAFETY: for this thread only, which is the test's own.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
        let bpffs = Bpffs::mount();
        let mut objects =
            Objects::load(&pin_dir(&bpffs.0), Sizes { flows }).unwrap_or_else(|e| panic!("{e}"));
        let maps = Maps::open(&bpffs.0).unwrap_or_else(|e| panic!("{e}"));
        let csum_ipv6_flag = objects.csum_ipv6_flag().unwrap();
        let mut node = Self {
            maps,
            objects,
            arrived_on: 0,
            bpffs,
        };
        node.maps
            .apply_settings(|settings| {
                (settings.ipv4, settings.ipv6) = (flags::DEFAULT, flags::DEFAULT);
                settings.fail_open = 1;
                settings.csum_ipv6_flag = csum_ipv6_flag;
            })
            .unwrap();
        node.device(LO, role::ENDPOINT, 0);
        node
    }

    /// The folder of the pins.
    pub fn pins(&self) -> PathBuf {
        pin_dir(&self.bpffs.0)
    }

    /// Makes a device known; its MAC is 02:00:00:00:01 and its number.
    pub fn device(&mut self, ifindex: u32, role: u8, flags: u8) {
        let entry = IfaceEntry {
            ifindex,
            mtu: 1500,
            mac: mac(ifindex),
            role,
            flags,
        };
        self.maps
            .iface
            .set(ifindex % IFACE_SLOTS, entry, 0)
            .unwrap();
    }

    /// What a frame at `hook` of a device becomes, and everything that was counted meanwhile.
    pub fn run(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Seen {
        let (reasons, cells, flows) = (self.reasons(), self.cells(), self.flows());
        let (action, after, mark) = self.raw(hook, ifindex, frame);
        let counted: Vec<Reason> = Reason::ALL
            .iter()
            .zip(reasons.iter().zip(self.reasons()))
            .flat_map(|(&reason, (before, after))| {
                vec![reason; usize::try_from(after - before).unwrap()]
            })
            .collect();
        let verdict = self.verdict(hook, ifindex, frame, &cells);
        let (now, mut flow) = (self.flows(), None);
        for (tuple, entry) in &now {
            let old = flows.get(tuple);
            let (packets, bytes) = old.map_or((0, 0), |old| (old.packets, old.bytes));
            if (entry.packets, entry.bytes) != (packets, bytes) {
                assert_eq!(flow.replace(tuple.clone()), None, "counted in two flows");
                assert_eq!(
                    (entry.packets, entry.bytes, entry.ifindex),
                    (packets + 1, bytes + frame.len() as u64, ifindex),
                    "one packet, its bytes, by the device's own hook: {tuple}"
                );
            }
        }
        let made = now
            .keys()
            .filter(|tuple| !flows.contains_key(*tuple))
            .count();
        let gone = flows
            .keys()
            .filter(|tuple| !now.contains_key(*tuple))
            .count();
        Seen {
            hook,
            before: frame.to_vec(),
            action,
            frame: after,
            mark,
            verdict,
            reasons: counted,
            flow,
            made,
            gone,
        }
    }

    /// The verdict counted: exactly one frame with all its bytes in one cell of the device's block.
    fn verdict(&self, hook: Hook, ifindex: u32, frame: &[u8], before: &[Cell]) -> Option<Verdict> {
        let changed: Vec<(usize, usize, usize, Count)> = self
            .cells()
            .into_iter()
            .zip(before)
            .filter(|(now, then)| now != *then)
            .map(|((slot, hook, verdict, now), (_, _, _, then))| {
                let more = Count {
                    packets: now.packets - then.packets,
                    bytes: now.bytes - then.bytes,
                };
                (slot, hook, verdict, more)
            })
            .collect();
        let &[(slot, counted_hook, verdict, count)] = changed.as_slice() else {
            assert!(changed.is_empty(), "counted more than once: {changed:?}");
            return None;
        };
        assert_eq!(
            self.maps.iface.get(&(slot as u32), 0).unwrap().ifindex,
            ifindex,
            "another device's block"
        );
        assert_eq!(counted_hook, hook.counter(), "another hook's counter");
        assert_eq!((count.packets, count.bytes), (1, frame.len() as u64));
        Some(Verdict::ALL[verdict])
    }

    /// The test run alone: action, frame and mark afterwards.
    pub fn raw(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> (i32, Vec<u8>, u32) {
        let mut out = vec![0; frame.len() + 256];
        let word = |context: &mut [u8], at: usize, value: u32| {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        if hook == Hook::Xdp {
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
            let mut context = [0; 24];
            word(&mut context, 4, frame.len() as u32);
            word(&mut context, 12, ifindex);
            let result = self
                .objects
                .xdp(program::XDP)
                .test_run(TestRunOptions {
                    data_in: Some(frame),
                    data_out: Some(&mut out),
                    ctx_in: (ifindex != LO).then_some(&context),
                    ..TestRunOptions::new()
                })
                .unwrap_or_else(|e| panic!("test run on {ifindex}: {e:?}"));
            out.truncate(result.data_size_out as usize);
            return (result.return_value as i32, out, 0);
        }
        // struct __sk_buff: mark at 8, ingress_ifindex at 36, ifindex at 40
        let (mut context, mut context_out) = ([0; 192], [0; 192]);
        let arrived_on = if hook == Hook::TcIn {
            ifindex
        } else {
            self.arrived_on
        };
        word(&mut context, 36, arrived_on);
        word(&mut context, 40, ifindex);
        let name = if hook == Hook::TcIn {
            program::TC_INGRESS
        } else {
            program::TC_EGRESS
        };
        let result = self
            .objects
            .tc(name)
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|e| panic!("test run on {ifindex}: {e:?}"));
        out.truncate(result.data_size_out as usize);
        let mark = u32::from_ne_bytes([
            context_out[8],
            context_out[9],
            context_out[10],
            context_out[11],
        ]);
        (result.return_value as i32, out, mark)
    }

    fn reasons(&self) -> Vec<u64> {
        self.maps
            .reasons()
            .unwrap()
            .into_iter()
            .map(|(_, count)| count)
            .collect()
    }

    /// Every packet counter of every device.
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for slot in 0..IFACE_SLOTS {
            let cpus = self.maps.ifstats.get(&slot, 0).unwrap();
            for hook in 0..3 {
                for verdict in 0..5 {
                    let counts = || cpus.iter().map(|stats| stats.counts[hook][verdict]);
                    let packets = counts().map(|count| count.packets).sum();
                    let bytes = counts().map(|count| count.bytes).sum();
                    cells.push((slot as usize, hook, verdict, Count { packets, bytes }));
                }
            }
        }
        cells
    }

    /// All flow entries of both families, by tuple as [`tuple`] writes it.
    pub fn flows(&self) -> BTreeMap<String, Entry> {
        let v4 = self.maps.flow4.iter().map(|entry| view(entry.unwrap()));
        let v6 = self.maps.flow6.iter().map(|entry| view(entry.unwrap()));
        v4.chain(v6).collect()
    }
}

/// Slot, hook, verdict, count.
type Cell = (usize, usize, usize, Count);

/// MAC of a device of the tests.
pub fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex as u8]
}

fn view<A: Address>((key, flow): (FlowKey<A>, Flow<A>)) -> (String, Entry) {
    let entry = Entry {
        packets: flow.packets,
        bytes: flow.bytes,
        to: text(&flow.translated(&key)),
        pair: text(&flow.pair_key(&key)),
        nf: flow.nf,
        tcp: flow.tcp,
        ifindex: flow.ifindex,
        generation: flow.generation,
        redirect: flow.redirect(),
    };
    (text(&key), entry)
}

fn text<A: Address>(key: &FlowKey<A>) -> String {
    let socket = |addr: A, port| {
        let wide = addr.widen();
        let addr = if size_of::<A>() == 4 {
            std::net::IpAddr::from([wide[0], wide[1], wide[2], wide[3]])
        } else {
            wide.into()
        };
        std::net::SocketAddr::new(addr, u16::from_be_bytes(port))
    };
    let proto = match key.proto {
        6 => "tcp",
        17 => "udp",
        other => return format!("{other} {key:?}"),
    };
    format!(
        "{proto} {} > {}",
        socket(key.saddr, key.sport),
        socket(key.daddr, key.dport)
    )
}
