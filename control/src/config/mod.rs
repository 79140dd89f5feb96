//! The configuration: swanctl.conf's grammar on the outside, typed values on the inside.

mod model;

pub use model::{
    AddrPattern, AuthRound, Child, Config, Connection, DaemonSettings, DpdAction, PskSecret, StartAction,
    TsPattern, Unique,
};
