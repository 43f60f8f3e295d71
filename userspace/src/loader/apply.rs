//! A model into the maps: what is new or changed first, what is gone afterwards, the policy generation last,
//! so that live flows are judged again once everything is in place.

use std::{collections::HashMap, hash::Hash, io};

use aya::maps::{self, MapData, MapError, lpm_trie::Key, lpm_trie::LpmTrie};
use fsm_common::maps::{Xcfg, sys};

use crate::{maps::Maps, model::Model};

/// What the settings say of this kernel rather than of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// See [`Xcfg::csum_ipv6_flag`].
    pub csum_ipv6_flag: u32,
    /// See [`Xcfg::syn_cookie`].
    pub syn_cookie: u32,
}

/// Makes the maps hold exactly the model. `known` is what they hold; without it they are read first, which
/// takes two calls an entry. Returns the policy generation.
///
/// # Errors
/// What the kernel said; a table that is too small says so.
pub fn apply(
    maps: &mut Maps,
    known: Option<&Model>,
    model: &Model,
    kernel: &Kernel,
) -> Result<u32, MapError> {
    // Kinds are bits of look-ups worth making: first the union of old and new, else an entry that is there
    // might not be asked while we are at it.
    let before = maps.settings()?;
    if before.generation != 0 {
        write(maps, |settings| {
            settings.acl_kinds |= model.acl_kinds;
            settings.nat_kinds |= model.nat_kinds;
            settings.features |= model.features;
            settings.guard_kinds |= model.guard_kinds;
        })?;
    }
    write_balance(maps, |settings| settings.nat_kinds |= model.balance_kinds)?;
    let read;
    let known = match known {
        Some(known) => known,
        None => {
            read = read_maps(maps)?;
            &read
        }
    };
    sync(&known.acl4, &model.acl4, &mut maps.acl4)?;
    sync(&known.acl6, &model.acl6, &mut maps.acl6)?;
    sync(&known.nat, &model.nat, &mut maps.xnat)?;
    sync(&known.guard, &model.guard, &mut maps.guard)?;
    sync(&known.trip, &model.trip, &mut maps.trip)?;
    sync(&known.trpt, &model.trpt, &mut maps.trpt)?;
    sync(&known.cidr4, &model.cidr4, &mut maps.cidr4)?;
    sync(&known.cidr6, &model.cidr6, &mut maps.cidr6)?;
    sync(&known.skip4, &model.skip4, &mut maps.skip4)?;
    sync(&known.skip6, &model.skip6, &mut maps.skip6)?;
    sync(&known.skip_port, &model.skip_port, &mut maps.skip_port)?;
    write_balance(maps, |settings| {
        *settings = Xcfg {
            nat_kinds: model.balance_kinds,
            acl_kinds: 0,
            features: 0,
            ..settings_of(model, kernel)
        };
    })?;
    for (state, seconds) in (0..).zip(model.timeouts_s) {
        maps.timeout.set(state, ns(seconds), 0)?;
    }
    maps.apply_settings(|settings| {
        *settings = Xcfg {
            generation: settings.generation,
            ..settings_of(model, kernel)
        };
    })
}

/// What the maps hold, as far as a model speaks of it.
fn read_maps(maps: &Maps) -> Result<Model, MapError> {
    let mut model = Model {
        acl4: maps.acl4.iter().collect::<Result<_, _>>()?,
        acl6: maps.acl6.iter().collect::<Result<_, _>>()?,
        nat: maps.xnat.iter().collect::<Result<_, _>>()?,
        guard: maps.guard.iter().collect::<Result<_, _>>()?,
        trip: maps.trip.iter().collect::<Result<_, _>>()?,
        trpt: maps.trpt.iter().collect::<Result<_, _>>()?,
        ..Model::default()
    };
    for entry in maps.cidr4.iter() {
        let (key, rules) = entry?;
        model.cidr4.insert((key.prefix_len(), key.data()), rules);
    }
    for entry in maps.cidr6.iter() {
        let (key, rules) = entry?;
        model
            .cidr6
            .insert((key.prefix_len(), narrow6(key.data())), rules);
    }
    for entry in maps.skip4.iter() {
        let (key, skip) = entry?;
        model.skip4.insert((key.prefix_len(), key.data()), skip);
    }
    for entry in maps.skip6.iter() {
        let (key, skip) = entry?;
        model
            .skip6
            .insert((key.prefix_len(), narrow6(key.data())), skip);
    }
    for port in 0..=u16::MAX {
        match maps.skip_port.get(&u32::from(port), 0)? {
            0 => {}
            bits => drop(model.skip_port.insert(port, bits)),
        }
    }
    Ok(model)
}

fn settings_of(model: &Model, kernel: &Kernel) -> Xcfg {
    Xcfg {
        ipv4: model.flags[0],
        ipv6: model.flags[1],
        generation: 0,
        acl_kinds: model.acl_kinds,
        nat_kinds: model.nat_kinds,
        features: model.features,
        fail_open: u32::from(model.fail_open),
        csum_ipv6_flag: kernel.csum_ipv6_flag,
        idle_check_ns: model.timeouts_s.iter().copied().min().map_or(0, ns),
        guard_kinds: model.guard_kinds,
        syn_cookie: kernel.syn_cookie,
    }
}

fn ns(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000_000
}

fn write(maps: &mut Maps, change: impl FnOnce(&mut Xcfg)) -> Result<(), MapError> {
    let mut settings = maps.settings()?;
    change(&mut settings);
    maps.xcfg.set(u32::from(sys::MESH), settings, 0)
}

/// The load balancers' own entry: their kinds, and flags, which are the mesh's.
fn write_balance(maps: &mut Maps, change: impl FnOnce(&mut Xcfg)) -> Result<(), MapError> {
    let at = u32::from(sys::E4LB);
    let mut settings = maps.xcfg.get(&at, 0)?;
    change(&mut settings);
    maps.xcfg.set(at, settings, 0)
}

/// Key of an IPv6 trie: the address and four bytes of padding.
fn wide6(addr: [u8; 16]) -> [u8; 20] {
    let mut wide = [0; 20];
    wide[..16].copy_from_slice(&addr);
    wide
}

fn narrow6(wide: [u8; 20]) -> [u8; 16] {
    std::array::from_fn(|i| wide[i])
}

/// A table of the kernel's, as a model sees it.
trait Table<K, V> {
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn take(&mut self, key: &K) -> Result<(), MapError>;
}

/// What is new or changed first, then what is gone is removed, so that nothing is missing in between.
fn sync<K: Eq + Hash, V: PartialEq>(
    known: &HashMap<K, V>,
    wanted: &HashMap<K, V>,
    table: &mut impl Table<K, V>,
) -> Result<(), MapError> {
    for (key, value) in wanted
        .iter()
        .filter(|(key, value)| known.get(*key) != Some(*value))
    {
        table.put(key, value)?;
    }
    for key in known.keys().filter(|key| !wanted.contains_key(*key)) {
        match table.take(key) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(MapError::KeyNotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

impl<K: aya::Pod, V: aya::Pod> Table<K, V> for maps::HashMap<MapData, K, V> {
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl<V: aya::Pod> Table<(u32, [u8; 4]), V> for LpmTrie<MapData, [u8; 4], V> {
    fn put(&mut self, (len, addr): &(u32, [u8; 4]), value: &V) -> Result<(), MapError> {
        self.insert(&Key::new(*len, *addr), value, 0)
    }

    fn take(&mut self, (len, addr): &(u32, [u8; 4])) -> Result<(), MapError> {
        self.remove(&Key::new(*len, *addr))
    }
}

impl<V: aya::Pod> Table<(u32, [u8; 16]), V> for LpmTrie<MapData, [u8; 20], V> {
    fn put(&mut self, (len, addr): &(u32, [u8; 16]), value: &V) -> Result<(), MapError> {
        self.insert(&Key::new(*len, wide6(*addr)), value, 0)
    }

    fn take(&mut self, (len, addr): &(u32, [u8; 16])) -> Result<(), MapError> {
        self.remove(&Key::new(*len, wide6(*addr)))
    }
}

impl Table<u16, u8> for maps::Array<MapData, u8> {
    fn put(&mut self, port: &u16, bits: &u8) -> Result<(), MapError> {
        self.set(u32::from(*port), *bits, 0)
    }

    fn take(&mut self, port: &u16) -> Result<(), MapError> {
        self.set(u32::from(*port), 0, 0)
    }
}
