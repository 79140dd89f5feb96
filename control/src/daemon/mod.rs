//! The daemon: everything between the engine, which neither reads a clock nor opens a socket, and the machine.

pub mod netlink;
pub mod routes;
