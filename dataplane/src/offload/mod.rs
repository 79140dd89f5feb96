//! Super-packets: what the system hands over at once is cut into packets before they are sealed ([`Segments`]), and
//! what was opened is merged again before it is written ([`Coalescer`]). Neither does I/O.

mod coalesce;
mod segment;
#[cfg(test)]
mod tests;

pub use coalesce::Coalescer;
pub use segment::{Segments, complete_checksum};
