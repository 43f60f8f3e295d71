//! Frames in, and what became of them and of every counter.

use std::{collections::BTreeMap, path::PathBuf};

use aya::programs::{TestRun as _, TestRunOptions};
use fsm_common::{
    flow::{Address, Flow, FlowKey},
    maps::{IFACE_SLOTS, IfaceEntry},
    reason::Reason,
    stats::{self, Count, IfaceStats, Verdict},
};
use fsm_fastpath::{
    loader::objects::{Objects, program},
    maps::Maps,
};

use super::{
    seen::{Entry, Seen},
    stage::Home,
};

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

/// A node: the programs, loaded over maps of their own in namespaces of their own.
pub struct Node {
    /// The maps, to be filled and read.
    pub maps: Maps,
    /// The programs.
    pub objects: Objects,
    /// Device that a frame came from before it is handed to [`Hook::TcOut`]; 0 for the host itself.
    pub arrived_on: u32,
    /// Mark of the packet that is handed in.
    pub mark: u32,
    /// The folder of the pins.
    pub pins: PathBuf,
    pub(super) home: Home,
}

impl Node {
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
        let (reasons, cells, flows) = (self.reasons(), self.stats(), self.flows());
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
            // An entry that another device takes over starts anew.
            let old = flows
                .get(tuple)
                .filter(|old| old.ifindex == 0 || old.ifindex == entry.ifindex);
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
    fn verdict(
        &self,
        hook: Hook,
        ifindex: u32,
        frame: &[u8],
        before: &[IfaceStats],
    ) -> Option<Verdict> {
        let mut counted = None;
        for (slot, (then, now)) in (0..).zip(before.iter().zip(self.stats())) {
            for (at, (then, now)) in cells(then)
                .zip(cells(&now))
                .enumerate()
                .filter(|(_, (a, b))| a != b)
            {
                let verdict = Verdict::ALL[at % Verdict::ALL.len()];
                assert_eq!(counted.replace(verdict), None, "counted more than once");
                let owner = self.maps.iface.get(&slot, 0).unwrap().ifindex;
                assert_eq!(
                    (owner, at / Verdict::ALL.len()),
                    (ifindex, hook.counter()),
                    "device, hook"
                );
                let more = (now.packets - then.packets, now.bytes - then.bytes);
                assert_eq!(more, (1, frame.len() as u64), "packets, bytes");
            }
        }
        counted
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
        word(&mut context, 8, self.mark);
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

    /// The packet counters of every slot.
    fn stats(&self) -> Vec<IfaceStats> {
        let sum = |slot| {
            let mut sum = IfaceStats::ZERO;
            for stats in self.maps.ifstats.get(&slot, 0).unwrap().iter() {
                for (sum, count) in sum.counts.as_flattened_mut().iter_mut().zip(cells(stats)) {
                    (sum.packets, sum.bytes) =
                        (sum.packets + count.packets, sum.bytes + count.bytes);
                }
            }
            sum
        };
        (0..IFACE_SLOTS).map(sum).collect()
    }

    /// All flow entries of both families and both tables, by tuple as [`text`] writes it.
    pub fn flows(&self) -> BTreeMap<String, Entry> {
        let mut all = self.settled();
        all.extend(self.maps.half4.iter().map(|entry| view(entry.unwrap())));
        all.extend(self.maps.half6.iter().map(|entry| view(entry.unwrap())));
        all
    }

    /// Those of the main table.
    pub fn settled(&self) -> BTreeMap<String, Entry> {
        let v4 = self.maps.flow4.iter().map(|entry| view(entry.unwrap()));
        let v6 = self.maps.flow6.iter().map(|entry| view(entry.unwrap()));
        v4.chain(v6).collect()
    }
}

fn cells(stats: &IfaceStats) -> impl Iterator<Item = &Count> {
    stats.counts.as_flattened().iter()
}

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
        side: flow.side(),
        ifindex: flow.ifindex,
        generation: flow.generation,
        redirect: flow.redirect(),
    };
    (text(&key), entry)
}

/// A tuple as tests write it.
pub fn text<A: Address>(key: &FlowKey<A>) -> String {
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
