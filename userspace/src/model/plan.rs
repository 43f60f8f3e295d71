//! From what the maps hold to what they are to hold, without a moment in which they say something else: every
//! write says what holds from the next version of the policy on, and what holds until then. Pure: the loader
//! carries the steps out, and a test looks at the tables between any two of them.
//!
//! Before the new version is in force: entries that are new or another; entries that are to go, which say so. In
//! tries a longer prefix hides those around it, so an entry that is not there before or afterwards says what
//! they say. After it: what is dead is removed.
//!
//! Versions are compared around the corner of 32 bits. Each 2^30 versions every entry is written anew, so that
//! none is ever older than half the way round.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fsm_common::{
    maps::{Skip, name},
    policy::{
        Acl4Key, Acl6Key, AclValue, Cidr4Key, Cidr6Key, CidrRule, CidrRules, CidrValue, Tagged,
    },
};

use super::{
    Model,
    acl::{Rules, Said},
    table::{Network, Ordered, Table, both},
};

/// Numbers of the sets in `fsm_cidr_set`.
pub type Sets = HashMap<Arc<CidrRules>, u32>;

/// What the maps hold: the policy in force.
#[derive(Debug, Default)]
pub struct InForce {
    /// All of it.
    pub model: Model,
    /// Sets that are there, in use or not.
    pub sets: Sets,
    /// Its version ([`fsm_common::maps::Xcfg::policy`]).
    pub policy: u32,
    /// Some entries are of a version that has never been in force, as a daemon leaves them that ends while it
    /// writes.
    pub is_mixed: bool,
}

/// A table does not hold both the old entries and the new ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{map} is too small: the change needs {needs} entries, those that it takes away included; the map has {has}. \
     Nothing is changed"
)]
pub struct TooSmall {
    /// Name of the map.
    pub map: &'static str,
    /// Entries while both are there.
    pub needs: usize,
    /// What fits.
    pub has: usize,
}

/// All steps of one change, in the order of the fields.
#[derive(Debug, Default)]
pub struct Plan {
    /// The next version of the policy.
    pub policy: u32,
    /// Sets to make, before they are spoken of.
    pub sets: Vec<(u32, CidrRules)>,
    /// Writes before the new version is in force.
    pub writes: Writes,
    /// What is removed when no program runs under the old version any more.
    pub gone: Gone,
    /// Entries of each map while both versions are there.
    pub needs: Vec<(&'static str, usize)>,
    /// All sets that are there then, those of `gone` not.
    pub sets_after: Sets,
}

/// Entries as the kernel has them.
#[derive(Debug, Default)]
pub struct Writes {
    /// `fsm_xacl`
    pub acl4: Vec<(Acl4Key, AclValue)>,
    /// `fsm_xacl6`
    pub acl6: Vec<(Acl6Key, AclValue)>,
    /// `fsm_cidr4`
    pub cidr4: Vec<(Cidr4Key, CidrValue)>,
    /// `fsm_cidr6`
    pub cidr6: Vec<(Cidr6Key, CidrValue)>,
    /// `fsm_skip4`
    pub skip4: Vec<(Cidr4Key, Skip)>,
    /// `fsm_skip6`
    pub skip6: Vec<(Cidr6Key, Skip)>,
    /// `fsm_skip_port`: port, new bits, old bits; see [`skip_port_steps`].
    pub skip_port: Vec<(u16, u8, u8)>,
}

/// Keys of what is dead.
#[derive(Debug, Default)]
pub struct Gone {
    /// `fsm_xacl`
    pub acl4: Vec<Acl4Key>,
    /// `fsm_xacl6`
    pub acl6: Vec<Acl6Key>,
    /// `fsm_cidr4`
    pub cidr4: Vec<Cidr4Key>,
    /// `fsm_cidr6`
    pub cidr6: Vec<Cidr6Key>,
    /// `fsm_skip4`
    pub skip4: Vec<Cidr4Key>,
    /// `fsm_skip6`
    pub skip6: Vec<Cidr6Key>,
    /// `fsm_cidr_set`
    pub sets: Vec<u32>,
}

impl Gone {
    /// Whether nothing is dead.
    pub fn is_empty(&self) -> bool {
        self.acl4.is_empty()
            && self.acl6.is_empty()
            && self.cidr4.is_empty()
            && self.cidr6.is_empty()
            && self.skip4.is_empty()
            && self.skip6.is_empty()
            && self.sets.is_empty()
    }
}

impl Plan {
    /// The steps from `known` to `wanted`.
    pub fn new(known: &InForce, wanted: &Model) -> Self {
        let policy = known.policy.wrapping_add(1);
        let all = known.is_mixed || policy & ((1 << 30) - 1) == 0;
        let old = &known.model;
        let mut plan = Self {
            policy,
            ..Self::default()
        };
        let mut sets = Numbers::new(&known.sets);

        let steps = hash_steps(&old.acl4, &wanted.acl4, all);
        plan.needs.push((name::FSM_XACL, steps.union));
        plan.writes.acl4 = steps.entries(|step| acl_value(step, policy));
        plan.gone.acl4 = steps.gone;
        let steps = hash_steps(&old.acl6, &wanted.acl6, all);
        plan.needs.push((name::FSM_XACL6, steps.union));
        plan.writes.acl6 = steps.entries(|step| acl_value(step, policy));
        plan.gone.acl6 = steps.gone;

        let steps = trie_steps(&old.cidr4, &wanted.cidr4, all);
        plan.needs.push((name::FSM_CIDR4, steps.union));
        plan.writes.cidr4 = steps.entries(|step| sets.cidr_value(step, policy));
        plan.gone.cidr4 = steps.gone;
        let steps = trie_steps(&old.cidr6, &wanted.cidr6, all);
        plan.needs.push((name::FSM_CIDR6, steps.union));
        plan.writes.cidr6 = steps.entries(|step| sets.cidr_value(step, policy));
        plan.gone.cidr6 = steps.gone;

        let steps = trie_steps(&old.skip4, &wanted.skip4, all);
        plan.needs.push((name::FSM_SKIP4, steps.union));
        plan.writes.skip4 = steps.entries(|step| skip_value(step, policy));
        plan.gone.skip4 = steps.gone;
        let steps = trie_steps(&old.skip6, &wanted.skip6, all);
        plan.needs.push((name::FSM_SKIP6, steps.union));
        plan.writes.skip6 = steps.entries(|step| skip_value(step, policy));
        plan.gone.skip6 = steps.gone;

        let ports: HashSet<u16> = old
            .skip_port
            .keys()
            .chain(wanted.skip_port.keys())
            .copied()
            .collect();
        let bits = |model: &Model, port| model.skip_port.get(port).copied().unwrap_or(0);
        plan.writes.skip_port = ports
            .iter()
            .map(|port| (*port, bits(wanted, port), bits(old, port)))
            .filter(|(_, now, was)| all || now != was)
            .collect();

        plan.needs.push((name::FSM_CIDR_SET, sets.all.len()));
        plan.sets = sets.made;
        let mut all_sets = sets.all;
        let in_use: HashSet<&CidrRules> = many(&wanted.cidr4).chain(many(&wanted.cidr6)).collect();
        all_sets.retain(|rules, number| {
            let lives = in_use.contains(&**rules);
            if !lives {
                plan.gone.sets.push(*number);
            }
            lives
        });
        plan.sets_after = all_sets;
        plan
    }

    /// Whether everything fits.
    ///
    /// # Errors
    /// The first table for which it does not; `capacity` tells its size.
    pub fn check<E: From<TooSmall>>(
        &self,
        capacity: impl Fn(&'static str) -> Result<usize, E>,
    ) -> Result<(), E> {
        for &(map, needs) in &self.needs {
            let has = capacity(map)?;
            if needs > has {
                return Err(TooSmall { map, needs, has }.into());
            }
        }
        Ok(())
    }
}

fn many<K: Ordered>(nets: &Table<K, Rules>) -> impl Iterator<Item = &CidrRules> {
    nets.iter().filter_map(|(_, rules)| match rules {
        Rules::Many(rules) => Some(&**rules),
        Rules::One(_) => None,
    })
}

/// One write: the key, what it is to say, what it says until then.
type Step<K, V> = (K, Option<V>, Option<V>);

struct Steps<K, V> {
    writes: Vec<Step<K, V>>,
    gone: Vec<K>,
    union: usize,
}

impl<K: Copy, V> Steps<K, V> {
    fn entries<T>(&self, mut value: impl FnMut(&Step<K, V>) -> T) -> Vec<(K, T)> {
        self.writes
            .iter()
            .map(|step| (step.0, value(step)))
            .collect()
    }
}

fn hash_steps<K: Ordered>(
    known: &Table<K, Said>,
    wanted: &Table<K, Said>,
    all: bool,
) -> Steps<K, Said> {
    let (mut writes, mut gone, mut union) = (Vec::new(), Vec::new(), 0);
    both(known, wanted, |key, was, now| {
        union += 1;
        if all || now != was {
            writes.push((key, now.copied(), was.copied()));
        }
        if now.is_none() {
            gone.push(key);
        }
    });
    Steps {
        writes,
        gone,
        union,
    }
}

fn trie_steps<K: Network, V: Clone + PartialEq>(
    known: &Table<K, V>,
    wanted: &Table<K, V>,
    all: bool,
) -> Steps<K, V> {
    let (mut writes, mut gone, mut union) = (Vec::new(), Vec::new(), 0);
    // The prefixes around the one at hand, with what they say: new, old.
    let mut around: Vec<(K, Option<&V>, Option<&V>)> = Vec::new();
    both(known, wanted, |key, in_known, in_wanted| {
        union += 1;
        while around
            .last()
            .is_some_and(|(outer, ..)| !outer.contains(&key))
        {
            around.pop();
        }
        let (outer_now, outer_was) = around
            .last()
            .map_or((None, None), |(_, now, was)| (*now, *was));
        let now = in_wanted.or(outer_now);
        let was = in_known.or(outer_was);
        if all || in_known.is_none() || now != was {
            writes.push((key, now.cloned(), was.cloned()));
        }
        if in_wanted.is_none() {
            gone.push(key);
        }
        around.push((key, now, was));
    });
    Steps {
        writes,
        gone,
        union,
    }
}

fn acl_value<K: Tagged>((key, now, was): &Step<K, Said>, policy: u32) -> AclValue {
    let said = |said: &Option<Said>| said.map_or(AclValue::NOTHING, |said| said.acl);
    AclValue {
        from: policy,
        now: said(now),
        was: said(was),
        tag: key.tag(),
        ids: now.or(*was).unwrap_or(Said::NOTHING).ids,
    }
}

fn skip_value<K>((_, now, was): &Step<K, u8>, policy: u32) -> Skip {
    Skip {
        from: policy,
        now: now.unwrap_or(0),
        was: was.unwrap_or(0),
        pad: [0; 2],
    }
}

/// The writes that change one entry of `fsm_skip_port`, which is an array: the kernel copies values there while
/// programs read them, byte by byte for all it promises. So each step changes what no program asks for, or one
/// byte.
pub fn skip_port_steps(there: Skip, now: u8, was: u8, policy: u32) -> [Skip; 3] {
    let quiet = Skip {
        now: was,
        was,
        ..there
    };
    let dated = Skip {
        from: policy,
        ..quiet
    };
    [quiet, dated, Skip { now, ..dated }]
}

/// Numbers for sets: those that are there, and the lowest free ones for those that are made.
struct Numbers {
    all: Sets,
    taken: HashSet<u32>,
    next: u32,
    made: Vec<(u32, CidrRules)>,
}

impl Numbers {
    fn new(known: &Sets) -> Self {
        Self {
            all: known.clone(),
            taken: known.values().copied().collect(),
            next: 0,
            made: Vec::new(),
        }
    }

    fn number(&mut self, rules: &Arc<CidrRules>) -> u32 {
        if let Some(number) = self.all.get(rules) {
            return *number;
        }
        while self.taken.contains(&self.next) {
            self.next += 1;
        }
        let number = self.next;
        self.next += 1;
        self.all.insert(Arc::clone(rules), number);
        self.made.push((number, **rules));
        number
    }

    fn cidr_value<K>(&mut self, (_, now, was): &Step<K, Rules>, policy: u32) -> CidrValue {
        let mut rule = |rules: &Option<Rules>| match rules {
            None => CidrRule::SILENT,
            Some(Rules::One(rule)) => *rule,
            Some(Rules::Many(rules)) => CidrRule::set(self.number(rules)),
        };
        CidrValue {
            now: rule(now),
            was: rule(was),
            from: policy,
            pad: 0,
        }
    }
}

#[cfg(test)]
mod tests;
