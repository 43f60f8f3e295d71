//! Both objects' maps are those of the list that user space goes by.

use std::collections::BTreeSet;

use aya::maps::{MapData, MapInfo, MapType};
use fsm_common::maps::{MAPS, MMAPABLE, MapKind, NO_PREALLOC, name};

use fsm_fastpath::loader::objects::program;

use crate::support::alone_with;

macro_rules! flags {
    ($($ident:ident $name:literal $kind:ident<$key:ty, $value:ty> $entries:expr, $flags:expr;)+) => {
        /// Flags of each map, by its name.
        const FLAGS: &[(&str, u32)] = &[$(($name, $flags),)+];
    };
}
fsm_common::for_each_map!(flags);

fn kind(kind: MapKind) -> MapType {
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

#[test]
fn every_map_that_a_program_uses_is_the_pinned_one_and_as_listed() {
    alone_with(512, |node| {
        let mut used = BTreeSet::new();
        let slow = program::TC_SLOW
            .iter()
            .chain(&program::XDP_SLOW)
            .map(|(name, _)| *name);
        let fast = [
            program::XDP,
            program::TC_INGRESS,
            program::TC_EGRESS,
            program::ORIGIN,
        ];
        for name in fast.into_iter().chain(slow) {
            let fd = node.objects.fd(name).unwrap().try_clone().unwrap();
            let ids = map_ids(&fd);
            assert!(!ids.is_empty(), "{name}");
            used.extend(ids);
        }
        let mut pinned = BTreeSet::new();
        for spec in MAPS {
            let data = MapData::from_pin(node.pins.join(spec.name))
                .unwrap_or_else(|e| panic!("{}: {e}", spec.name));
            let info = data.info().unwrap();
            let entries = match spec.name {
                name::FSM_XFLOW | name::FSM_XFLOW6 => 1024,
                name::FSM_XOPT => 512,
                name::FSM_HALF | name::FSM_HALF6 => 2048,
                name::FSM_XOPT_HALF => 1024,
                _ => spec.max_entries,
            };
            assert_eq!(info.name_as_str(), Some(spec.name));
            assert_eq!(info.map_type().unwrap(), kind(spec.kind), "{}", spec.name);
            let sizes = (info.key_size(), info.value_size(), info.max_entries());
            assert_eq!(
                sizes,
                (spec.key_size, spec.value_size, entries),
                "{}",
                spec.name
            );
            let (_, flags) = FLAGS.iter().find(|(name, _)| *name == spec.name).unwrap();
            assert_eq!(info.map_flags(), *flags, "{}", spec.name);
            pinned.insert(info.id());
        }
        let strays: Vec<String> = used
            .difference(&pinned)
            .map(|id| MapInfo::from_id(*id).unwrap().name_as_str().unwrap().into())
            .collect();
        assert!(
            strays.is_empty(),
            "used, but not the pinned ones: {strays:?}"
        );
    });
}

/// Ids of the maps that a program uses, by `BPF_OBJ_GET_INFO_BY_FD`.
fn map_ids(fd: &aya::programs::ProgramFd) -> Vec<u32> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(&path).unwrap();
    let id: u32 = info
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:"))
        .and_then(|id| id.trim().parse().ok())
        .unwrap_or_else(|| panic!("{path} has no prog_id"));
    let program = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id);
    program.unwrap().map_ids().unwrap().unwrap_or_default()
}
