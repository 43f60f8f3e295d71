//! User space of fsm-fastpath: configuration, loader, control, command line, lab.
#![warn(missing_docs)]

pub mod api;
pub mod cli;
pub mod config;
pub mod loader;
pub mod maps;
pub mod view;
