//! From a captured frame to the IP packet in it.

/// Tags of a frame that are looked behind (IEEE 802.1Q, 802.1ad).
const MAX_TAGS: usize = 4;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// The IP packet of a frame of the given LINKTYPE, perhaps with padding behind it, or what there is instead.
pub(super) fn packet(link: u32, frame: &[u8]) -> Result<&[u8], String> {
    let (protocol, packet) = match link {
        // BSD loopback (0, 108): a family, whose values differ between systems.
        0 | 108 => return frame.get(4..).ok_or_else(short),
        1 => ethernet(frame).ok_or_else(short)?,
        // Raw IP: 12 and 14 are what some systems wrote for 101; 228 and 229 are of one family.
        12 | 14 | 101 | 228 | 229 => return Ok(frame),
        // Linux cooked, version 1 and 2.
        113 => at(frame, 14, 16).ok_or_else(short)?,
        276 => at(frame, 0, 20).ok_or_else(short)?,
        other => return Err(format!("link type {other} is not known")),
    };
    match protocol {
        IPV4 | IPV6 => Ok(packet),
        other => Err(format!("no IP packet, ethertype {other:#06x}")),
    }
}

fn short() -> String {
    "shorter than a link header".into()
}

/// The protocol field at `protocol`, and what begins at `payload`.
fn at(frame: &[u8], protocol: usize, payload: usize) -> Option<(u16, &[u8])> {
    Some((u16::from_be_bytes(*frame.get(protocol..)?.first_chunk()?), frame.get(payload..)?))
}

fn ethernet(frame: &[u8]) -> Option<(u16, &[u8])> {
    let (mut protocol, mut payload) = at(frame, 12, 14)?;
    for _ in 0..MAX_TAGS {
        if !TAGS.contains(&protocol) {
            break;
        }
        (protocol, payload) = at(payload, 2, 4)?;
    }
    Some((protocol, payload))
}
