//! Wire formats. One file per protocol; parsers take slices, check lengths first and never panic.

pub mod ike;
