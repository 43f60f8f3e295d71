//! The kernel's side of the maps in [`crate::maps`], and how the shared logic reads them.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
};

use crate::{
    flow::{Address, Family, Flow, FlowKey, V4, V6},
    for_each_map,
    maps::*,
    nat::{NatKey, NatTables, NatValue},
    policy::{
        Acl4Key, Acl6Key, AclTables, AclValue, AclWord, Cidr4Key, Cidr6Key, CidrRules, CidrValue,
        acl, kind, tag_of, tag_of6,
    },
    scratch::Scratch,
    stats::IfaceStats,
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
    /// Entry of this tuple. The pointer stays readable until the program ends. An entry removed meanwhile
    /// may be another flow's; only what has been idle for its whole timeout, or is flushed, is removed.
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>>;
    /// Inserts or replaces (flags as `bpf_map_update_elem`).
    fn insert(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>, flags: u64) -> Result<(), i32>;
    /// Removes.
    fn remove(key: &FlowKey<Self::Addr>);
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

    #[inline(always)]
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>> {
        FSM_XFLOW.get_ptr_mut(packed4(key).as_key::<FlowKey<[u8; 4]>>())
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

    #[inline(always)]
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*mut Flow<Self::Addr>> {
        FSM_XFLOW6.get_ptr_mut(packed6(key).as_key::<FlowKey<[u8; 16]>>())
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
struct Packed<const WORDS: usize>([u64; WORDS]);

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
    let (s, d) = (key.sport, key.dport);
    Packed([
        u64::from_ne_bytes(bytes8(key.saddr, key.daddr)),
        u64::from_ne_bytes(bytes8([s[0], s[1], d[0], d[1]], [key.proto, 0, 0, 0])),
    ])
}

#[inline(always)]
fn packed6(key: &FlowKey<[u8; 16]>) -> Packed<5> {
    let (s, d) = (key.sport, key.dport);
    let ([s1, s2], [d1, d2]) = (halves(key.saddr), halves(key.daddr));
    let tail = bytes8([s[0], s[1], d[0], d[1]], [key.proto, 0, 0, 0]);
    Packed([s1, s2, d1, d2, u64::from_ne_bytes(tail)])
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
