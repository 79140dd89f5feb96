//! What both halves of mobikex speak: addresses, SPIs, traffic selectors, algorithms, cryptography and wire
//! formats.
//!
//! Nothing here does I/O, reads a clock or contains `unsafe`; everything is a value or a pure function of its
//! arguments, so that the engine and the packet path can be tested with vectors alone.
#![forbid(unsafe_code)]

pub mod addr;
pub mod alg;
pub mod crypto;
pub mod drop;
pub mod proposal;
mod registry;
pub mod sa;
pub mod spi;
pub mod ts;
pub mod wire;
