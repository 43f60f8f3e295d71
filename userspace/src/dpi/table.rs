//! Sessions by tuple: a slab in blocks (it grows without moving what is there), a hash table of numbers into it, and
//! two kinds of lists through it: a wheel of timers, and the sessions that nobody has answered, oldest first.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use hashbrown::HashTable;

use super::decode::Ends;

/// Sessions in a block of the slab.
const BLOCK: usize = 1 << 10;
/// Slots of the wheel, a second each; more than the longest timeout.
const SLOTS: usize = 2048;
/// Neither session nor slot.
const NONE: u32 = u32::MAX;
/// Nanoseconds in a slot of the wheel.
const SLOT_NS: u64 = 1_000_000_000;

/// A tuple, the same for both directions: the lower end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    addrs: [[u64; 2]; 2],
    ports: [u16; 2],
    proto: u8,
    is_v6: bool,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [low, high] = self.addrs;
        for word in [low[0], low[1], high[0], high[1]] {
            state.write_u64(word);
        }
        let [low, high] = self.ports.map(u64::from);
        let family = u64::from(self.is_v6);
        state.write_u64(low | high << 16 | u64::from(self.proto) << 32 | family << 40);
    }
}

impl Key {
    /// The key of a packet, and whether the packet's source is its lower end.
    pub fn new(ends: &Ends, proto: u8) -> (Self, bool) {
        let halves = |bytes: [u8; 16]| {
            let wide = u128::from_ne_bytes(bytes);
            [wide as u64, (wide >> 64) as u64]
        };
        let (saddr, daddr) = (halves(ends.saddr), halves(ends.daddr));
        let is_low = (saddr, ends.sport) <= (daddr, ends.dport);
        let key = Self {
            addrs: if is_low {
                [saddr, daddr]
            } else {
                [daddr, saddr]
            },
            ports: if is_low {
                [ends.sport, ends.dport]
            } else {
                [ends.dport, ends.sport]
            },
            proto,
            is_v6: ends.is_v6,
        };
        (key, is_low)
    }

    /// IP protocol number.
    pub fn proto(&self) -> u8 {
        self.proto
    }

    /// The ends, from the lower one or to it.
    pub fn ends(&self, from_low: bool) -> Ends {
        let bytes = |[a, b]: [u64; 2]| (u128::from(a) | u128::from(b) << 64).to_ne_bytes();
        let (from, to) = if from_low { (0, 1) } else { (1, 0) };
        Ends {
            saddr: bytes(self.addrs[from]),
            daddr: bytes(self.addrs[to]),
            sport: self.ports[from],
            dport: self.ports[to],
            is_v6: self.is_v6,
        }
    }
}

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
};
const TIMERS: usize = 0;
const UNANSWERED: usize = 1;

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

const EMPTY: List = List {
    first: NONE,
    last: NONE,
};

struct Entry<T> {
    key: Key,
    /// Slot of the wheel, or [`NONE`] where the entry is free.
    slot: u32,
    is_unanswered: bool,
    links: [Link; 2],
    value: T,
}

/// Values by [`Key`], at most as many as it was made for.
pub struct Table<T> {
    blocks: Vec<Vec<Entry<T>>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    hasher: FixedState,
    most: usize,
    wheel: Vec<List>,
    unanswered: List,
    /// The next slot to look at, as a count since time 0; `None` before the first value.
    turned: Option<u64>,
}

impl<T> Table<T> {
    /// For `most` values; `seed` makes the hash unguessable.
    pub fn new(most: usize, seed: u64) -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            // All at once: growing later would be a pause in the packets.
            by_key: HashTable::with_capacity(most),
            hasher: FixedState::with_seed(seed),
            most: most.min(NONE as usize - 1),
            wheel: vec![EMPTY; SLOTS],
            unanswered: EMPTY,
            turned: None,
        }
    }

    /// Values that are in.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether one more finds no room.
    pub fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Bytes of an entry in the slab.
    pub const fn entry_bytes() -> usize {
        size_of::<Entry<T>>()
    }

    fn entry(&self, id: u32) -> &Entry<T> {
        &self.blocks[id as usize / BLOCK][id as usize % BLOCK]
    }

    fn entry_mut(&mut self, id: u32) -> &mut Entry<T> {
        &mut self.blocks[id as usize / BLOCK][id as usize % BLOCK]
    }

    /// The number of a key's value; it stays until the value is removed.
    pub fn find(&self, key: &Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.by_key
            .find(hash, |id| self.entry(*id).key == *key)
            .copied()
    }

    /// The value of this number.
    pub fn get(&self, id: u32) -> &T {
        &self.entry(id).value
    }

    /// The value of this number.
    pub fn get_mut(&mut self, id: u32) -> &mut T {
        &mut self.entry_mut(id).value
    }

    /// Its key.
    pub fn key(&self, id: u32) -> &Key {
        &self.entry(id).key
    }

    /// Puts in a value that is not there yet, unanswered; `None` when there is no room.
    pub fn insert(&mut self, key: Key, value: T, due_ns: u64) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let entry = Entry {
            key,
            slot: NONE,
            is_unanswered: true,
            links: [UNLINKED; 2],
            value,
        };
        let id = match self.free.pop() {
            Some(id) => {
                *self.entry_mut(id) = entry;
                id
            }
            None => {
                if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
                    self.blocks.push(Vec::with_capacity(BLOCK));
                }
                let block = self.blocks.len() - 1;
                self.blocks[block].push(entry);
                (block * BLOCK + self.blocks[block].len() - 1) as u32
            }
        };
        let (blocks, hasher) = (&self.blocks, &self.hasher);
        let hash =
            |id: &u32| hasher.hash_one(blocks[*id as usize / BLOCK][*id as usize % BLOCK].key);
        self.by_key.insert_unique(hash(&id), id, hash);
        self.unanswered = self.append(self.unanswered, UNANSWERED, id);
        self.schedule(id, due_ns);
        Some(id)
    }

    /// Takes a value out; `empty` takes its place in the slab.
    pub fn remove(&mut self, id: u32, empty: T) -> (Key, T) {
        self.answered(id);
        self.unschedule(id);
        let key = self.entry(id).key;
        let hash = self.hasher.hash_one(key);
        if let Ok(found) = self.by_key.find_entry(hash, |other| *other == id) {
            found.remove();
        }
        self.free.push(id);
        (key, std::mem::replace(self.get_mut(id), empty))
    }

    /// The value has been answered: it no longer gives way to new ones.
    pub fn answered(&mut self, id: u32) {
        if std::mem::take(&mut self.entry_mut(id).is_unanswered) {
            self.unanswered = self.unlink(self.unanswered, UNANSWERED, id);
        }
    }

    /// The value that has gone unanswered for longest.
    pub fn oldest_unanswered(&self) -> Option<u32> {
        (self.unanswered.first != NONE).then_some(self.unanswered.first)
    }

    /// Sets a value's timer. A later one than set need not be told here: [`Table::due`] asks when it rings.
    pub fn schedule(&mut self, id: u32, due_ns: u64) {
        self.unschedule(id);
        // Before the first turn: far enough back that nothing is missed.
        let first = *self
            .turned
            .get_or_insert((due_ns / SLOT_NS).saturating_sub(SLOTS as u64 / 2));
        // Rounded up, so that it never rings early; what is beyond the wheel's end rings there and is asked again.
        let slot = due_ns
            .div_ceil(SLOT_NS)
            .clamp(first, first + SLOTS as u64 - 1);
        let slot = (slot % SLOTS as u64) as usize;
        self.entry_mut(id).slot = slot as u32;
        self.wheel[slot] = self.append(self.wheel[slot], TIMERS, id);
    }

    fn unschedule(&mut self, id: u32) {
        let slot = std::mem::replace(&mut self.entry_mut(id).slot, NONE);
        if slot != NONE {
            self.wheel[slot as usize] = self.unlink(self.wheel[slot as usize], TIMERS, id);
        }
    }

    /// Turns the wheel towards `now_ns` until it meets a value that is over, which is to be removed before the next
    /// call. `due_ns` is asked about each value whose timer rings; each costs one of `looks`.
    pub fn due(
        &mut self,
        now_ns: u64,
        due_ns: impl Fn(&T) -> u64,
        looks: &mut usize,
    ) -> Option<u32> {
        let now = now_ns / SLOT_NS;
        // After a long pause every slot is looked at, once.
        let mut slot = self.turned?.max((now + 1).saturating_sub(SLOTS as u64));
        while slot <= now {
            self.turned = Some(slot);
            let at = (slot % SLOTS as u64) as usize;
            while self.wheel[at].first != NONE {
                *looks = looks.checked_sub(1)?;
                let id = self.wheel[at].first;
                let due_ns = due_ns(self.get(id));
                if due_ns <= now_ns {
                    return Some(id);
                }
                self.schedule(id, due_ns);
            }
            slot += 1;
        }
        self.turned = self.turned.max(Some(slot));
        None
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        let entries = self.blocks.iter().flatten();
        entries
            .filter(|entry| entry.slot != NONE)
            .map(|entry| (&entry.key, &entry.value))
    }

    fn append(&mut self, list: List, which: usize, id: u32) -> List {
        self.entry_mut(id).links[which] = Link {
            previous: list.last,
            next: NONE,
        };
        if list.last == NONE {
            return List {
                first: id,
                last: id,
            };
        }
        self.entry_mut(list.last).links[which].next = id;
        List { last: id, ..list }
    }

    fn unlink(&mut self, list: List, which: usize, id: u32) -> List {
        let Link { previous, next } =
            std::mem::replace(&mut self.entry_mut(id).links[which], UNLINKED);
        let mut list = list;
        match previous {
            NONE => list.first = next,
            _ => self.entry_mut(previous).links[which].next = next,
        }
        match next {
            NONE => list.last = previous,
            _ => self.entry_mut(next).links[which].previous = previous,
        }
        list
    }
}
