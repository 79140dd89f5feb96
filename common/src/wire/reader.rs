//! A cursor over octets that says what it was reading when they ran out.

use crate::wire::WireError;

pub(in crate::wire) struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(in crate::wire) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(in crate::wire) fn take(&mut self, need: usize) -> Result<&'a [u8], WireError> {
        let have = self.bytes.len();
        let (head, tail) =
            self.bytes.split_at_checked(need).ok_or(WireError::Truncated { what: self.what, need, have })?;
        self.bytes = tail;
        Ok(head)
    }

    pub(in crate::wire) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(in crate::wire) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[b]: [u8; 1]| b)
    }

    pub(in crate::wire) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(in crate::wire) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(in crate::wire) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(in crate::wire) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(in crate::wire) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The structure of `length` octets in all, of which `read` are already taken.
    pub(in crate::wire) fn body(&mut self, length: u16, read: usize) -> Result<&'a [u8], WireError> {
        let length = usize::from(length);
        let body = length.checked_sub(read).ok_or(WireError::BadLength { what: self.what, length })?;
        self.take(body)
    }
}
