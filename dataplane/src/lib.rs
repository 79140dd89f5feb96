//! Userspace ESP: pinned workers between TUN queues and UDP or raw sockets.
#![deny(unsafe_code)]

pub mod io;
