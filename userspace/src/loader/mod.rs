//! From a checked configuration to programs on devices: objects, maps, links, and back to nothing.

pub mod apply;
pub mod attach;
pub mod bulk;
pub mod devices;
pub mod down;
pub mod dpi;
pub mod ethtool;
pub mod node;
pub mod objects;
pub mod peer;
pub mod preflight;
pub mod syn_cookie;
pub mod sys;
pub mod vip;
pub mod workers;
