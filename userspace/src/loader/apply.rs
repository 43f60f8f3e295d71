//! A model into the maps, as one change: packets are judged by all of the old policy until they are judged by all of
//! the new one (see `model::plan`). What is dead then is removed once no program can be reading it.

use std::{collections::HashMap, hash::Hash, io, sync::Arc};

use aya::maps::{self, MapData, MapError};
use fsm_common::{
    maps::{Skip, Xcfg, name},
    nat::{NatKey, NatValue},
    policy::{
        Acl4Key, Acl6Key, AclValue, Cidr4Key, Cidr6Key, CidrRule, CidrRules, CidrValue, acl,
        is_before,
    },
};

use super::bulk::Bulk;
use crate::{
    maps::Maps,
    model::{
        Model,
        acl::{Rules, Said},
        plan::{InForce, Plan, TooSmall, skip_port_steps},
        table::{Ordered, Table},
    },
};

/// What the settings say of this kernel rather than of the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kernel {
    /// See [`Xcfg::csum_ipv6_flag`].
    pub csum_ipv6_flag: u32,
    /// See [`Xcfg::syn_cookie`].
    pub syn_cookie: u32,
    /// The way to the workers.
    pub workers: ToWorkers,
}

/// The way to the workers; all zero while there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ToWorkers {
    /// See [`Xcfg::dpi_ifindex`].
    pub ifindex: u32,
    /// See [`Xcfg::workers`].
    pub count: u16,
    /// See [`Xcfg::dpi_frame`].
    pub frame: u32,
}

/// Why a model is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Nothing is changed.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The kernel said no. The old policy is in force if it was the only one until then; entries of the new one may
    /// be there.
    #[error("the maps cannot be written: {0}")]
    Map(#[from] MapError),
}

/// Makes the maps hold exactly the model. `known` is what they hold; it is taken out and read from the maps where
/// it is not there, and put back unless the change has been left half-way. Returns the policy generation.
///
/// # Errors
/// See [`ApplyError`].
pub fn apply(
    maps: &mut Maps,
    known: &mut Option<InForce>,
    model: Model,
    kernel: &Kernel,
) -> Result<u32, ApplyError> {
    let settings = maps.settings()?;
    let old = match known.take() {
        Some(known) => known,
        None => read_maps(maps, &settings)?,
    };
    let plan = Plan::new(&old, &model);
    let new_nat = old.model.nat != model.nat || old.is_mixed;
    let fits = plan
        .check(|map| Ok(maps.max_entries(map)? as usize))
        .and_then(|()| check_nat(maps, &old.model, &model));
    if let Err(error) = fits {
        *known = Some(old);
        return Err(error);
    }

    write(maps, &plan)?;
    let bank = if new_nat {
        write_nat(maps, &model, 1 - (settings.nat_bank & 1) as u8)?
    } else {
        settings.nat_bank
    };
    sync(&old.model.guard, &model.guard, &mut maps.guard)?;
    for (state, seconds) in (0..).zip(model.timeouts_s) {
        maps.timeout.set(state, ns(seconds), 0)?;
    }
    sync(&old.model.trip, &model.trip, &mut maps.trip)?;
    sync(&old.model.trpt, &model.trpt, &mut maps.trpt)?;
    let wanted = settings_of(&model, kernel);
    let generation = maps.apply_settings(|settings| {
        *settings = Xcfg {
            policy: plan.policy,
            nat_bank: bank,
            ..wanted
        };
    })?;

    let has_dead = new_nat || !plan.gone.is_empty();
    if has_dead {
        maps.settle();
        remove(maps, &plan)?;
        if new_nat {
            remove_nat(maps, 1 - (bank & 1) as u8)?;
        }
    }
    *known = Some(InForce {
        model,
        sets: plan.sets_after,
        policy: plan.policy,
        is_mixed: false,
    });
    Ok(generation)
}

fn write(maps: &mut Maps, plan: &Plan) -> Result<(), MapError> {
    let writes = &plan.writes;
    put(maps, name::FSM_CIDR_SET, &plan.sets)?;
    put(maps, name::FSM_XACL, &writes.acl4)?;
    put(maps, name::FSM_XACL6, &writes.acl6)?;
    put(maps, name::FSM_CIDR4, &writes.cidr4)?;
    put(maps, name::FSM_CIDR6, &writes.cidr6)?;
    put(maps, name::FSM_SKIP4, &writes.skip4)?;
    put(maps, name::FSM_SKIP6, &writes.skip6)?;
    for &(port, now, was) in &writes.skip_port {
        let there = maps.skip_port.get(&port.into(), 0)?;
        for step in skip_port_steps(there, now, was, plan.policy) {
            maps.skip_port.set(port.into(), step, 0)?;
        }
    }
    Ok(())
}

fn remove(maps: &Maps, plan: &Plan) -> Result<(), MapError> {
    let gone = &plan.gone;
    take::<_, AclValue>(maps, name::FSM_XACL, &gone.acl4)?;
    take::<_, AclValue>(maps, name::FSM_XACL6, &gone.acl6)?;
    take::<_, CidrValue>(maps, name::FSM_CIDR4, &gone.cidr4)?;
    take::<_, CidrValue>(maps, name::FSM_CIDR6, &gone.cidr6)?;
    take::<_, Skip>(maps, name::FSM_SKIP4, &gone.skip4)?;
    take::<_, Skip>(maps, name::FSM_SKIP6, &gone.skip6)?;
    take::<_, CidrRules>(maps, name::FSM_CIDR_SET, &gone.sets)
}

fn put<K: aya::Pod, V: aya::Pod>(
    maps: &Maps,
    name: &'static str,
    entries: &[(K, V)],
) -> Result<(), MapError> {
    if entries.is_empty() {
        return Ok(());
    }
    maps.bulk::<K, V>(name)?.write(entries)
}

fn take<K: aya::Pod, V: aya::Pod>(
    maps: &Maps,
    name: &'static str,
    keys: &[K],
) -> Result<(), MapError> {
    if keys.is_empty() {
        return Ok(());
    }
    maps.bulk::<K, V>(name)?.remove(keys)
}

/// NAT entries are few and large: a change writes all of them beside the old ones, under the other bank.
fn write_nat(maps: &Maps, model: &Model, bank: u8) -> Result<u16, MapError> {
    remove_nat(maps, bank)?;
    let nat: Bulk<NatKey, NatValue> = maps.bulk(name::FSM_XNAT)?;
    for (key, value) in &model.nat {
        nat.write(&[(NatKey { bank, ..*key }, *value)])?;
    }
    Ok(bank.into())
}

/// Empties a bank that no program looks at.
fn remove_nat(maps: &Maps, bank: u8) -> Result<(), MapError> {
    let nat: Bulk<NatKey, NatValue> = maps.bulk(name::FSM_XNAT)?;
    let mut dead = Vec::new();
    nat.each(|key, _| {
        if key.bank == bank {
            dead.push(key);
        }
        Ok::<_, MapError>(())
    })?;
    nat.remove(&dead)
}

fn check_nat(maps: &Maps, old: &Model, new: &Model) -> Result<(), ApplyError> {
    let has = maps.max_entries(name::FSM_XNAT)? as usize;
    let needs = old.nat.len() + new.nat.len();
    if needs > has {
        let map = name::FSM_XNAT;
        return Err(TooSmall { map, needs, has }.into());
    }
    Ok(())
}

/// What the maps hold and is in force, as far as a model speaks of it; and what is there though it is not in force.
fn read_maps(maps: &mut Maps, settings: &Xcfg) -> Result<InForce, MapError> {
    let mut read = Reading {
        policy: settings.policy,
        is_mixed: false,
        numbers: HashMap::new(),
    };
    let mut sets = HashMap::new();
    maps.bulk(name::FSM_CIDR_SET)?
        .each(|number: u32, rules: CidrRules| {
            let rules = Arc::new(rules);
            read.numbers.insert(number, Arc::clone(&rules));
            sets.insert(rules, number);
            Ok::<_, MapError>(())
        })?;
    let mut model = Model {
        guard: maps.guard.iter().collect::<Result<_, _>>()?,
        acl4: read.hash::<Acl4Key>(&maps.bulk(name::FSM_XACL)?)?,
        acl6: read.hash::<Acl6Key>(&maps.bulk(name::FSM_XACL6)?)?,
        cidr4: read.trie::<Cidr4Key>(&maps.bulk(name::FSM_CIDR4)?)?,
        cidr6: read.trie::<Cidr6Key>(&maps.bulk(name::FSM_CIDR6)?)?,
        skip4: read.skip::<Cidr4Key>(&maps.bulk(name::FSM_SKIP4)?)?,
        skip6: read.skip::<Cidr6Key>(&maps.bulk(name::FSM_SKIP6)?)?,
        trip: maps.trip.iter().collect::<Result<_, _>>()?,
        trpt: maps.trpt.iter().collect::<Result<_, _>>()?,
        ..Model::default()
    };
    maps.bulk(name::FSM_SKIP_PORT)?
        .each(|port: u32, skip: Skip| {
            let bits = skip.at(read.policy);
            read.is_mixed |= skip.now != bits;
            if let (Ok(port), true) = (u16::try_from(port), bits != 0) {
                model.skip_port.insert(port, bits);
            }
            Ok::<_, MapError>(())
        })?;
    maps.bulk(name::FSM_XNAT)?
        .each(|key: NatKey, mut value: NatValue| {
            if u16::from(key.bank) == settings.nat_bank {
                // Where round-robin stands is not part of the policy.
                value.ep_sel = 0;
                model.nat.insert(NatKey { bank: 0, ..key }, value);
            }
            Ok::<_, MapError>(())
        })?;
    if read.is_mixed {
        // Entries may be there that a program still reads.
        maps.settle();
    }
    Ok(InForce {
        model,
        sets,
        policy: read.policy,
        is_mixed: read.is_mixed,
    })
}

struct Reading {
    policy: u32,
    is_mixed: bool,
    numbers: HashMap<u32, Arc<CidrRules>>,
}

impl Reading {
    fn hash<K: Ordered + aya::Pod>(
        &mut self,
        map: &Bulk<K, AclValue>,
    ) -> Result<Table<K, Said>, MapError> {
        let mut entries = Vec::new();
        map.each(|key, value: AclValue| {
            let is_before = is_before(self.policy, value.from);
            self.is_mixed |= is_before;
            let acl = if is_before { value.was } else { value.now };
            entries.push((
                key,
                Said {
                    acl,
                    ids: value.ids,
                },
            ));
            Ok::<_, MapError>(())
        })?;
        Ok(Table::new(entries))
    }

    fn trie<K: Ordered + aya::Pod>(
        &mut self,
        map: &Bulk<K, CidrValue>,
    ) -> Result<Table<K, Rules>, MapError> {
        let mut entries = Vec::new();
        map.each(|key, value: CidrValue| {
            self.is_mixed |= is_before(self.policy, value.from);
            let rule = value.at(self.policy);
            let rules = if rule.acl != acl::SET {
                Rules::One(*rule)
            } else if let Some(rules) = self.numbers.get(&rule.number()) {
                Rules::Many(Arc::clone(rules))
            } else {
                self.is_mixed = true;
                Rules::One(CidrRule::SILENT)
            };
            entries.push((key, rules));
            Ok::<_, MapError>(())
        })?;
        Ok(Table::new(entries))
    }

    fn skip<K: Ordered + aya::Pod>(
        &mut self,
        map: &Bulk<K, Skip>,
    ) -> Result<Table<K, u8>, MapError> {
        let mut entries = Vec::new();
        map.each(|key, value: Skip| {
            self.is_mixed |= is_before(self.policy, value.from);
            entries.push((key, value.at(self.policy)));
            Ok::<_, MapError>(())
        })?;
        Ok(Table::new(entries))
    }
}

fn settings_of(model: &Model, kernel: &Kernel) -> Xcfg {
    Xcfg {
        ipv4: model.flags[0],
        ipv6: model.flags[1],
        acl_kinds: model.acl_kinds,
        nat_kinds: model.nat_kinds,
        features: model.features,
        fail_open: u32::from(model.fail_open),
        csum_ipv6_flag: kernel.csum_ipv6_flag,
        balance_kinds: model.balance_kinds,
        idle_check_ns: model.timeouts_s.iter().copied().min().map_or(0, ns),
        guard_kinds: model.guard_kinds,
        syn_cookie: kernel.syn_cookie,
        dpi_policy: model.dpi_policy,
        dpi_ifindex: kernel.workers.ifindex,
        workers: kernel.workers.count,
        snap: model.snap,
        dpi_frame: kernel.workers.frame,
        ..Xcfg::ZERO
    }
}

fn ns(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000_000
}

/// For tables that decide nothing: what is new or changed first, then what is gone is removed.
fn sync<K: Eq + Hash + aya::Pod, V: PartialEq + aya::Pod>(
    known: &HashMap<K, V>,
    wanted: &HashMap<K, V>,
    table: &mut maps::HashMap<MapData, K, V>,
) -> Result<(), MapError> {
    for (key, value) in wanted
        .iter()
        .filter(|(key, value)| known.get(*key) != Some(*value))
    {
        table.insert(key, value, 0)?;
    }
    for key in known.keys().filter(|key| !wanted.contains_key(*key)) {
        match table.remove(key) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(MapError::KeyNotFound) => {}
            other => other?,
        }
    }
    Ok(())
}
