//! Userspace ESP: pinned workers between TUN queues and UDP or raw sockets.
#![deny(unsafe_code)]

pub mod counters;
pub mod esp;
pub mod io;
pub mod paths;
pub mod published;
pub mod sad;
mod spd;
pub mod tables;
