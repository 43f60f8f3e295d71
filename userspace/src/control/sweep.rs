//! Ends flows that have been idle for longer than their state allows. Reads the tables in bounded slices and
//! deletes both directions and the origin entry of what has ended; a packet costs nothing for it, and does
//! not depend on it either: a flow that is over is also known by its next packet.
//!
//! When the main table is nearly full, the flows that have been idle for longest go first ([`Pressure`]).

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError},
};
use fsm_common::{
    flow::{Address, Flow, FlowKey, nf},
    maps::{Origin, OriginKey, name, sys},
    track::Side,
};
use tracing::{info, warn};

use crate::{
    config::Conntrack,
    loader::sys::Batch,
    maps::Maps,
    view::state::{State, state, timeout_s},
};

/// Entries read in one slice; a slice of this size takes some milliseconds.
const SLICE: usize = 4096;
const NS_PER_S: u64 = 1_000_000_000;
/// See [`Sweep::paced`].
const REST: u32 = 100;
/// The same.
const LONGEST_REST: Duration = Duration::from_secs(5);

type Flows<A> = HashMap<MapData, FlowKey<A>, Flow<A>>;
type Origins = HashMap<MapData, OriginKey, Origin>;

/// Where the sweep stands.
pub struct Sweep {
    main: (Table, Table),
    half: (Table, Table),
    pressure: Pressure,
    /// Passes are followed by a rest.
    is_paced: bool,
}

struct Table {
    name: &'static str,
    map: MapData,
    batch: Batch,
    /// Time that this pass has taken so far.
    spent: Duration,
    /// When the next pass may begin.
    rest_until: Option<Instant>,
    /// Being counted in this pass, and as counted by the last whole one.
    census: [Census; 2],
}

/// What a pass over the tables has counted.
#[derive(Debug, Default, Clone)]
pub struct Census {
    /// Flows by protocol number and state.
    pub flows: BTreeMap<(u8, State), i64>,
    /// Entries by map.
    pub entries: BTreeMap<&'static str, i64>,
    /// Open flows by idle time: below 1 s, 2 s, 4 s and so on.
    idle: [u64; 32],
}

/// What a slice has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Entries looked at.
    pub seen: usize,
    /// Flows ended because their time was over.
    pub ended: usize,
    /// Flows ended because the table is nearly full.
    pub evicted: usize,
}

/// How far idle times are shortened while the main table is nearly full.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Seconds after which an open flow goes; `None` while there is room.
    cutoff_s: Option<u64>,
}

impl Pressure {
    /// Open flows that have spoken within this time never go.
    const LEAST_S: u64 = 60;
    /// Flows that are about to end go after this time.
    const CLOSING_S: u64 = 1;
    /// The table counts as nearly full from here on, percent.
    const FROM: u64 = 90;

    /// What to do with a table of `flows` flows out of `max`, of which so many have been idle for so long:
    /// the longest idle tenth goes.
    pub fn of(flows: u64, max: u64, idle: &[u64; 32]) -> Self {
        if flows * 100 < max * Self::FROM {
            return Self::default();
        }
        let (mut sum, mut cutoff_s) = (0, Self::LEAST_S);
        for (bucket, count) in idle.iter().enumerate().rev() {
            sum += count;
            // Bucket n begins at 2^(n-1) seconds.
            cutoff_s = if bucket == 0 { 0 } else { 1 << (bucket - 1) };
            if sum * 10 >= max {
                break;
            }
        }
        Self {
            cutoff_s: Some(cutoff_s.max(Self::LEAST_S)),
        }
    }

    /// The idle time after which a flow in this state goes.
    fn timeout_s(self, state: State, conntrack: &Conntrack) -> u64 {
        let usual = u64::from(timeout_s(state, conntrack));
        let Some(cutoff_s) = self.cutoff_s else {
            return usual;
        };
        let closing = matches!(
            state,
            State::FinWait | State::CloseWait | State::LastAck | State::TimeWait | State::Close
        );
        usual.min(if closing { Self::CLOSING_S } else { cutoff_s })
    }
}

impl Sweep {
    /// Opens the flow tables below the pin directory.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(dir: &Path) -> Result<Self, MapError> {
        let table = |name: &'static str| {
            let map = MapData::from_pin(dir.join(name))?;
            Ok::<_, MapError>(Table {
                name,
                map,
                batch: Batch::default(),
                spent: Duration::ZERO,
                rest_until: None,
                census: Default::default(),
            })
        };
        Ok(Self {
            main: (table(name::FSM_XFLOW)?, table(name::FSM_XFLOW6)?),
            half: (table(name::FSM_HALF)?, table(name::FSM_HALF6)?),
            pressure: Pressure::default(),
            is_paced: false,
        })
    }

    /// Has each pass over a table followed by a rest of [`REST`] times as long as it took, [`LONGEST_REST`] at most,
    /// while there is room: an empty table costs as much to walk through as a full one, and the core that does it has
    /// packets to handle too.
    pub fn paced(self) -> Self {
        Self {
            is_paced: true,
            ..self
        }
    }

    /// Flows and entries as the last whole pass over each table has counted them.
    pub fn census(&self) -> Census {
        let mut all = Census::default();
        for table in [&self.main.0, &self.main.1, &self.half.0, &self.half.1] {
            let census = &table.census[1];
            for (key, count) in &census.flows {
                *all.flows.entry(*key).or_default() += count;
            }
            all.entries.extend(&census.entries);
        }
        all
    }

    /// Whether the main table is nearly full, so that the next step should not wait.
    pub fn is_pressed(&self) -> bool {
        self.pressure.cutoff_s.is_some()
    }

    /// Looks at the next slice of each table. `is_full`: a flow has found no room since the last step.
    pub fn step(
        &mut self,
        maps: &mut Maps,
        conntrack: &Conntrack,
        now_ns: u64,
        is_full: bool,
    ) -> Swept {
        self.weigh(conntrack, is_full);
        let none = Pressure::default();
        let (full, xopt, half) = (self.pressure, &mut maps.xopt, &mut maps.xopt_half);
        let mut swept = Swept::default();
        let may_rest = self.is_paced && !self.is_pressed();
        let (main, small) = (&mut self.main, &mut self.half);
        for table in [&mut main.0, &mut main.1, &mut small.0, &mut small.1] {
            table.rest_until = table.rest_until.filter(|_| may_rest);
        }
        swept.add(main.0.sweep(&mut maps.flow4, xopt, conntrack, full, now_ns));
        swept.add(main.1.sweep(&mut maps.flow6, xopt, conntrack, full, now_ns));
        swept.add(
            small
                .0
                .sweep(&mut maps.half4, half, conntrack, none, now_ns),
        );
        swept.add(
            small
                .1
                .sweep(&mut maps.half6, half, conntrack, none, now_ns),
        );
        swept
    }

    /// Sets the pressure from what the last pass has counted, at the front of each pass.
    fn weigh(&mut self, conntrack: &Conntrack, is_full: bool) {
        let before = self.pressure;
        if is_full && before.cutoff_s.is_none() {
            self.pressure.cutoff_s = Some(u64::from(conntrack.tcp_established_s).min(3600));
        } else if self.main.0.batch.is_at_start() {
            let count = |table: &Table| {
                let census = &table.census[0];
                let entries = census.entries.values().sum::<i64>();
                (u64::try_from(entries).unwrap_or(0) / 2, census.idle)
            };
            let (v4, v6) = (count(&self.main.0), count(&self.main.1));
            let (flows, idle) = if v4.0 > v6.0 { v4 } else { v6 };
            let floor = if is_full { u64::MAX / 200 } else { flows };
            self.pressure = Pressure::of(floor, u64::from(conntrack.max_flows), &idle);
        }
        if self.pressure != before {
            match self.pressure.cutoff_s {
                Some(cutoff_s) => info!(
                    "the flow table is nearly full (conntrack.max_flows = {}): flows idle for over {cutoff_s} s go",
                    conntrack.max_flows
                ),
                None => info!("the flow table has room again"),
            }
        }
    }
}

impl Swept {
    fn add(&mut self, other: Self) {
        self.seen += other.seen;
        self.ended += other.ended;
        self.evicted += other.evicted;
    }
}

impl Table {
    /// Looks at the next slice, and removes from `flows` (which is this table) what is over.
    fn sweep<A: Address>(
        &mut self,
        flows: &mut Flows<A>,
        origins: &mut Origins,
        conntrack: &Conntrack,
        pressure: Pressure,
        now_ns: u64,
    ) -> Swept
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let mut swept = Swept::default();
        let begin = Instant::now();
        if self.batch.is_at_start() && self.rest_until.is_some_and(|until| begin < until) {
            return swept;
        }
        for (key, flow) in self.slice::<A>() {
            swept.seen += 1;
            let Some(over) = self.judge(&key, &flow, flows, conntrack, pressure, now_ns) else {
                continue;
            };
            // It may have spoken since the slice was read.
            if flows
                .get(&key, 0)
                .is_ok_and(|now| now.last_seen_ns == flow.last_seen_ns)
            {
                let ended = end(flows, origins, &key, &flow);
                match over {
                    Over::Timeout => swept.ended += ended,
                    Over::Evicted => swept.evicted += ended,
                }
            }
        }
        self.spent += begin.elapsed();
        if self.batch.is_at_start() {
            let rest = (std::mem::take(&mut self.spent) * REST).min(LONGEST_REST);
            self.rest_until = Some(begin + rest);
        }
        swept
    }

    /// The next entries; at the front of the table a new census begins.
    fn slice<A>(&mut self) -> Vec<(FlowKey<A>, Flow<A>)>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        if self.batch.is_at_start() {
            self.census[1] = std::mem::take(&mut self.census[0]);
            self.census[0].entries.insert(self.name, 0);
        }
        let read = self.batch.next(&self.map.fd().as_fd(), SLICE);
        match read {
            Ok(entries) => entries.unwrap_or_default(),
            Err(error) => {
                warn!("the flow table cannot be read: {error}");
                self.batch = Batch::default();
                Vec::new()
            }
        }
    }

    /// Counts the entry, and says whether its flow has been idle for too long in both directions.
    fn judge<A: Address>(
        &mut self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        flows: &Flows<A>,
        conntrack: &Conntrack,
        pressure: Pressure,
        now_ns: u64,
    ) -> Option<Over>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let census = &mut self.census[0];
        let idle_s = |flow: &Flow<A>| now_ns.saturating_sub(flow.last_seen_ns) / NS_PER_S;
        let is_reply = flow.nf & nf::REPLY != 0;
        // An answer is judged with its flow; alone only once it is idle, for its flow may be gone.
        if is_reply && idle_s(flow) <= Pressure::CLOSING_S {
            *census.entries.entry(self.name).or_default() += 1;
            return None;
        }
        let pair = flows.get(&flow.pair_key(key), 0).ok();
        let side = |flow: Option<&Flow<A>>| flow.map_or_else(Side::default, Flow::side);
        let (orig, reply) = match is_reply {
            false => (side(Some(flow)), side(pair.as_ref())),
            true => (side(pair.as_ref()), side(Some(flow))),
        };
        let state = state(key.proto, orig, reply);
        let idle = pair
            .as_ref()
            .map_or(idle_s(flow), |pair| idle_s(flow).min(idle_s(pair)));
        if idle > u64::from(timeout_s(state, conntrack)) {
            return Some(Over::Timeout);
        }
        if idle > pressure.timeout_s(state, conntrack) {
            return Some(Over::Evicted);
        }
        *census.entries.entry(self.name).or_default() += 1;
        if !is_reply {
            *census.flows.entry((key.proto, state)).or_default() += 1;
            census.idle[(u64::BITS - idle.leading_zeros()).min(31) as usize] += 1;
        }
        None
    }
}

/// Why a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Timeout,
    Evicted,
}

/// Deletes both directions and the origin; 1 if the original direction was there.
fn end<A: Address>(
    flows: &mut Flows<A>,
    origins: &mut Origins,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> usize
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let is_reply = flow.nf & nf::REPLY != 0;
    let pair = flow.pair_key(key);
    let (original, answer) = if is_reply { (&pair, key) } else { (key, &pair) };
    // The original goes last: a packet finds all of its flow, or makes all of it anew.
    let _ = flows.remove(answer);
    let was_there = flows.remove(original).is_ok();
    if flow.nf & nf::XNAT != 0 {
        // What the gateway saw: the translated tuple, or the reply's own.
        let seen = if is_reply {
            key.reversed()
        } else {
            flow.translated(key)
        };
        remove_origin(origins, &seen);
    }
    usize::from(was_there)
}

/// Removes the origin of a tuple as the gateway saw it, whichever parts the flags put into its key.
fn remove_origin<A: Address>(origins: &mut Origins, seen: &FlowKey<A>) {
    for (with_addr, with_port) in [(true, true), (true, false), (false, true), (false, false)] {
        let key = OriginKey {
            laddr: if with_addr {
                seen.daddr.widen()
            } else {
                [0; 16]
            },
            raddr: seen.saddr.widen(),
            lport: if with_port { seen.dport } else { [0; 2] },
            rport: seen.sport,
            proto: seen.proto,
            v6: u8::from(size_of::<A>() == 16),
            sys: sys::MESH,
            pad: 0,
        };
        if origins.remove(&key).is_ok() {
            return;
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the programs.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: points to a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_room_keeps_everybody() {
        assert_eq!(Pressure::of(899, 1000, &[100; 32]), Pressure::default());
    }

    #[test]
    fn the_longest_idle_tenth_goes_first() {
        let mut idle = [0; 32];
        idle[0] = 800;
        // 512 s to 1023 s
        idle[10] = 70;
        // 2048 s and more
        idle[12] = 60;
        let pressure = Pressure::of(930, 1000, &idle);
        assert_eq!(pressure.cutoff_s, Some(512));
    }

    #[test]
    fn who_has_spoken_within_a_minute_stays() {
        let mut idle = [0; 32];
        idle[2] = 1000;
        assert_eq!(Pressure::of(1000, 1000, &idle).cutoff_s, Some(60));
    }

    #[test]
    fn closing_flows_go_before_open_ones() {
        let text = "[[interface]]\nname = \"eth0\"\nrole = \"uplink\"\n";
        let conntrack = crate::config::parse(text, "node.toml".as_ref())
            .unwrap()
            .conntrack;
        let pressure = Pressure {
            cutoff_s: Some(600),
        };
        assert_eq!(pressure.timeout_s(State::TimeWait, &conntrack), 1);
        assert_eq!(pressure.timeout_s(State::Established, &conntrack), 600);
        assert_eq!(pressure.timeout_s(State::Unreplied, &conntrack), 30);
    }
}
