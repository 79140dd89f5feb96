//! The control half of mobikex: configuration and the IKEv2 engine.
#![forbid(unsafe_code)]

pub mod config;
pub mod daemon;
pub mod ike;
