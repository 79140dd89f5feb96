//! Tools to measure mobikex with, and its micro-benchmarks. Nothing here ships in the product.

pub mod sample;
pub mod shaper;
