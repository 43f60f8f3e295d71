//! The flow tables, looked into and tampered with: time that passes, entries that are evicted.

use aya::maps::{HashMap, MapData};
use fsm_common::{
    flow::{Address, CREATED_UNIT_NS, Flow, FlowKey},
    reason::Reason,
    track::{self, State},
};

use super::{Node, node::text};

type Table<A> = HashMap<MapData, FlowKey<A>, Flow<A>>;

/// `BPF_EXIST`.
const EXIST: u64 = 2;

impl Node {
    /// The state of the flow with these tuples.
    #[track_caller]
    pub fn state(&self, there: &str, back: &str) -> State {
        let flows = self.flows();
        let side = |tuple: &str| {
            flows
                .get(tuple)
                .unwrap_or_else(|| panic!("no {tuple}: {flows:#?}"))
                .side
        };
        let proto = if there.starts_with("udp") { 17 } else { 6 };
        track::state(proto, side(there), side(back))
    }

    /// Lets all flows have been idle, and exist, for so much longer.
    pub fn age(&mut self, ns: u64) {
        fn shift<A: Address>(table: &mut Table<A>, ns: u64)
        where
            FlowKey<A>: aya::Pod,
            Flow<A>: aya::Pod,
        {
            let all: Vec<_> = table.iter().map(Result::unwrap).collect();
            for (key, mut flow) in all {
                flow.last_seen_ns -= ns;
                flow.born -= (ns / CREATED_UNIT_NS) as u32;
                table.insert(key, flow, EXIST).unwrap();
            }
        }
        shift(&mut self.maps.flow4, ns);
        shift(&mut self.maps.flow6, ns);
        shift(&mut self.maps.half4, ns);
        shift(&mut self.maps.half6, ns);
    }

    /// Removes one entry of the small tables, as the kernel does where they are full.
    #[track_caller]
    pub fn evict(&mut self, tuple: &str) {
        fn remove<A: Address>(table: &mut Table<A>, tuple: &str) -> bool
        where
            FlowKey<A>: aya::Pod,
            Flow<A>: aya::Pod,
        {
            let keys: Vec<_> = table.keys().map(Result::unwrap).collect();
            let found = keys.iter().find(|key| text(key) == tuple);
            found.inspect(|key| table.remove(key).unwrap()).is_some()
        }
        let gone = remove(&mut self.maps.half4, tuple) || remove(&mut self.maps.half6, tuple);
        assert!(gone, "no {tuple}");
    }

    /// How often a reason was counted.
    pub fn count(&self, reason: Reason) -> u64 {
        self.maps
            .reason
            .get(&(reason as u32), 0)
            .unwrap()
            .iter()
            .sum()
    }

    /// Sets the timeout of a state.
    pub fn timeout(&mut self, state: State, seconds: u64) {
        self.maps
            .timeout
            .set(state as u32, seconds * 1_000_000_000, 0)
            .unwrap();
    }
}
