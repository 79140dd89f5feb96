//! What is in a capture: every packet in a line, and below it every payload in full.
//!
//! Pure: [`capture`] takes octets from any reader, [`Dissector`] makes text or data of them. Nothing that it reads is
//! trusted. Unlike the engine, which refuses a message with a malformed payload, it shows the fault and goes on.

mod capture;
mod chain;
mod esp;
mod fragments;
mod keys;
mod link;
mod message;
mod names;
mod node;
mod notify;
mod payloads;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::{esp as wire_esp, udp};
use serde::{Serialize, Serializer};

pub use capture::{Capture, CaptureError, Frame, MAX_FRAME};
pub use keys::{EspKeys, IkeKeys, Keys, KeysError};
pub use node::Node;

use fragments::Fragments;

const IKE_PORT: u16 = 500;
const NAT_PORT: u16 = 4500;

/// One packet of a capture.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Dissected {
    /// Its place in the capture, from 1.
    pub number: u64,
    /// When it was captured, since the beginning of 1970.
    #[serde(serialize_with = "seconds")]
    pub time: Option<Duration>,
    /// Seconds since the first packet of the capture.
    #[serde(skip)]
    since: Option<Duration>,
    /// Source and destination, with ports where it has some.
    pub from: String,
    /// See `from`.
    pub to: String,
    /// What it is, in a few words.
    pub summary: String,
    /// What is in it.
    pub payloads: Vec<Node>,
}

/// As decimal text: a number would lose nanoseconds in many JSON readers.
fn seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&format_args!("{}.{:09}", time.as_secs(), time.subsec_nanos())),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Dissected {
    /// The packet's line and the indented ones of its payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        if let Some(since) = self.since {
            write!(f, " {}.{:06}", since.as_secs(), since.subsec_micros())?;
        }
        if !self.from.is_empty() {
            write!(f, " {} > {}", self.from, self.to)?;
        }
        writeln!(f, " {}", self.summary)?;
        self.payloads.iter().try_for_each(|node| node.fmt(f))
    }
}

/// Takes the packets of one capture apart, in their order.
#[derive(Default)]
pub struct Dissector {
    keys: Keys,
    fragments: Fragments,
    first: Option<Duration>,
    count: u64,
}

impl Dissector {
    /// With keys, or none.
    pub fn new(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }

    /// The next frame of the capture.
    pub fn frame(&mut self, frame: &Frame) -> Dissected {
        self.count += 1;
        self.first = self.first.or(frame.time);
        let mut out = Dissected {
            number: self.count,
            time: frame.time,
            since: frame.time.zip(self.first).map(|(time, first)| time.saturating_sub(first)),
            from: String::new(),
            to: String::new(),
            summary: String::new(),
            payloads: Vec::new(),
        };
        match link::packet(frame.link, &frame.octets) {
            Ok(packet) => self.ip(packet, &mut out),
            Err(reason) => out.summary = reason,
        }
        if frame.octets.len() < frame.original {
            let lost = format!(", captured {} of {} octets", frame.octets.len(), frame.original);
            out.summary += &lost;
        }
        out
    }

    fn ip(&mut self, octets: &[u8], out: &mut Dissected) {
        let packet = match Packet::parse(octets) {
            Ok(packet) => packet,
            Err(error) => {
                out.summary = format!("IP, malformed: {error}");
                return;
            }
        };
        (out.from, out.to) = (packet.src.to_string(), packet.dst.to_string());
        if packet.is_fragment() {
            // The ports may be missing, the data surely is: nothing to show but the fact.
            let name = names::protocol(packet.protocol);
            out.summary = format!("{name}, IP fragment at {}", packet.fragment.offset);
            return;
        }
        match packet.protocol {
            wire_esp::PROTOCOL => (out.summary, out.payloads) = esp::found(&self.keys, packet.payload()),
            udp::PROTOCOL => self.udp(packet.payload(), out),
            other => out.summary = names::protocol(other),
        }
    }

    fn udp(&mut self, datagram: &[u8], out: &mut Dissected) {
        let header = match udp::Header::parse(datagram) {
            Ok(header) => header,
            Err(error) => {
                out.summary = format!("UDP, malformed: {error}");
                return;
            }
        };
        let payload = &datagram[udp::Header::LEN..usize::from(header.length)];
        let with_port = |addr: &str, port| {
            if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") }
        };
        (out.from, out.to) = (with_port(&out.from, header.src_port), with_port(&out.to, header.dst_port));
        let ports = [header.src_port, header.dst_port];
        (out.summary, out.payloads) = if ports.contains(&NAT_PORT) {
            self.encapsulated(payload)
        } else if ports.contains(&IKE_PORT) {
            message::found(&self.keys, &mut self.fragments, payload)
        } else {
            ("UDP".into(), Vec::new())
        };
    }

    fn encapsulated(&mut self, payload: &[u8]) -> message::Found {
        match wire_esp::classify(payload) {
            wire_esp::Datagram::Ike(octets) => message::found(&self.keys, &mut self.fragments, octets),
            wire_esp::Datagram::Esp => esp::found(&self.keys, payload),
            wire_esp::Datagram::Keepalive => ("NAT keepalive".into(), Vec::new()),
            wire_esp::Datagram::Short => {
                ("too short for IKE or ESP".into(), vec![Node::octets("data", payload)])
            }
        }
    }
}
