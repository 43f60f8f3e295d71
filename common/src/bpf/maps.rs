//! The kernel's side of the maps in [`crate::maps`], and how the shared logic reads them.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, XskMap},
};

use crate::{
    escalate::{Escalated, Judged, MAX_WORKERS, WorkerWord},
    flow::{Address, Family, Flow, FlowKey, V4, V6},
    for_each_map,
    guard::{Bucket, Buckets, GuardKey},
    maps::*,
    nat::{NatKey, NatTables, NatValue},
    policy::{
        Acl4Key, Acl6Key, AclTables, AclValue, AclWord, Cidr4Key, Cidr6Key, CidrRules, CidrValue,
        acl, kind, tag_of, tag_of6,
    },
    scratch::Scratch,
    stats::IfaceStats,
    track::State,
};

macro_rules! statics {
    ($($ident:ident $name:literal $kind:ident<$key:ty, $value:ty> $entries:expr, $flags:expr;)+) => {
        $(statics!(@ $ident $name $kind $key, $value, $entries, $flags);)+
    };
    (@ $i:ident $n:literal Array $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: Array<$v> = Array::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal ProgramArray $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: ProgramArray = ProgramArray::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal XskMap $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: XskMap = XskMap::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal PerCpuArray $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: PerCpuArray<$v> = PerCpuArray::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal HashMap $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: HashMap<$k, $v> = HashMap::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal LruHashMap $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: LruHashMap<$k, $v> = LruHashMap::with_max_entries($e, $f);
    };
    (@ $i:ident $n:literal LpmTrie $k:ty, $v:ty, $e:expr, $f:expr) => {
        #[doc = $n]
        #[map(name = $n)]
        pub static $i: LpmTrie<LpmData<{ size_of::<$k>() - 4 }>, $v> = LpmTrie::with_max_entries($e, $f);
    };
}
for_each_map!(statics);

/// What follows the prefix length in a trie's key.
type LpmData<const N: usize> = [u8; N];
/// aya's key type, of the same layout as [`Cidr4Key`] (N = 4) and [`Cidr6Key`] (N = 20).
type LpmKey<const N: usize> = aya_ebpf::maps::lpm_trie::Key<LpmData<N>>;

const _: () = assert!(
    size_of::<LpmKey<4>>() == size_of::<Cidr4Key>()
        && size_of::<LpmKey<20>>() == size_of::<Cidr6Key>()
);

/// The maps of one address family.
pub trait Tables: Family {
    /// The type's only value.
    const ITSELF: Self;
    /// A flow key in whole words ([`packed4`]): made once for a packet that asks both tables.
    type Packed;
    /// Makes it.
    fn pack(key: &FlowKey<Self::Addr>) -> Self::Packed;
    /// [`Tables::flow`] of a packed key.
    fn flow_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>>;
    /// [`Tables::half`] of a packed key.
    fn half_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>>;
    /// Entry of this tuple. The pointer stays readable until the program ends. An entry removed meanwhile
    /// may be another flow's; only what has been idle for its whole timeout, or is flushed, is removed.
    #[inline(always)]
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>> {
        Self::flow_at(&Self::pack(key))
    }
    /// Inserts or replaces (flags as `bpf_map_update_elem`).
    fn insert(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>, flags: u64) -> Result<(), i32>;
    /// Removes.
    fn remove(key: &FlowKey<Self::Addr>);
    /// Entry in the small table of half-open and one-way flows. It may be evicted and become another
    /// flow's at any moment: see [`super::half`].
    #[inline(always)]
    fn half(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>> {
        Self::half_at(&Self::pack(key))
    }
    /// Entry in either table.
    #[inline(always)]
    fn find(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>> {
        let key = Self::pack(key);
        Self::flow_at(&key).or_else(|| Self::half_at(&key))
    }
    /// Inserts or replaces in the small table.
    fn half_insert(
        key: &FlowKey<Self::Addr>,
        flow: &Flow<Self::Addr>,
        flags: u64,
    ) -> Result<(), i32>;
    /// Removes from the small table.
    fn half_remove(key: &FlowKey<Self::Addr>);
    /// What a worker said of a direction with this tuple.
    fn verdict(key: &FlowKey<Self::Addr>) -> Option<&Judged>;
    /// Forgets it.
    fn verdict_remove(key: &FlowKey<Self::Addr>);
    /// Work space of this CPU.
    fn scratch() -> Option<*mut Scratch<Self::Addr>>;
    /// What the entry of an address and port says of a protocol's [`crate::policy::class`]; by a call, or `INLINE`.
    fn acl<const INLINE: bool>(policy: u32, addr: &Self::Addr, port: [u8; 2], class: u32) -> u8;
    /// Entry of the longest CIDR.
    fn cidr(addr: &Self::Addr) -> Option<&CidrValue>;
    /// Bits of [`skip`] for the longest excluded CIDR.
    fn skip(policy: u32, addr: &Self::Addr) -> u8;
    /// This family's flags.
    fn flags(cfg: &Xcfg) -> u64;
}

impl Tables for V4 {
    const ITSELF: Self = Self;

    type Packed = Packed<2>;

    #[inline(always)]
    fn pack(key: &FlowKey<Self::Addr>) -> Self::Packed {
        packed4(key)
    }

    #[inline(always)]
    fn flow_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>> {
        FSM_XFLOW.get_ptr_mut(key.as_key::<FlowKey<Self::Addr>>())
    }

    #[inline(always)]
    fn half_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>> {
        FSM_HALF.get_ptr_mut(key.as_key::<FlowKey<Self::Addr>>())
    }

    #[inline(always)]
    fn insert(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>, flags: u64) -> Result<(), i32> {
        FSM_XFLOW.insert(key, flow, flags)
    }

    #[inline(always)]
    fn remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_XFLOW.remove(key);
    }

    #[inline(always)]
    fn half_insert(
        key: &FlowKey<Self::Addr>,
        flow: &Flow<Self::Addr>,
        flags: u64,
    ) -> Result<(), i32> {
        FSM_HALF.insert(key, flow, flags)
    }

    #[inline(always)]
    fn half_remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_HALF.remove(key);
    }

    #[inline(always)]
    fn verdict(key: &FlowKey<Self::Addr>) -> Option<&Judged> {
        // SAFETY: map value, readable until the program ends; what it says is compared with the flow's own.
        unsafe { FSM_VERDICT.get(Self::pack(key).as_key::<FlowKey<Self::Addr>>()) }
    }

    #[inline(always)]
    fn verdict_remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_VERDICT.remove(key);
    }

    #[inline(always)]
    fn scratch() -> Option<*mut Scratch<Self::Addr>> {
        FSM_SCRATCH4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn acl<const INLINE: bool>(policy: u32, addr: &Self::Addr, port: [u8; 2], class: u32) -> u8 {
        let key = Acl4Key {
            addr: *addr,
            port,
            proto: 0,
            sys: sys::MESH,
        };
        if INLINE {
            find4(key.word(), policy, class)
        } else {
            said4(key.word(), policy, class) as u8
        }
    }

    #[inline(always)]
    fn cidr(addr: &Self::Addr) -> Option<&CidrValue> {
        FSM_CIDR4.get(lpm4(addr).as_aya())
    }

    #[inline(always)]
    fn skip(policy: u32, addr: &Self::Addr) -> u8 {
        FSM_SKIP4
            .get(lpm4(addr).as_aya())
            .map_or(0, |skip| skip.at(policy))
    }

    #[inline(always)]
    fn flags(cfg: &Xcfg) -> u64 {
        cfg.ipv4
    }
}

impl Tables for V6 {
    const ITSELF: Self = Self;

    type Packed = Packed<5>;

    #[inline(always)]
    fn pack(key: &FlowKey<Self::Addr>) -> Self::Packed {
        packed6(key)
    }

    #[inline(always)]
    fn flow_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>> {
        FSM_XFLOW6.get_ptr_mut(key.as_key::<FlowKey<Self::Addr>>())
    }

    #[inline(always)]
    fn half_at(key: &Self::Packed) -> Option<*mut Flow<Self::Addr>> {
        FSM_HALF6.get_ptr_mut(key.as_key::<FlowKey<Self::Addr>>())
    }

    #[inline(always)]
    fn insert(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>, flags: u64) -> Result<(), i32> {
        FSM_XFLOW6.insert(key, flow, flags)
    }

    #[inline(always)]
    fn remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_XFLOW6.remove(key);
    }

    #[inline(always)]
    fn half_insert(
        key: &FlowKey<Self::Addr>,
        flow: &Flow<Self::Addr>,
        flags: u64,
    ) -> Result<(), i32> {
        FSM_HALF6.insert(key, flow, flags)
    }

    #[inline(always)]
    fn half_remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_HALF6.remove(key);
    }

    #[inline(always)]
    fn verdict(key: &FlowKey<Self::Addr>) -> Option<&Judged> {
        // SAFETY: map value, readable until the program ends; what it says is compared with the flow's own.
        unsafe { FSM_VERDICT6.get(Self::pack(key).as_key::<FlowKey<Self::Addr>>()) }
    }

    #[inline(always)]
    fn verdict_remove(key: &FlowKey<Self::Addr>) {
        let _ = FSM_VERDICT6.remove(key);
    }

    #[inline(always)]
    fn scratch() -> Option<*mut Scratch<Self::Addr>> {
        FSM_SCRATCH6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn acl<const INLINE: bool>(policy: u32, addr: &Self::Addr, port: [u8; 2], class: u32) -> u8 {
        let key = Acl6Key {
            addr: *addr,
            port,
            proto: 0,
            sys: sys::MESH,
            pad: [0; 4],
        };
        let [a, b, c] = key.words();
        if INLINE {
            find6([a, b, c], policy, class)
        } else {
            said6(a, b, c, policy, class) as u8
        }
    }

    #[inline(always)]
    fn cidr(addr: &Self::Addr) -> Option<&CidrValue> {
        FSM_CIDR6.get(lpm6(addr).as_aya())
    }

    #[inline(always)]
    fn skip(policy: u32, addr: &Self::Addr) -> u8 {
        FSM_SKIP6
            .get(lpm6(addr).as_aya())
            .map_or(0, |skip| skip.at(policy))
    }

    #[inline(always)]
    fn flags(cfg: &Xcfg) -> u64 {
        cfg.ipv6
    }
}

/// A key in whole words. LLVM stores a struct's fields one by one, and what is stored in bytes and then
/// hashed in words has to wait for the stores to reach the cache: 10 to 20 ns a look-up.
#[repr(transparent)]
pub struct Packed<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Packed<WORDS> {
    #[inline(always)]
    fn as_key<K>(&self) -> &K {
        const { assert!(size_of::<K>() == size_of::<Self>() && align_of::<K>() <= 8) };
        // SAFETY: same size, alignment not larger; keys are plain bytes.
        unsafe { &*(&raw const *self).cast() }
    }
}

#[inline(always)]
const fn bytes8(a: [u8; 4], b: [u8; 4]) -> [u8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

#[inline(always)]
fn packed4(key: &FlowKey<[u8; 4]>) -> Packed<2> {
    let addrs = u64::from_ne_bytes(bytes8(key.saddr, key.daddr));
    Packed([addrs, tail(key.sport, key.dport, key.proto)])
}

#[inline(always)]
fn packed6(key: &FlowKey<[u8; 16]>) -> Packed<5> {
    let ([s1, s2], [d1, d2]) = (halves(key.saddr), halves(key.daddr));
    Packed([s1, s2, d1, d2, tail(key.sport, key.dport, key.proto)])
}

/// Ports, protocol and three zeros, of numbers: from bytes, LLVM makes loads that stand across fields.
#[inline(always)]
fn tail(sport: [u8; 2], dport: [u8; 2], proto: u8) -> u64 {
    let (s, d) = (u16::from_ne_bytes(sport), u16::from_ne_bytes(dport));
    (u64::from(s) | u64::from(d) << 16 | u64::from(proto) << 32).to_le()
}

#[inline(always)]
fn halves(a: [u8; 16]) -> [u64; 2] {
    [
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
        u64::from_ne_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
    ]
}

/// [`find4`] as a subprogram, given values. Inlined into TC's programs the look-ups slow the way of an established
/// packet, which does not come here, by 7 ns; XDP's programs are shorter, and what they deny is saved the call.
#[inline(never)]
fn said4(word: u64, policy: u32, class: u32) -> u32 {
    find4(word, policy, class).into()
}

/// [`find6`] as a subprogram.
#[inline(never)]
fn said6(a: u64, b: u64, c: u64, policy: u32, class: u32) -> u32 {
    find6([a, b, c], policy, class).into()
}

/// [`said`] of `fsm_xacl`.
#[inline(always)]
fn find4(word: u64, policy: u32, class: u32) -> u8 {
    let (key, tag) = (Packed([word]), tag_of(word));
    let look = || FSM_XACL.get_ptr(key.as_key::<Acl4Key>());
    said(look, tag, policy, class)
}

/// [`said`] of `fsm_xacl6`.
#[inline(always)]
fn find6(words: [u64; 3], policy: u32, class: u32) -> u8 {
    let (key, tag) = (Packed(words), tag_of6(words));
    let look = || FSM_XACL6.get_ptr(key.as_key::<Acl6Key>());
    said(look, tag, policy, class)
}

/// What the ACL entry that `look` finds says. Without preallocation a replaced entry stays readable, but the
/// kernel gives its memory to the next key that user space writes: then the tag is another, and what has taken
/// the entry's place is looked up.
#[inline(always)]
fn said(look: impl Fn() -> Option<*const AclValue>, tag: u16, policy: u32, class: u32) -> u8 {
    for _ in 0..2 {
        let Some(value) = look() else {
            return acl::SILENT;
        };
        // SAFETY: a map value's first eight bytes, aligned; in one load, so that they belong together.
        let word = AclWord(unsafe { value.cast::<u64>().read_volatile() });
        if word.tag() == tag {
            return word.verdict(policy, class);
        }
    }
    acl::DENY
}

/// What a CIDR's rules say. A set lives for as long as a program may have found its number.
#[inline(always)]
fn said_of_cidr(value: Option<&CidrValue>, policy: u32, proto: u8, port: u16) -> u8 {
    let Some(value) = value else {
        return acl::SILENT;
    };
    let rule = value.at(policy);
    if rule.acl != acl::SET {
        return rule.verdict(proto, port);
    }
    let number = rule.number();
    // SAFETY: removed only after every program that may have found its number has ended.
    let rules: Option<&CidrRules> = unsafe { FSM_CIDR_SET.get(&number) };
    match rules {
        Some(rules) => rules.verdict(proto, port),
        None => acl::SILENT,
    }
}

#[inline(always)]
const fn lpm4(addr: &[u8; 4]) -> Cidr4Key {
    Cidr4Key {
        prefix_len: 32,
        addr: *addr,
    }
}

#[inline(always)]
const fn lpm6(addr: &[u8; 16]) -> Cidr6Key {
    Cidr6Key {
        prefix_len: 128,
        addr: *addr,
        pad: [0; 4],
    }
}

impl Cidr4Key {
    #[inline(always)]
    fn as_aya(&self) -> &LpmKey<4> {
        // SAFETY: same size (asserted), both plain bytes, aya's has the smaller alignment.
        unsafe { &*(&raw const *self).cast() }
    }
}

impl Cidr6Key {
    #[inline(always)]
    fn as_aya(&self) -> &LpmKey<20> {
        // SAFETY: as above.
        unsafe { &*(&raw const *self).cast() }
    }
}

/// The ACL maps of a family under one policy, for [`crate::policy::decide`].
pub struct Acl<'a, const INLINE: bool>(pub &'a Xcfg);

impl<F: Tables, const INLINE: bool> AclTables<F::Addr> for (Acl<'_, INLINE>, F)
where
    F::Addr: Address,
{
    #[inline(always)]
    fn exact(&self, addr: &F::Addr, port: [u8; 2], class: u32) -> u8 {
        F::acl::<INLINE>(self.0.0.policy, addr, port, class)
    }

    #[inline(always)]
    fn cidr(&self, addr: &F::Addr, proto: u8, port: u16) -> u8 {
        said_of_cidr(F::cidr(addr), self.0.0.policy, proto, port)
    }

    #[inline(always)]
    fn kinds(&self) -> u32 {
        let kinds = self.0.0.acl_kinds;
        if F::V6 {
            kinds >> kind::V6_SHIFT
        } else {
            kinds
        }
    }
}

/// The NAT map, for [`crate::nat::lookup`].
pub struct Nat;

impl NatTables for Nat {
    type Entry = *mut NatValue;

    #[inline(always)]
    fn entry(&self, key: &NatKey) -> Option<*mut NatValue> {
        FSM_XNAT.get_ptr_mut(key)
    }
}

/// The buckets of one protocol, for [`crate::guard::lookup`].
pub struct Guard<F> {
    /// The protocol.
    pub proto: u8,
    /// Its family.
    pub family: F,
}

impl<F: Tables> Buckets<F::Addr> for Guard<F> {
    type Entry = *mut Bucket;

    #[inline(always)]
    fn bucket(&self, addr: F::Addr, port: [u8; 2]) -> Option<*mut Bucket> {
        let [front, back] = if F::V6 {
            halves(addr.widen())
        } else {
            [u64::from_ne_bytes(bytes8(addr.head(), [0; 4])), 0]
        };
        let tail = bytes8([port[0], port[1], self.proto, F::V6 as u8], [0; 4]);
        let packed = Packed([front, back, u64::from_ne_bytes(tail)]);
        FSM_GUARD.get_ptr_mut(packed.as_key::<GuardKey>())
    }
}

/// The settings in force. Once a packet: a second call may answer with newer ones. What they say does not change
/// while the program runs, since user space waits for it before it writes to them again.
#[inline(always)]
pub fn xcfg() -> Option<&'static Xcfg> {
    let all = FSM_XCFG.get(u32::from(sys::MESH))?;
    // SAFETY: a field of a map value; read once, since it may change.
    let active = unsafe { (&raw const all.active).read_volatile() };
    Some(&all.slots[(active & 1) as usize])
}

/// The settings that the program which called has handed over ([`Scratch::cfg`]).
#[inline(always)]
pub fn xcfg_at(slot: u64) -> Option<&'static Xcfg> {
    Some(&FSM_XCFG.get(u32::from(sys::MESH))?.slots[(slot & 1) as usize])
}

/// Bits of [`skip`] for a port.
#[inline(always)]
pub fn skip_port(policy: u32, port: u16) -> u8 {
    FSM_SKIP_PORT.get(u32::from(port)).map_or(0, |skip| {
        // SAFETY: eight aligned bytes of a map value, read at once, since user space writes in place.
        let word = unsafe { (&raw const *skip).cast::<u64>().read_volatile() };
        let skip = Skip {
            from: word as u32,
            now: (word >> 32) as u8,
            was: (word >> 40) as u8,
            pad: [0; 2],
        };
        skip.at(policy)
    })
}

/// Nanoseconds for which a flow in this state may be idle.
#[inline(always)]
pub fn timeout_ns(state: State) -> u64 {
    match FSM_TIMEOUT.get(state as u32) {
        Some(&ns) if ns != 0 => ns,
        _ => u64::MAX,
    }
}

/// The entry of an interface and its slot in `fsm_ifstats`.
#[inline(always)]
pub fn iface(ifindex: u32) -> Option<(u32, &'static IfaceEntry)> {
    for probe in 0..IFACE_PROBES {
        let slot = (ifindex + probe) & (IFACE_SLOTS - 1);
        let entry = FSM_IFACE.get(slot)?;
        if entry.ifindex == ifindex {
            return Some((slot, entry));
        }
    }
    None
}
