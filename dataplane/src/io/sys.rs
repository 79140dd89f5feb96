//! All `unsafe` of the crate: thin wrappers that turn slices into the pointers that system calls want.
//!
//! Nothing here decides anything. Each wrapper takes borrowed descriptors and slices, so every pointer that the
//! kernel sees comes from a live reference of the right length for the whole call.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use libc::{c_int, c_uint, c_ulong, c_void, socklen_t};

use super::batch::BATCH;
use super::message::{Control, Name};

/// One message's addresses and ancillary data, and where its bytes lie in the batch's buffer.
#[derive(Clone, Copy, Default)]
pub(super) struct Header {
    /// The peer's socket address; when sending, `name_len` octets of it are used.
    pub(super) name: Name,
    pub(super) name_len: usize,
    /// Ancillary data, `control_len` octets of it.
    pub(super) control: Control,
    pub(super) control_len: usize,
    /// First octet of the message in the buffer.
    pub(super) offset: usize,
    /// Octets of the message; before receiving, the room for it.
    pub(super) len: usize,
    /// The message was longer than its room.
    pub(super) truncated: bool,
}

/// `recvmmsg` without blocking: fills `headers` from the front and returns how many messages came.
pub(super) fn receive_many(fd: BorrowedFd<'_>, data: &mut [u8], headers: &mut [Header]) -> io::Result<usize> {
    let count = headers.len().min(BATCH);
    let whole = data.len();
    let base = data.as_mut_ptr();
    // SAFETY: iovec and mmsghdr are plain C structures of integers and pointers; all zeroes is a valid value.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { zeroed() };
    for ((header, vector), message) in headers.iter_mut().zip(&mut vectors).zip(&mut messages).take(count) {
        let end = header.offset.checked_add(header.len);
        assert!(end.is_some_and(|end| end <= whole), "a receive slot lies outside the buffer");
        // SAFETY: the assertion above keeps the offset inside the allocation behind `base`.
        vector.iov_base = unsafe { base.add(header.offset) }.cast();
        vector.iov_len = header.len;
        message.msg_hdr.msg_name = ptr::from_mut(&mut header.name).cast();
        message.msg_hdr.msg_namelen = size_of::<Name>() as socklen_t;
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = ptr::from_mut(&mut header.control).cast();
        message.msg_hdr.msg_controllen = size_of::<Control>();
    }
    // SAFETY: each of the `count` entries points at a distinct header (name, control) and at a range inside
    // `data` that was checked above; all are exclusively borrowed until the call returns. No timeout is given.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (header, message) in headers.iter_mut().zip(&messages).take(received) {
        header.name_len = message.msg_hdr.msg_namelen as usize;
        header.control_len = message.msg_hdr.msg_controllen;
        header.len = message.msg_len as usize;
        header.truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
    }
    Ok(received)
}

/// `sendmmsg` without blocking: returns how many messages from the front were taken. An error is that of the
/// first message.
pub(super) fn send_many(fd: BorrowedFd<'_>, data: &[u8], headers: &[Header]) -> io::Result<usize> {
    let count = headers.len().min(BATCH);
    // SAFETY: as in `receive_many`, all zeroes is a valid value of both structures.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { zeroed() };
    for ((header, vector), message) in headers.iter().zip(&mut vectors).zip(&mut messages).take(count) {
        let bytes = &data[header.offset..][..header.len];
        // The kernel only reads through these pointers; the C structures have no const form.
        vector.iov_base = bytes.as_ptr().cast_mut().cast();
        vector.iov_len = bytes.len();
        message.msg_hdr.msg_name = ptr::from_ref(&header.name).cast_mut().cast();
        message.msg_hdr.msg_namelen = header.name_len.min(size_of::<Name>()) as socklen_t;
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        if header.control_len > 0 {
            message.msg_hdr.msg_control = ptr::from_ref(&header.control).cast_mut().cast();
            message.msg_hdr.msg_controllen = header.control_len.min(size_of::<Control>());
        }
    }
    // SAFETY: each of the `count` entries points into `headers` and `data`, which are borrowed for the call;
    // lengths were cut to the referents. sendmmsg writes only `msg_len` of our own array.
    let sent = unsafe {
        libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// `setsockopt` with an integer.
pub(super) fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the option value is a live c_int and its length is passed with it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    check(result)
}

/// `getsockopt` of an integer.
pub(super) fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel writes at most `len` octets, which is the size of `value`.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, ptr::from_mut(&mut value).cast::<c_void>(), &mut len)
    };
    check(result).map(|()| value)
}

/// Attaches a classic BPF program: `SO_ATTACH_FILTER` or `SO_ATTACH_REUSEPORT_CBPF`.
pub(super) fn attach_program(
    fd: BorrowedFd<'_>,
    option: c_int,
    code: &[libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(code.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: code.as_ptr().cast_mut() };
    // SAFETY: `program` describes exactly `code`, which lives for the call; the kernel copies and verifies it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            ptr::from_ref(&program).cast(),
            size_of_val(&program) as socklen_t,
        )
    };
    check(result)
}

/// `TUNSETIFF`: makes an open `/dev/net/tun` a queue of the device `name` and returns the name that it got.
pub(super) fn attach_tun(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags as i16;
    ioctl(fd, libc::TUNSETIFF as c_ulong, &mut request)?;
    Ok(request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect())
}

/// `TUNSETOFFLOAD`: what the device may leave to us when it hands over packets; `TUN_F_*`.
pub(super) fn set_tun_offload(fd: BorrowedFd<'_>, features: c_uint) -> io::Result<()> {
    // SAFETY: the request takes its argument by value; no memory is involved.
    check(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as c_ulong as _, c_ulong::from(features))
    })
}

/// Sets the MTU of an interface. `fd` is any socket.
pub(super) fn set_mtu(fd: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    ioctl(fd, libc::SIOCSIFMTU as c_ulong, &mut request)
}

/// Sets the transmit queue length of an interface. `fd` is any socket.
pub(super) fn set_queue_length(fd: BorrowedFd<'_>, name: &str, packets: u16) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_metric = c_int::from(packets);
    ioctl(fd, libc::SIOCSIFTXQLEN as c_ulong, &mut request)
}

/// The index of an interface.
pub(super) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that lives for the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes a descriptor non-blocking.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: both calls take integers only; a closed descriptor makes them fail with EBADF.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))
    }
}

/// Kills a process and all others of the group that it leads. It must not have been waited for: its number is its own until
/// then.
pub fn kill_group(leader: u32) -> io::Result<()> {
    // 0 would be the caller's own group.
    let leader = libc::pid_t::try_from(leader).ok().filter(|leader| *leader > 1);
    let leader = leader.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes integers only.
    check(unsafe { libc::killpg(leader, libc::SIGKILL) })
}

/// Moves the calling thread into a network namespace of its own.
#[cfg(test)]
pub(crate) fn enter_new_network() -> io::Result<()> {
    // SAFETY: the call takes no pointers and changes only the calling thread's view of the network.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is a plain C structure of arrays and a union of integers; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The last octet stays zero: the kernel reads the name as a string.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface names have 1 to 15 characters"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl(fd: BorrowedFd<'_>, request: c_ulong, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request used in this file takes a pointer to one ifreq, read and written in place.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, ptr::from_mut(argument)) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
