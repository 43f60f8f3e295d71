//! The pinned maps, typed: opened from the pins, so that every verb works whether the daemon runs or not.
//!
//! A pin is taken over only if its kind, key and value are those of `fsm_common::maps`; aya itself would
//! adopt anything of that name.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapType, PerCpuArray, lpm_trie::LpmTrie};
use fsm_common::{
    escalate::{Escalated, Judged, WorkerWord},
    flow::{Flow, FlowKey},
    guard::{Bucket, GuardKey},
    maps::{
        IfaceEntry, LAYOUT, MAPS, MapKind, MapSpec, Origin, OriginKey, Skip, TraceIp, TraceOn,
        TracePort, Vip, VipKey, Xcfg, Xcfgs, name, sys,
    },
    nat::{NatKey, NatValue},
    policy::{Acl4Key, Acl6Key, AclValue, Cidr4Key, Cidr6Key, CidrValue},
    stats::IfaceStats,
};

use crate::loader::{bulk::Bulk, sys::wait_for_programs};

/// Index of the settings.
const MESH: u32 = sys::MESH as u32;

/// What can be wrong with the pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Nothing is pinned.
    #[error("nothing is loaded under {0}: start the daemon with `fsm-fastpath --config FILE`")]
    NotLoaded(PathBuf),
    /// A pin that is not ours, or of another version.
    #[error(
        "{path}: another map has this name ({found}; expected {expected}); \
         run `fsm-fastpath down` of the version that made it, or remove the file"
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// The kernel said no.
    #[error("{path}: {source}")]
    Map {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
}

/// Where this layout's pins are, below the configured `node.bpffs`.
pub fn pin_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{LAYOUT}"))
}

/// Compares a pin with what it should be. `Ok(false)`: there is none.
///
/// # Errors
/// [`PinError::Foreign`], or what the kernel said.
pub fn check_pin(dir: &Path, spec: &MapSpec) -> Result<bool, PinError> {
    let path = dir.join(spec.name);
    if !path.exists() {
        return Ok(false);
    }
    let fail = |source| PinError::Map {
        path: path.clone(),
        source,
    };
    let data = MapData::from_pin(&path).map_err(|error| match error {
        // A program or link of that name.
        MapError::SyscallError(_) | MapError::PinError { .. } => PinError::Foreign {
            path: path.clone(),
            found: "not a map".into(),
            expected: describe(spec),
        },
        other => fail(other),
    })?;
    let info = data.info().map_err(fail)?;
    let kind = info.map_type().map_err(fail)?;
    let same = kind == map_type(spec.kind)
        && info.key_size() == spec.key_size
        && info.value_size() == spec.value_size
        && (is_sized(spec.name) || info.max_entries() == spec.max_entries);
    if same {
        return Ok(true);
    }
    Err(PinError::Foreign {
        path: path.clone(),
        found: format!(
            "{kind:?}, key {} bytes, value {} bytes, {} entries",
            info.key_size(),
            info.value_size(),
            info.max_entries()
        ),
        expected: describe(spec),
    })
}

/// Whether the configuration says how many entries the map takes.
fn is_sized(name: &str) -> bool {
    [
        name::FSM_XFLOW,
        name::FSM_XFLOW6,
        name::FSM_XOPT,
        name::FSM_HALF,
        name::FSM_HALF6,
        name::FSM_XOPT_HALF,
    ]
    .contains(&name)
}

fn describe(spec: &MapSpec) -> String {
    let entries = match is_sized(spec.name) {
        true => String::new(),
        false => format!(", {} entries", spec.max_entries),
    };
    format!(
        "{:?}, key {} bytes, value {} bytes{entries}",
        spec.kind, spec.key_size, spec.value_size
    )
}

fn map_type(kind: MapKind) -> MapType {
    match kind {
        MapKind::HashMap => MapType::Hash,
        MapKind::Array => MapType::Array,
        MapKind::ProgramArray => MapType::ProgramArray,
        MapKind::PerCpuArray => MapType::PerCpuArray,
        MapKind::LruHashMap => MapType::LruHash,
        MapKind::LpmTrie => MapType::LpmTrie,
        MapKind::XskMap => MapType::XskMap,
    }
}

/// All maps that user space reads or writes.
pub struct Maps {
    /// The pin directory.
    pub dir: PathBuf,
    /// Settings by system: see [`Maps::settings`].
    pub xcfg: Array<MapData, Xcfgs>,
    /// Interfaces.
    pub iface: Array<MapData, IfaceEntry>,
    /// Packet counters.
    pub ifstats: PerCpuArray<MapData, IfaceStats>,
    /// Reason counters.
    pub reason: PerCpuArray<MapData, u64>,
    /// IPv4 flows.
    pub flow4: HashMap<MapData, FlowKey<[u8; 4]>, Flow<[u8; 4]>>,
    /// IPv6 flows.
    pub flow6: HashMap<MapData, FlowKey<[u8; 16]>, Flow<[u8; 16]>>,
    /// Half-open and one-way IPv4 flows.
    pub half4: HashMap<MapData, FlowKey<[u8; 4]>, Flow<[u8; 4]>>,
    /// Half-open and one-way IPv6 flows.
    pub half6: HashMap<MapData, FlowKey<[u8; 16]>, Flow<[u8; 16]>>,
    /// Original destinations.
    pub xopt: HashMap<MapData, OriginKey, Origin>,
    /// Original destinations of datagrams whose flows are in `half4` and `half6`.
    pub xopt_half: HashMap<MapData, OriginKey, Origin>,
    /// Nanoseconds that a flow may be idle, by state.
    pub timeout: Array<MapData, u64>,
    /// What workers said of IPv4 flows.
    pub verdict4: HashMap<MapData, FlowKey<[u8; 4]>, Judged>,
    /// What workers said of IPv6 flows.
    pub verdict6: HashMap<MapData, FlowKey<[u8; 16]>, Judged>,
    /// When workers were last alive.
    pub worker: Array<MapData, WorkerWord>,
    /// What goes in front of the packet that a CPU is just sending to a worker.
    pub escalated: PerCpuArray<MapData, Escalated>,
    /// IPv4 ACL.
    pub acl4: HashMap<MapData, Acl4Key, AclValue>,
    /// IPv6 ACL.
    pub acl6: HashMap<MapData, Acl6Key, AclValue>,
    /// IPv4 CIDRs.
    pub cidr4: LpmTrie<MapData, [u8; 4], CidrValue>,
    /// IPv6 CIDRs; the last four bytes of a key are zero.
    pub cidr6: LpmTrie<MapData, [u8; 20], CidrValue>,
    /// NAT entries.
    pub xnat: HashMap<MapData, NatKey, NatValue>,
    /// Protected destinations.
    pub guard: HashMap<MapData, GuardKey, Bucket>,
    /// Excluded ports.
    pub skip_port: Array<MapData, Skip>,
    /// Excluded IPv4 CIDRs.
    pub skip4: LpmTrie<MapData, [u8; 4], Skip>,
    /// Excluded IPv6 CIDRs.
    pub skip6: LpmTrie<MapData, [u8; 20], Skip>,
    /// Virtual addresses.
    pub vip: HashMap<MapData, VipKey, Vip>,
    /// Traced addresses.
    pub trip: HashMap<MapData, TraceIp, TraceOn>,
    /// Traced ports.
    pub trpt: HashMap<MapData, TracePort, TraceOn>,
    /// A program may still run that began under other settings than those in force.
    unsettled: bool,
}

const _: () = assert!(size_of::<Cidr4Key>() == 8 && size_of::<Cidr6Key>() == 24);

impl Maps {
    /// Opens the pins below `bpffs`, each compared with its definition.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn open(bpffs: &Path) -> Result<Self, PinError> {
        let dir = pin_dir(bpffs);
        for spec in MAPS {
            if !check_pin(&dir, spec)? {
                return Err(PinError::NotLoaded(dir));
            }
        }
        let at = |name: &str| dir.join(name);
        Ok(Self {
            xcfg: pinned(at(name::FSM_XCFG), Map::Array)?,
            iface: pinned(at(name::FSM_IFACE), Map::Array)?,
            ifstats: pinned(at(name::FSM_IFSTATS), Map::PerCpuArray)?,
            reason: pinned(at(name::FSM_REASON), Map::PerCpuArray)?,
            flow4: pinned(at(name::FSM_XFLOW), Map::HashMap)?,
            flow6: pinned(at(name::FSM_XFLOW6), Map::HashMap)?,
            half4: pinned(at(name::FSM_HALF), Map::LruHashMap)?,
            half6: pinned(at(name::FSM_HALF6), Map::LruHashMap)?,
            xopt: pinned(at(name::FSM_XOPT), Map::HashMap)?,
            xopt_half: pinned(at(name::FSM_XOPT_HALF), Map::LruHashMap)?,
            timeout: pinned(at(name::FSM_TIMEOUT), Map::Array)?,
            verdict4: pinned(at(name::FSM_VERDICT), Map::LruHashMap)?,
            verdict6: pinned(at(name::FSM_VERDICT6), Map::LruHashMap)?,
            worker: pinned(at(name::FSM_WORKER), Map::Array)?,
            escalated: pinned(at(name::FSM_ESCALATED), Map::PerCpuArray)?,
            acl4: pinned(at(name::FSM_XACL), Map::HashMap)?,
            acl6: pinned(at(name::FSM_XACL6), Map::HashMap)?,
            cidr4: pinned(at(name::FSM_CIDR4), Map::LpmTrie)?,
            cidr6: pinned(at(name::FSM_CIDR6), Map::LpmTrie)?,
            xnat: pinned(at(name::FSM_XNAT), Map::HashMap)?,
            guard: pinned(at(name::FSM_GUARD), Map::HashMap)?,
            skip_port: pinned(at(name::FSM_SKIP_PORT), Map::Array)?,
            skip4: pinned(at(name::FSM_SKIP4), Map::LpmTrie)?,
            skip6: pinned(at(name::FSM_SKIP6), Map::LpmTrie)?,
            vip: pinned(at(name::FSM_VIP), Map::HashMap)?,
            trip: pinned(at(name::FSM_TRIP), Map::HashMap)?,
            trpt: pinned(at(name::FSM_TRPT), Map::HashMap)?,
            dir,
            unsettled: true,
        })
    }

    /// A map as a whole, by its pin.
    ///
    /// # Errors
    /// What the kernel said; or its keys and values are of another size.
    pub fn bulk<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<Bulk<K, V>, MapError> {
        Bulk::open(&self.dir, name)
    }

    /// The node's settings that are in force.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn settings(&self) -> Result<Xcfg, MapError> {
        let all = self.xcfg.get(&MESH, 0)?;
        Ok(all.slots[(all.active & 1) as usize])
    }

    /// Puts settings in force under the next policy generation, which it returns: each live flow is judged again
    /// by its next packet.
    ///
    /// They are written to the place that no program looks at; then one byte moves them into force. So every
    /// packet is judged by the old ones or by the new ones, whatever the change. Waits first for programs that
    /// may still look at that place.
    ///
    /// # Errors
    /// What the kernel said; the old settings are in force then.
    pub fn apply_settings(&mut self, change: impl FnOnce(&mut Xcfg)) -> Result<u32, MapError> {
        self.settle();
        let mut all = self.xcfg.get(&MESH, 0)?;
        let active = (all.active & 1) as usize;
        let mut settings = all.slots[active];
        let generation = settings.generation.wrapping_add(1);
        change(&mut settings);
        settings.generation = generation;
        all.slots[1 - active] = settings;
        self.put(all, 1 - active)?;
        self.unsettled = true;
        Ok(generation)
    }

    /// Sets settings as they are, where no packet passes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_settings(&mut self, settings: Xcfg) -> Result<(), MapError> {
        let mut all = Xcfgs::ZERO;
        all.slots[0] = settings;
        self.put(all, 0)
    }

    /// Writes the places with `active` as it was, then `active`: the kernel copies a value byte by byte for all
    /// it promises, and the second copy differs in one byte.
    fn put(&mut self, mut all: Xcfgs, active: usize) -> Result<(), MapError> {
        for (number, slot) in (0..).zip(&mut all.slots) {
            slot.slot = number;
        }
        self.xcfg.set(MESH, all, 0)?;
        // The places before the byte, for CPUs that keep no order between stores.
        fence(Ordering::SeqCst);
        all.active = active as u64;
        self.xcfg.set(MESH, all, 0)
    }

    /// Waits, if need be, until every program runs under the settings in force.
    pub fn settle(&mut self) {
        if self.unsettled {
            wait_for_programs();
            self.unsettled = false;
        }
    }

    /// Sum over the CPUs of every reason counter, in the order of `Reason::ALL`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn reasons(&self) -> Result<Vec<(fsm_common::Reason, u64)>, MapError> {
        fsm_common::Reason::ALL
            .iter()
            .map(|&reason| Ok((reason, self.reason.get(&(reason as u32), 0)?.iter().sum())))
            .collect()
    }

    /// Capacity of a map.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn max_entries(&self, name: &str) -> Result<u32, MapError> {
        MapData::from_pin(self.dir.join(name))?
            .info()
            .map(|info| info.max_entries())
    }
}

fn pinned<T>(path: PathBuf, kind: fn(MapData) -> Map) -> Result<T, PinError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let open = || T::try_from(kind(MapData::from_pin(&path)?));
    open().map_err(|source| PinError::Map {
        path: path.clone(),
        source,
    })
}
