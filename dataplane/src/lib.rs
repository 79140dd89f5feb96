//! The packet path of mobikex: ESP in user space, between a TUN device and the network.
//!
//! [`Dataplane`] is the way in. Below it lie parts that do no I/O ([`esp`], [`sad`], [`paths`], [`tables`]), and the
//! workers that join them to the system's devices and sockets ([`io`]).
#![deny(unsafe_code)]

pub mod counters;
mod engine;
pub mod esp;
pub mod io;
pub mod offload;
pub mod paths;
pub mod published;
pub mod sad;
mod spd;
pub mod tables;
#[cfg(test)]
mod testing;
mod upcall;
mod worker;

pub use engine::{Dataplane, DataplaneConfig, DataplaneError};
pub use upcall::Upcall;
