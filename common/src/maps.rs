//! Every map: name, kind, key, value, size, flags. The kernel side (`bpf::maps`), the loader, the pin
//! check and the tests are all generated from this list.

use crate::{
    escalate::{Escalated, Judged, MAX_WORKERS, WorkerWord},
    flow::{Flow, FlowKey},
    guard::{Bucket, GuardKey},
    nat::{NatKey, NatValue},
    policy::{Acl4Key, Acl6Key, AclValue, Cidr4Key, Cidr6Key, CidrRules, CidrValue, is_before},
    scratch::Scratch,
    shared,
    stats::IfaceStats,
};

/// Version of all layouts below; part of the pin directory's name. Goes up with each change.
pub const LAYOUT: u32 = 1;

/// The seed's system numbers.
pub mod sys {
    /// App interception.
    pub const MESH: u8 = 1;
    /// A node's external L4 load balancer.
    pub const E4LB: u8 = 2;
}

/// Value of [`IfaceEntry::role`].
pub mod role {
    /// Faces the network.
    pub const UPLINK: u8 = 1;
    /// Faces one app: the host side of its veth.
    pub const ENDPOINT: u8 = 2;
}

/// Bits of [`IfaceEntry::flags`].
pub mod iface_flag {
    /// `bpf_redirect_peer` may be used: a veth or netkit whose peer is in another namespace.
    pub const PEER: u8 = 1;
    /// Frames redirected by XDP arrive: the far end has NAPI running.
    pub const XDP_TX: u8 = 2;
    /// Redirecting past the stack is switched on (`[forward] same_node`).
    pub const REDIRECT: u8 = 4;
    /// For user space: GRO of the far end was switched on by us, to be switched off again.
    pub const GRO_SET: u8 = 8;
    /// For user space: the clsact qdisc was made by us, to be removed again.
    pub const CLSACT_SET: u8 = 16;
    /// XDP here hands frames to the workers: it is native, and checksums are finished.
    pub const ESCALATE: u8 = 32;
    /// Native XDP here sees frames whose checksums a card was to finish: a veth whose far end leaves that to it. It
    /// sends none past the stack.
    pub const UNFINISHED: u8 = 64;
}

/// Bits of `fsm_skip_port`.
pub mod skip {
    /// What apps receive on this port is not steered.
    pub const INBOUND: u8 = 1;
    /// What apps send to this port is not steered.
    pub const OUTBOUND: u8 = 2;
}

/// Bits of [`Xcfg::features`]: which look-ups can hit at all.
pub mod feature {
    /// `fsm_skip_port` has entries.
    pub const SKIP_PORT: u32 = 1;
    /// `fsm_skip4` has entries.
    pub const SKIP_CIDR4: u32 = 2;
    /// `fsm_skip6` has entries.
    pub const SKIP_CIDR6: u32 = 4;
    /// `fsm_xnat` has entries of [`sys::E4LB`](super::sys::E4LB); their flags are the mesh's.
    pub const E4LB: u32 = 8;
    /// Flows are inspected: those that the ACL audits, of what apps send and receive.
    pub const INSPECT: u32 = 16;
    /// Trusted ones too, and this host's own.
    pub const INSPECT_ALL: u32 = 32;
    /// Workers get copies, and packets never wait for them.
    pub const INSPECT_COPY: u32 = 64;
}

/// Bit of `skb->mark` on a packet that the app's device sent back to the gateway; cleared on arrival. Also on
/// one that a load balancer's entry has sent on; cleared where it leaves.
pub const MARK_REINJECTED: u32 = 0x4000_0000;
/// Entries of `fsm_iface` and `fsm_ifstats`; a power of two.
pub const IFACE_SLOTS: u32 = 1024;
/// Entries of `fsm_timeout`: nanoseconds that a flow may be idle, by [`crate::track::State`].
pub const TIMEOUT_SLOTS: u32 = 16;
/// An interface is found at `ifindex % IFACE_SLOTS` or one of the next slots, this many in all.
pub const IFACE_PROBES: u32 = 4;

shared! {
    /// Value of `fsm_xcfg`, indexed by [`sys`]: the settings in force, and a place for the next ones. A change is
    /// written to the place that no program looks at, then one byte moves all of it into force at once.
    pub struct Xcfgs {
        /// Which of the two is in force: 0 or 1.
        pub active: u64,
        /// The two.
        pub slots: [Xcfg; 2],
    }

    /// Settings: never changed while a program may read them. The first two fields are the seed's.
    pub struct Xcfg {
        /// Flags for IPv4.
        pub ipv4: u64,
        /// Flags for IPv6.
        pub ipv6: u64,
        /// Policy generation: goes up with each change of ACL, NAT, flags or routes.
        pub generation: u32,
        /// Version of the entries of ACL and exclusions: goes up with each change of rules.
        pub policy: u32,
        /// Bits of [`crate::policy::kind`].
        pub acl_kinds: u32,
        /// Bits of [`crate::nat::kind`].
        pub nat_kinds: u32,
        /// Bits of [`feature`].
        pub features: u32,
        /// 1: flows that cannot be judged pass; 0: they are dropped.
        pub fail_open: u32,
        /// Kernel ≥ 6.16 wants BPF_F_IPV6 in `bpf_l4_csum_replace`; its value there, else 0.
        pub csum_ipv6_flag: u32,
        /// Bits of [`crate::nat::kind`] for entries of [`sys::E4LB`].
        pub balance_kinds: u32,
        /// A flow that was idle for longer than this may be over: the shortest timeout, nanoseconds.
        pub idle_check_ns: u64,
        /// Bits of [`crate::nat::kind`] for protected destinations, at [`crate::guard::shift`]; 0: nothing is
        /// protected, and nothing is paid for it.
        pub guard_kinds: u32,
        /// Bits of [`crate::cookie::offer`].
        pub syn_cookie: u32,
        /// [`crate::nat::NatKey::bank`] of the NAT entries in force.
        pub nat_bank: u16,
        /// Its own place in [`Xcfgs::slots`], by which programs hand it on.
        pub slot: u16,
        /// Version of what inspected flows are judged by: a verdict under another one does not count.
        pub dpi_policy: u32,
        /// Device that leads to the workers (`dpi0`), 0 while there are none.
        pub dpi_ifindex: u32,
        /// Workers; at most [`MAX_WORKERS`].
        pub workers: u16,
        /// Bytes of a copied frame that a worker gets; 0: all.
        pub snap: u16,
        /// Bytes of the largest frame that a worker can take.
        pub dpi_frame: u32,
        /// Always zero.
        pub pad: u32,
    }

    /// Value of `fsm_iface`.
    pub struct IfaceEntry {
        /// Interface, or 0 for an empty slot.
        pub ifindex: u32,
        /// Bytes of L3 that it takes.
        pub mtu: u32,
        /// Its own MAC.
        pub mac: [u8; 6],
        /// One of [`role`].
        pub role: u8,
        /// Bits of [`iface_flag`].
        pub flags: u8,
    }

    /// Key of `fsm_xopt`: what the gateway sees. Address and port of the listener are zero where the
    /// flags `*_nat_opt_with_local_*` are off.
    pub struct OriginKey {
        /// Listener's address.
        pub laddr: [u8; 16],
        /// Client's address.
        pub raddr: [u8; 16],
        /// Listener's port, network byte order.
        pub lport: [u8; 2],
        /// Client's port, network byte order.
        pub rport: [u8; 2],
        /// IP protocol.
        pub proto: u8,
        /// 1 for IPv6.
        pub v6: u8,
        /// [`sys`].
        pub sys: u8,
        /// Always zero.
        pub pad: u8,
    }

    /// Value of `fsm_xopt`: the tuple before translation.
    pub struct Origin {
        /// Destination.
        pub daddr: [u8; 16],
        /// Source.
        pub saddr: [u8; 16],
        /// Destination port, network byte order.
        pub dport: [u8; 2],
        /// Source port, network byte order.
        pub sport: [u8; 2],
        /// IP protocol.
        pub proto: u8,
        /// 1 for IPv6.
        pub v6: u8,
        /// Always zero.
        pub pad: [u8; 2],
    }

    /// Key of `fsm_frag`: RFC 791 §3.2, RFC 8200 §4.5.
    pub struct FragmentKey {
        /// Source.
        pub saddr: [u8; 16],
        /// Destination.
        pub daddr: [u8; 16],
        /// Identification, memory order.
        pub id: u32,
        /// IP protocol.
        pub proto: u8,
        /// Always zero.
        pub pad: [u8; 3],
    }

    /// Value of `fsm_frag`.
    pub struct FragmentPorts {
        /// Source port, network byte order.
        pub sport: [u8; 2],
        /// Destination port, network byte order.
        pub dport: [u8; 2],
        /// Always zero.
        pub pad: [u8; 4],
    }

    /// Key of `fsm_vip`: an address of a load balancer on a device. Read and written by user space only.
    pub struct VipKey {
        /// Address, IPv4 in the first four bytes.
        pub addr: [u8; 16],
        /// Device.
        pub ifindex: u32,
        /// 1 for IPv6.
        pub v6: u8,
        /// Always zero.
        pub pad: [u8; 3],
    }

    /// Value of `fsm_vip`.
    pub struct Vip {
        /// 1 where the daemon put the address onto the device, so that it is taken off again.
        pub added: u64,
    }

    /// Value of `fsm_skip_port`, `fsm_skip4` and `fsm_skip6`.
    pub struct Skip {
        /// Version of the policy from which on `now` holds.
        pub from: u32,
        /// Bits of [`skip`] that hold.
        pub now: u8,
        /// Those that held before.
        pub was: u8,
        /// Always zero.
        pub pad: [u8; 2],
    }

    /// Key of `fsm_trip`.
    pub struct TraceIp {
        /// Address.
        pub addr: [u8; 16],
        /// [`sys`].
        pub sys: u32,
        /// Always zero.
        pub pad: u32,
    }

    /// Key of `fsm_trpt`.
    pub struct TracePort {
        /// [`sys`].
        pub sys: u32,
        /// Port, network byte order.
        pub port: [u8; 2],
        /// Always zero.
        pub pad: [u8; 2],
    }

    /// Value of both trace maps.
    pub struct TraceOn {
        /// Trace what arrives at TC ingress.
        pub ingress: u8,
        /// Trace what arrives at TC egress.
        pub egress: u8,
        /// Always zero.
        pub pad: [u8; 6],
    }
}

impl Skip {
    /// The bits of [`skip`] under this version of the policy.
    #[inline(always)]
    pub const fn at(&self, policy: u32) -> u8 {
        if is_before(policy, self.from) {
            self.was
        } else {
            self.now
        }
    }
}

/// Slots of `fsm_prog` and `fsm_prog_xdp`: the programs that judge what has no flow, by tail call. A
/// program of their own each, since the verifier multiplies the ways through a parser with those through
/// a judgement.
pub mod slow {
    /// `fsm_prog`: TC from the device, IPv4.
    pub const INGRESS4: u32 = 0;
    /// `fsm_prog`: TC from the device, IPv6.
    pub const INGRESS6: u32 = 1;
    /// `fsm_prog`: TC to the device, IPv4.
    pub const EGRESS4: u32 = 2;
    /// `fsm_prog`: TC to the device, IPv6.
    pub const EGRESS6: u32 = 3;
    /// `fsm_prog`: ICMP errors.
    pub const ICMP4: u32 = 4;
    /// `fsm_prog`: ICMPv6 errors.
    pub const ICMP6: u32 = 5;
    /// `fsm_prog`: flows of the main table, for which their entry alone does not do; IPv4.
    pub const KNOWN4: u32 = 6;
    /// `fsm_prog`: the same for IPv6.
    pub const KNOWN6: u32 = 7;
    /// `fsm_prog`: flows that end with their endpoint, after a change of policy; IPv4.
    pub const ENDED4: u32 = 8;
    /// `fsm_prog`: the same for IPv6.
    pub const ENDED6: u32 = 9;
    /// `fsm_prog`: inspection, and what the flow says; IPv4.
    pub const FINISH4: u32 = 10;
    /// `fsm_prog`: the same for IPv6.
    pub const FINISH6: u32 = 11;
    /// `fsm_prog`: half-open and one-way flows; IPv4.
    pub const HALF4: u32 = 13;
    /// `fsm_prog`: the same for IPv6.
    pub const HALF6: u32 = 14;
    /// `fsm_prog`: packets that a worker gave back, both families.
    pub const JUDGED: u32 = 12;
    /// `fsm_prog_xdp`: IPv4.
    pub const XDP4: u32 = 0;
    /// `fsm_prog_xdp`: IPv6.
    pub const XDP6: u32 = 1;
    /// `fsm_prog_xdp`: known flows, IPv4.
    pub const XDP_KNOWN4: u32 = 2;
    /// `fsm_prog_xdp`: known flows, IPv6.
    pub const XDP_KNOWN6: u32 = 3;
    /// `fsm_prog_xdp`: SYN cookies, IPv4.
    pub const XDP_COOKIE4: u32 = 4;
    /// `fsm_prog_xdp`: SYN cookies, IPv6.
    pub const XDP_COOKIE6: u32 = 5;
    /// `fsm_prog_xdp`: flows under inspection, IPv4.
    pub const XDP_INSPECT4: u32 = 6;
    /// `fsm_prog_xdp`: flows under inspection, IPv6.
    pub const XDP_INSPECT6: u32 = 7;
}

/// `BPF_F_NO_PREALLOC` (`linux/bpf.h`). Not for the IPv4 flows and origins: allocating their entries one by
/// one takes a third of a new flow's time, and can fail long before the table is full.
pub const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: workers write their words without a system call.
pub const MMAPABLE: u32 = 1 << 10;

/// Calls `$then!` with the list of maps: `NAME "name" Kind<Key, Value> entries flags;`.
#[macro_export]
macro_rules! for_each_map {
    ($then:ident) => {
        $then! {
            FSM_XCFG "fsm_xcfg" Array<u32, Xcfgs> 3, 0;
            FSM_IFACE "fsm_iface" Array<u32, IfaceEntry> IFACE_SLOTS, 0;
            FSM_IFSTATS "fsm_ifstats" PerCpuArray<u32, IfaceStats> IFACE_SLOTS, 0;
            FSM_REASON "fsm_reason" PerCpuArray<u32, u64> 64, 0;
            FSM_XFLOW "fsm_xflow" HashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>> 2097152, 0;
            FSM_XFLOW6 "fsm_xflow6" HashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>> 2097152, NO_PREALLOC;
            FSM_XOPT "fsm_xopt" HashMap<OriginKey, Origin> 1048576, 0;
            FSM_HALF "fsm_half" LruHashMap<FlowKey<[u8; 4]>, Flow<[u8; 4]>> 131072, 0;
            FSM_HALF6 "fsm_half6" LruHashMap<FlowKey<[u8; 16]>, Flow<[u8; 16]>> 131072, 0;
            FSM_XOPT_HALF "fsm_xopt_half" LruHashMap<OriginKey, Origin> 65536, 0;
            FSM_TIMEOUT "fsm_timeout" Array<u32, u64> TIMEOUT_SLOTS, 0;
            FSM_FRAG "fsm_frag" LruHashMap<FragmentKey, FragmentPorts> 8192, 0;
            FSM_XACL "fsm_xacl" HashMap<Acl4Key, AclValue> 2097152, NO_PREALLOC;
            FSM_XACL6 "fsm_xacl6" HashMap<Acl6Key, AclValue> 2097152, NO_PREALLOC;
            FSM_CIDR4 "fsm_cidr4" LpmTrie<Cidr4Key, CidrValue> 2097152, NO_PREALLOC;
            FSM_CIDR6 "fsm_cidr6" LpmTrie<Cidr6Key, CidrValue> 2097152, NO_PREALLOC;
            FSM_CIDR_SET "fsm_cidr_set" HashMap<u32, CidrRules> 262144, NO_PREALLOC;
            FSM_XNAT "fsm_xnat" HashMap<NatKey, NatValue> 32768, NO_PREALLOC;
            FSM_GUARD "fsm_guard" HashMap<GuardKey, Bucket> 16384, NO_PREALLOC;
            FSM_SKIP_PORT "fsm_skip_port" Array<u32, Skip> 65536, 0;
            FSM_SKIP4 "fsm_skip4" LpmTrie<Cidr4Key, Skip> 8192, NO_PREALLOC;
            FSM_SKIP6 "fsm_skip6" LpmTrie<Cidr6Key, Skip> 8192, NO_PREALLOC;
            FSM_SCRATCH4 "fsm_scratch4" PerCpuArray<u32, Scratch<[u8; 4]>> 1, 0;
            FSM_SCRATCH6 "fsm_scratch6" PerCpuArray<u32, Scratch<[u8; 16]>> 1, 0;
            FSM_PROG "fsm_prog" ProgramArray<u32, u32> 16, 0;
            FSM_PROG_XDP "fsm_prog_xdp" ProgramArray<u32, u32> 8, 0;
            FSM_VIP "fsm_vip" HashMap<VipKey, Vip> 1024, NO_PREALLOC;
            FSM_VERDICT "fsm_verdict" LruHashMap<FlowKey<[u8; 4]>, Judged> 131072, 0;
            FSM_VERDICT6 "fsm_verdict6" LruHashMap<FlowKey<[u8; 16]>, Judged> 131072, 0;
            FSM_ESCALATED "fsm_escalated" PerCpuArray<u32, Escalated> 1, 0;
            FSM_WORKER "fsm_worker" Array<u32, WorkerWord> MAX_WORKERS, MMAPABLE;
            FSM_XSK "fsm_xsk" XskMap<u32, u32> MAX_WORKERS, 0;
            FSM_TRIP "fsm_trip" HashMap<TraceIp, TraceOn> 1024, NO_PREALLOC;
            FSM_TRPT "fsm_trpt" HashMap<TracePort, TraceOn> 1024, NO_PREALLOC;
        }
    };
}

/// Kinds of map (`enum bpf_map_type`, `linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// BPF_MAP_TYPE_HASH
    HashMap = 1,
    /// BPF_MAP_TYPE_ARRAY
    Array = 2,
    /// BPF_MAP_TYPE_PROG_ARRAY
    ProgramArray = 3,
    /// BPF_MAP_TYPE_PERCPU_ARRAY
    PerCpuArray = 6,
    /// BPF_MAP_TYPE_LRU_HASH
    LruHashMap = 9,
    /// BPF_MAP_TYPE_LPM_TRIE
    LpmTrie = 11,
    /// BPF_MAP_TYPE_XSKMAP
    XskMap = 17,
}

/// One map, for user space.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Name of the map and of its pin.
    pub name: &'static str,
    /// Kind.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries, unless the configuration says otherwise.
    pub max_entries: u32,
}

macro_rules! specs {
    ($($ident:ident $name:literal $kind:ident<$key:ty, $value:ty> $entries:expr, $flags:expr;)+) => {
        /// All maps.
        pub const MAPS: &[MapSpec] = &[$(MapSpec {
            name: $name,
            kind: MapKind::$kind,
            key_size: size_of::<$key>() as u32,
            value_size: size_of::<$value>() as u32,
            max_entries: $entries,
        },)+];
        /// Names of the maps.
        pub mod name { $(#[doc = $name] pub const $ident: &str = $name;)+ }
    };
}
for_each_map!(specs);
