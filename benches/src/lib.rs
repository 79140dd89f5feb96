//! Tools to measure mobikex with, and its micro-benchmarks. Nothing here ships in the product.

pub mod flood;
pub mod memory;
pub mod sample;
pub mod setups;
pub mod shaper;
