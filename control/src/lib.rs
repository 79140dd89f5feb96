//! The control half of mobikex: configuration, the IKEv2 engine, the daemon around it and the command line.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod dissect;
pub mod eap;
pub mod ike;
pub mod logging;
pub mod protocol;
pub mod views;
