use aya_ebpf::{macros::map, maps::HashMap};
#[map]
pub static FSM_TEST: HashMap<u64, u64> = HashMap::pinned(16, 0);
