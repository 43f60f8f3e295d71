//! A model into the maps: what is new or changed first, what is gone afterwards, the policy generation last,
//! so that live flows are judged again once everything is in place.

use aya::maps::{MapData, MapError, lpm_trie::Key, lpm_trie::LpmTrie};
use fsm_common::maps::Xcfg;

use crate::{
    maps::{Maps, sync},
    model::Model,
};

/// Makes the maps hold exactly the model. Returns the policy generation.
///
/// # Errors
/// What the kernel said; a table that is too small says so.
pub fn apply(maps: &mut Maps, model: &Model, csum_ipv6_flag: u32) -> Result<u32, MapError> {
    // Kinds are bits of look-ups worth making: first the union of old and new, else an entry that is there
    // might not be asked while we are at it.
    let before = maps.settings()?;
    if before.generation != 0 {
        write(maps, |settings| {
            settings.acl_kinds |= model.acl_kinds;
            settings.nat_kinds |= model.nat_kinds;
            settings.features |= model.features;
        })?;
    }
    sync(&mut maps.acl4, &model.acl4)?;
    sync(&mut maps.acl6, &model.acl6)?;
    sync(&mut maps.xnat, &model.nat)?;
    sync(&mut maps.trip, &model.trip)?;
    sync(&mut maps.trpt, &model.trpt)?;
    sync_trie(
        &mut maps.cidr4,
        model
            .cidr4
            .iter()
            .map(|((len, addr), rules)| (*len, *addr, *rules)),
    )?;
    sync_trie(
        &mut maps.cidr6,
        model
            .cidr6
            .iter()
            .map(|((len, addr), rules)| (*len, wide6(*addr), *rules)),
    )?;
    sync_trie(
        &mut maps.skip4,
        model
            .skip4
            .iter()
            .map(|((len, addr), skip)| (*len, *addr, *skip)),
    )?;
    sync_trie(
        &mut maps.skip6,
        model
            .skip6
            .iter()
            .map(|((len, addr), skip)| (*len, wide6(*addr), *skip)),
    )?;
    for port in 0..=u16::MAX {
        let bits = model.skip_port.get(&port).copied().unwrap_or(0);
        if maps.skip_port.get(&u32::from(port), 0)? != bits {
            maps.skip_port.set(u32::from(port), bits, 0)?;
        }
    }
    let before = maps.settings()?;
    let same = Xcfg {
        generation: before.generation,
        ..settings_of(model, csum_ipv6_flag)
    } == before;
    if same && before.generation != 0 {
        // Entries may have changed all the same.
        return maps.apply_settings(|_| {});
    }
    maps.apply_settings(|settings| {
        *settings = Xcfg {
            generation: settings.generation,
            ..settings_of(model, csum_ipv6_flag)
        };
    })
}

fn settings_of(model: &Model, csum_ipv6_flag: u32) -> Xcfg {
    Xcfg {
        ipv4: model.flags[0],
        ipv6: model.flags[1],
        generation: 0,
        acl_kinds: model.acl_kinds,
        nat_kinds: model.nat_kinds,
        features: model.features,
        fail_open: u32::from(model.fail_open),
        csum_ipv6_flag,
    }
}

fn write(maps: &mut Maps, change: impl FnOnce(&mut Xcfg)) -> Result<(), MapError> {
    let mut settings = maps.settings()?;
    change(&mut settings);
    maps.xcfg
        .set(u32::from(fsm_common::maps::sys::MESH), settings, 0)
}

/// Key of an IPv6 trie: the address and four bytes of padding.
fn wide6(addr: [u8; 16]) -> [u8; 20] {
    let mut wide = [0; 20];
    wide[..16].copy_from_slice(&addr);
    wide
}

fn sync_trie<A, V>(
    map: &mut LpmTrie<MapData, A, V>,
    wanted: impl Iterator<Item = (u32, A, V)>,
) -> Result<(), MapError>
where
    A: aya::Pod + Eq + std::hash::Hash,
    V: aya::Pod + PartialEq,
{
    let mut gone = std::collections::HashMap::new();
    for entry in map.iter() {
        let (key, value) = entry?;
        gone.insert((key.prefix_len(), key.data()), value);
    }
    for (len, addr, value) in wanted {
        if gone.remove(&(len, addr)) != Some(value) {
            map.insert(&Key::new(len, addr), value, 0)?;
        }
    }
    for (len, addr) in gone.into_keys() {
        map.remove(&Key::new(len, addr))?;
    }
    Ok(())
}
