//! The kernel's side: the same steps for XDP and TC, over the maps.

#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, keys would be copied once more on the BPF stack"
)]

mod again;
pub mod balance;
pub mod count;
pub mod fib;
pub mod fragment;
pub mod guard;
mod half;
pub mod inspect;
pub mod judge;
pub mod maps;
mod steer;
mod store;

pub use again::{again, forget};
pub use half::half;
pub use judge::{Dropped, Next, Place, judge, judge_trusted};
pub use maps::Tables;
