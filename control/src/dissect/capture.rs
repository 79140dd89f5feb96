//! Capture files: classic pcap, and pcapng (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng).
//!
//! Files come from anywhere, so nothing in them is believed: a frame is read only up to [`MAX_FRAME`] octets, other
//! blocks are skipped without being held, and interfaces are counted.

use std::io::{self, Read};
use std::time::Duration;

/// Octets of the longest frame that is read; loopback captures hold the largest, of somewhat more than 64 KiB.
pub const MAX_FRAME: usize = 256 * 1024;
/// Interfaces of one section.
const MAX_INTERFACES: usize = 4096;
/// What a block of pcapng with packet data or options of ours has around its frame, generously.
const MAX_BLOCK: usize = MAX_FRAME + 64 * 1024;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const OPTION_TSRESOL: u16 = 9;
const OPTION_TSOFFSET: u16 = 14;

/// One captured frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// When, since the beginning of 1970, if the file says so.
    pub time: Option<Duration>,
    /// LINKTYPE of the interface.
    pub link: u32,
    /// What was captured of it.
    pub octets: Vec<u8>,
    /// Octets that it had on the wire.
    pub original: usize,
}

/// A capture file cannot be read (further).
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The system says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Neither of the two formats.
    #[error("not a capture file: neither pcap nor pcapng")]
    NotACapture,
    /// It ends in the middle of something.
    #[error("the capture file is cut short")]
    Truncated,
    /// It contradicts itself or goes beyond what is sensible.
    #[error("the capture file is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads frames one after the other.
#[derive(Debug)]
pub struct Capture<R> {
    input: R,
    big_endian: bool,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Pcap { link: u32, ticks: u64 },
    Pcapng { interfaces: Vec<Interface> },
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap: u32,
    /// Ticks a second; 0 when the file asks for more than can be counted.
    ticks: u64,
    /// Seconds to add.
    offset: u64,
}

impl<R: Read> Capture<R> {
    /// Looks at the file's first octets.
    ///
    /// # Errors
    /// When it is no capture file or cannot be read.
    pub fn new(mut input: R) -> Result<Self, CaptureError> {
        let mut magic = [0; 4];
        if !fill(&mut input, &mut magic)? {
            return Err(CaptureError::NotACapture);
        }
        let big_endian = matches!(magic[0], 0xa1);
        let (native, ticks) = match u32::from_be_bytes(magic) {
            SECTION_HEADER => {
                let format = Format::Pcapng { interfaces: Vec::new() };
                let mut capture = Self { input, big_endian, format };
                capture.section()?;
                return Ok(capture);
            }
            0xa1b2_c3d4 | 0xd4c3_b2a1 => (big_endian, 1_000_000),
            0xa1b2_3c4d | 0x4d3c_b2a1 => (big_endian, 1_000_000_000),
            _ => return Err(CaptureError::NotACapture),
        };
        let mut capture = Self { input, big_endian: native, format: Format::Pcap { link: 0, ticks } };
        let rest = capture.exactly::<20>()?;
        // The upper half of the field holds what is known about a frame check sequence.
        let link = capture.u32(&rest[16..]) & 0xffff;
        capture.format = Format::Pcap { link, ticks };
        Ok(capture)
    }

    /// The next frame, or `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read further; what follows is lost.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        match self.format {
            Format::Pcap { link, ticks } => self.pcap_frame(link, ticks),
            Format::Pcapng { .. } => self.pcapng_frame(),
        }
    }

    fn pcap_frame(&mut self, link: u32, ticks: u64) -> Result<Option<Frame>, CaptureError> {
        let mut header = [0; 16];
        if !fill(&mut self.input, &mut header)? {
            return Ok(None);
        }
        let [seconds, fraction, captured, original] = [0, 4, 8, 12].map(|at| self.u32(&header[at..]));
        let octets = self.octets(captured as usize, MAX_FRAME)?;
        let time = time(u64::from(seconds), u64::from(fraction), ticks);
        Ok(Some(Frame { time, link, octets, original: original as usize }))
    }

    fn pcapng_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let mut kind = [0; 4];
            if !fill(&mut self.input, &mut kind)? {
                return Ok(None);
            }
            if u32::from_be_bytes(kind) == SECTION_HEADER {
                self.section()?;
                continue;
            }
            let kind = self.u32(&kind);
            let length = self.exactly::<4>().map(|octets| self.u32(&octets))?;
            let body = self.body_length(length, 12)?;
            let frame = match kind {
                INTERFACE_DESCRIPTION | SIMPLE_PACKET | ENHANCED_PACKET => {
                    let body = self.octets(body, MAX_BLOCK)?;
                    match kind {
                        INTERFACE_DESCRIPTION => self.interface(&body).map(|()| None)?,
                        SIMPLE_PACKET => Some(self.simple(&body)?),
                        _ => Some(self.enhanced(&body)?),
                    }
                }
                _ => {
                    let skipped = io::copy(&mut self.input.by_ref().take(body as u64), &mut io::sink())?;
                    if skipped < body as u64 {
                        return Err(CaptureError::Truncated);
                    }
                    None
                }
            };
            let again = self.exactly::<4>().map(|octets| self.u32(&octets))?;
            if again != length {
                return Err(CaptureError::Damaged("the two lengths of a block differ"));
            }
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// The rest of a Section Header Block, which settles the byte order anew.
    fn section(&mut self) -> Result<(), CaptureError> {
        let head = self.exactly::<8>()?;
        self.big_endian = match head[4..] {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ => return Err(CaptureError::Damaged("a section without byte order")),
        };
        let length = self.u32(&head);
        let rest = self.body_length(length, 16)? as u64 + 4;
        if io::copy(&mut self.input.by_ref().take(rest), &mut io::sink())? < rest {
            return Err(CaptureError::Truncated);
        }
        self.format = Format::Pcapng { interfaces: Vec::new() };
        Ok(())
    }

    fn body_length(&self, length: u32, around: usize) -> Result<usize, CaptureError> {
        let length = length as usize;
        match length.checked_sub(around) {
            Some(body) if length.is_multiple_of(4) => Ok(body),
            _ => Err(CaptureError::Damaged("a block of an impossible length")),
        }
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), CaptureError> {
        let Some((head, mut options)) = body.split_at_checked(8) else {
            return Err(CaptureError::Damaged("an interface description without content"));
        };
        let mut interface = Interface {
            link: u32::from(self.u16(head)),
            snap: self.u32(&head[4..]),
            ticks: 1_000_000,
            offset: 0,
        };
        while let Some((head, rest)) = options.split_at_checked(4) {
            let (code, length) = (self.u16(head), usize::from(self.u16(&head[2..])));
            let Some((value, rest)) = rest.split_at_checked(length.next_multiple_of(4)) else { break };
            match (code, length) {
                (0, _) => break,
                (OPTION_TSRESOL, 1) => interface.ticks = ticks(value[0]),
                (OPTION_TSOFFSET, 8) => {
                    let halves = [0, 4].map(|at| u64::from(self.u32(&value[at..])));
                    let [high, low] = if self.big_endian { halves } else { [halves[1], halves[0]] };
                    interface.offset = high << 32 | low;
                }
                _ => {}
            }
            options = rest;
        }
        let Format::Pcapng { interfaces } = &mut self.format else { return Ok(()) };
        if interfaces.len() == MAX_INTERFACES {
            return Err(CaptureError::Damaged("too many interfaces"));
        }
        interfaces.push(interface);
        Ok(())
    }

    fn enhanced(&self, body: &[u8]) -> Result<Frame, CaptureError> {
        let Some((head, rest)) = body.split_at_checked(20) else {
            return Err(CaptureError::Damaged("a packet block without header"));
        };
        let [id, high, low, captured, original] = [0, 4, 8, 12, 16].map(|at| self.u32(&head[at..]));
        let interface = self.interface_at(id as usize)?;
        let octets = rest.get(..captured as usize).filter(|octets| octets.len() <= MAX_FRAME);
        let octets = octets.ok_or(CaptureError::Damaged("a frame longer than its block"))?.to_vec();
        let count = u64::from(high) << 32 | u64::from(low);
        let time = match interface.ticks {
            0 => None,
            ticks => time(interface.offset.wrapping_add(count / ticks), count % ticks, ticks),
        };
        Ok(Frame { time, link: interface.link, octets, original: original as usize })
    }

    fn simple(&self, body: &[u8]) -> Result<Frame, CaptureError> {
        let Some((head, rest)) = body.split_at_checked(4) else {
            return Err(CaptureError::Damaged("a packet block without header"));
        };
        let interface = self.interface_at(0)?;
        let original = self.u32(head) as usize;
        let snap = if interface.snap == 0 { MAX_FRAME } else { interface.snap as usize };
        let octets = rest[..original.min(snap).min(rest.len()).min(MAX_FRAME)].to_vec();
        Ok(Frame { time: None, link: interface.link, octets, original })
    }

    fn interface_at(&self, id: usize) -> Result<Interface, CaptureError> {
        let Format::Pcapng { interfaces } = &self.format else { return Err(CaptureError::NotACapture) };
        interfaces.get(id).copied().ok_or(CaptureError::Damaged("a packet of an interface that is not there"))
    }

    fn octets(&mut self, count: usize, most: usize) -> Result<Vec<u8>, CaptureError> {
        if count > most {
            return Err(CaptureError::Damaged("a frame of an impossible length"));
        }
        let mut octets = vec![0; count];
        if fill(&mut self.input, &mut octets)? || count == 0 {
            Ok(octets)
        } else {
            Err(CaptureError::Truncated)
        }
    }

    fn exactly<const N: usize>(&mut self) -> Result<[u8; N], CaptureError> {
        let mut octets = [0; N];
        if fill(&mut self.input, &mut octets)? { Ok(octets) } else { Err(CaptureError::Truncated) }
    }

    fn u32(&self, octets: &[u8]) -> u32 {
        let octets = octets.first_chunk().copied().unwrap_or_default();
        if self.big_endian { u32::from_be_bytes(octets) } else { u32::from_le_bytes(octets) }
    }

    fn u16(&self, octets: &[u8]) -> u16 {
        let octets = octets.first_chunk().copied().unwrap_or_default();
        if self.big_endian { u16::from_be_bytes(octets) } else { u16::from_le_bytes(octets) }
    }
}

/// Fills `octets`; false at the end of the input, an error in the middle.
fn fill(input: &mut impl Read, octets: &mut [u8]) -> Result<bool, CaptureError> {
    let mut have = 0;
    while have < octets.len() {
        match input.read(&mut octets[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(CaptureError::Truncated),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(have > 0)
}

/// Ticks a second of an if_tsresol option: a negative power of ten, or of two with the top bit.
fn ticks(resolution: u8) -> u64 {
    let power = u32::from(resolution & 0x7f);
    if resolution & 0x80 == 0 { 10u64.checked_pow(power) } else { 1u64.checked_shl(power) }.unwrap_or(0)
}

fn time(seconds: u64, fraction: u64, ticks: u64) -> Option<Duration> {
    let nanos = u128::from(fraction) * 1_000_000_000 / u128::from(ticks);
    // A fraction beyond a second is nonsense, but no reason to lose the frame.
    Duration::from_secs(seconds).checked_add(Duration::from_nanos(u64::try_from(nanos).ok()?))
}
