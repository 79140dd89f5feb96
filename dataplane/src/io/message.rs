//! Socket addresses and ancillary data as the kernel lays them out in memory, read and written as plain octets.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for a `sockaddr_in` or a `sockaddr_in6`.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
pub(super) struct Name([u8; 32]);

/// Room for ancillary data: packet information of either family and a traffic class.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 128]);

impl Default for Control {
    fn default() -> Self {
        Self([0; 128])
    }
}

const V4_LEN: usize = size_of::<libc::sockaddr_in>();
const V6_LEN: usize = size_of::<libc::sockaddr_in6>();
/// `struct cmsghdr`: a length of pointer size, the level and the type.
const CMSG_HEADER: usize = align(size_of::<usize>() + 8);

/// What ancillary data says of a received message.
#[derive(Clone, Copy, Default)]
pub(super) struct Info {
    /// Destination address of the packet.
    pub(super) local: Option<IpAddr>,
    /// The interface that it came in on.
    pub(super) ifindex: u32,
    /// The TOS octet or the traffic class.
    pub(super) tos: u8,
    /// The message is a run of datagrams of this many octets, the last of which may be shorter; 0 = it is one.
    pub(super) segment: usize,
}

impl Name {
    /// The kernel's form of `addr` and how many octets of it count. A raw socket wants port 0.
    pub(super) fn new(addr: SocketAddr) -> (Self, usize) {
        let mut name = Self::default();
        let out = &mut name.0;
        out[2..4].copy_from_slice(&addr.port().to_be_bytes());
        match addr {
            SocketAddr::V4(v4) => {
                out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                out[4..8].copy_from_slice(&v4.ip().octets());
                (name, V4_LEN)
            }
            SocketAddr::V6(v6) => {
                out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                out[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                out[8..24].copy_from_slice(&v6.ip().octets());
                out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (name, V6_LEN)
            }
        }
    }

    /// The address in the first `len` octets.
    pub(super) fn address(&self, len: usize) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes([self.0[0], self.0[1]]));
        let port = u16::from_be_bytes([self.0[2], self.0[3]]);
        if family == libc::AF_INET && len >= V4_LEN {
            let ip: [u8; 4] = self.0[4..8].try_into().ok()?;
            Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(ip), port)))
        } else if family == libc::AF_INET6 && len >= V6_LEN {
            let ip: [u8; 16] = self.0[8..24].try_into().ok()?;
            let flow = u32::from_ne_bytes(self.0[4..8].try_into().ok()?);
            let scope = u32::from_ne_bytes(self.0[24..28].try_into().ok()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope)))
        } else {
            None
        }
    }
}

impl Control {
    /// Ancillary data that sends from `local` (an unspecified address leaves the choice to the kernel) by the
    /// interface of index `device` (0 = by route) with the given traffic class, for a message to `remote`'s
    /// family; with its length.
    pub(super) fn new(local: SocketAddr, remote: SocketAddr, device: u32, tos: u8) -> (Self, usize) {
        let mut control = Self::default();
        let mut at = 0;
        match (local, remote) {
            (SocketAddr::V4(local), SocketAddr::V4(_)) if device != 0 || !local.ip().is_unspecified() => {
                // struct in_pktinfo: ifindex (0 = by route), ipi_spec_dst = source, ipi_addr.
                let mut info = [0; 12];
                info[..4].copy_from_slice(&device.to_ne_bytes());
                info[4..8].copy_from_slice(&local.ip().octets());
                at = control.put(at, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (SocketAddr::V6(local), SocketAddr::V6(_)) if device != 0 || !local.ip().is_unspecified() => {
                // struct in6_pktinfo: source, then the interface, which link-local addresses need.
                let device = if device != 0 { device } else { local.scope_id() };
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.ip().octets());
                info[16..].copy_from_slice(&device.to_ne_bytes());
                at = control.put(at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            // Neither source nor interface, or families that differ: then there is nothing to name.
            _ => {}
        }
        if tos != 0 {
            let class = i32::from(tos).to_ne_bytes();
            at = match remote {
                SocketAddr::V4(_) => control.put(at, libc::IPPROTO_IP, libc::IP_TOS, &class),
                SocketAddr::V6(_) => control.put(at, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
            };
        }
        (control, at)
    }

    /// Adds to the first `len` octets that the message is to be cut into datagrams of `size` octets; returns the new
    /// length.
    pub(super) fn segment(&mut self, len: usize, size: u16) -> usize {
        self.put(len, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes())
    }

    /// What the first `len` octets, as the kernel wrote them, say.
    pub(super) fn info(&self, len: usize) -> Info {
        let mut info = Info::default();
        let mut rest = &self.0[..len.min(self.0.len())];
        while let Some((size, level, kind)) = parse_header(rest) {
            if size < CMSG_HEADER || size > rest.len() {
                break;
            }
            let body = &rest[CMSG_HEADER..size];
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if body.len() >= 12 => {
                    info.ifindex = u32::from_ne_bytes([body[0], body[1], body[2], body[3]]);
                    info.local = Some(IpAddr::from([body[8], body[9], body[10], body[11]]));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if body.len() >= 20 => {
                    let mut ip = [0; 16];
                    ip.copy_from_slice(&body[..16]);
                    info.local = Some(IpAddr::from(ip));
                    info.ifindex = u32::from_ne_bytes([body[16], body[17], body[18], body[19]]);
                }
                // One octet from IPv4, an int from IPv6.
                (libc::IPPROTO_IP, libc::IP_TOS) if !body.is_empty() => info.tos = body[0],
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if body.len() >= 4 => {
                    info.tos = i32::from_ne_bytes([body[0], body[1], body[2], body[3]]) as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) if body.len() >= 4 => {
                    let size = i32::from_ne_bytes([body[0], body[1], body[2], body[3]]);
                    info.segment = usize::try_from(size).unwrap_or(0);
                }
                _ => {}
            }
            rest = rest.get(align(size)..).unwrap_or(&[]);
        }
        info
    }

    fn put(&mut self, at: usize, level: i32, kind: i32, body: &[u8]) -> usize {
        let out = &mut self.0[at..];
        let word = size_of::<usize>();
        out[..word].copy_from_slice(&(CMSG_HEADER + body.len()).to_ne_bytes());
        out[word..word + 4].copy_from_slice(&level.to_ne_bytes());
        out[word + 4..word + 8].copy_from_slice(&kind.to_ne_bytes());
        out[CMSG_HEADER..][..body.len()].copy_from_slice(body);
        at + align(CMSG_HEADER + body.len())
    }
}

fn parse_header(bytes: &[u8]) -> Option<(usize, i32, i32)> {
    let word = size_of::<usize>();
    let size = usize::from_ne_bytes(bytes.get(..word)?.try_into().ok()?);
    let level = i32::from_ne_bytes(bytes.get(word..word + 4)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(bytes.get(word + 4..word + 8)?.try_into().ok()?);
    Some((size, level, kind))
}

const fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["192.0.2.1:4500", "[2001:db8::1]:4500"] {
            let addr: SocketAddr = text.parse().unwrap();
            let (name, len) = Name::new(addr);
            assert_eq!(name.address(len), Some(addr));
            assert_eq!(name.address(len - 1), None);
        }
    }

    #[test]
    fn hostile_lengths_in_ancillary_data_end_the_walk() {
        let mut control = Control::default();
        for size in [0usize, 1, 15, 129, usize::MAX] {
            control.0[..size_of::<usize>()].copy_from_slice(&size.to_ne_bytes());
            assert_eq!(control.info(128).local, None);
        }
    }

    #[test]
    fn a_traffic_class_is_read_back_beside_packet_information() {
        let local = "[2001:db8::1]:4500".parse().unwrap();
        let (control, len) = Control::new(local, local, 0, 0xb9);
        let info = control.info(len);
        assert_eq!((info.local, info.ifindex, info.tos), (Some(local.ip()), 0, 0xb9));
    }

    #[test]
    fn a_run_names_the_size_of_its_datagrams() {
        let local = "192.0.2.1:4500".parse().unwrap();
        let (mut control, len) = Control::new(local, local, 0, 0xb9);
        let with = control.segment(len, 1408);
        assert_eq!(with - len, align(CMSG_HEADER + 2));
        assert_eq!(
            (control.info(with).tos, control.info(with).segment),
            (0xb9, 0),
            "no word of what was received"
        );
        let (mut control, len) = (Control::default(), 0);
        let len = control.put(len, libc::SOL_UDP, libc::UDP_GRO, &1408i32.to_ne_bytes());
        assert_eq!(control.info(len).segment, 1408);
        control.put(0, libc::SOL_UDP, libc::UDP_GRO, &(-1i32).to_ne_bytes());
        assert_eq!(control.info(len).segment, 0);
    }

    #[test]
    fn an_interface_is_named_with_a_source_or_alone() {
        for text in ["192.0.2.1:4500", "0.0.0.0:4500", "[2001:db8::1]:4500", "[::]:4500", "[fe80::1%3]:4500"]
        {
            let local: SocketAddr = text.parse().unwrap();
            let (control, len) = Control::new(local, local, 7, 0);
            assert_eq!(control.info(len).ifindex, 7, "{text}");
        }
        let link_local: SocketAddr = "[fe80::1%3]:4500".parse().unwrap();
        let (control, len) = Control::new(link_local, link_local, 0, 0);
        assert_eq!(control.info(len).ifindex, 3, "its scope names the interface of a link-local address");
        let nothing: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert_eq!(Control::new(nothing, nothing, 0, 0).1, 0);
    }
}
