//! The kernel's side: the same steps for XDP and TC, over the maps.

pub mod count;
pub mod fib;
pub mod fragment;
pub mod judge;
pub mod maps;

pub use judge::{Dropped, Next, Place, judge, judge_trusted, rejudge};
pub use maps::Tables;
