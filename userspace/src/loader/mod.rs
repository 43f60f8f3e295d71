//! From a checked configuration to programs on devices: objects, maps, links, and back to nothing.

pub mod objects;
