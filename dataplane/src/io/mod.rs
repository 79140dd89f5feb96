//! Where the packet path touches the system: UDP and raw ESP sockets, the TUN device and the steering of
//! packets to the worker that owns their SA.
//!
//! Every system call that needs `unsafe` is in `sys`; the other files of this folder, like the rest of the
//! crate, are safe code.

mod batch;
mod message;
mod raw;
pub mod steering;
#[allow(unsafe_code)]
mod sys;
mod tun;
mod udp;

pub use batch::{
    BATCH, HEADROOM, LANES, MESSAGES, Meta, PASS_READ, PASS_SEND, Place, RecvBatch, SendBatch, SendSlot,
};
pub use raw::RawEspSocket;
pub use sys::kill_group;
pub use tun::{TUN_READ, Tun, TunOffload, TunQueue};
pub use udp::{UdpSocket, path_mtu};

#[cfg(test)]
pub(crate) use sys::enter_new_network;
