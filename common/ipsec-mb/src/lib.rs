//! AES-GCM of Intel's ipsec-mb, which is made for packets, as safe functions. With the feature `system` only; the library
//! has to be installed then.
//!
//! All `unsafe` of it is in this file, and all C in `shim.c`. Every pointer that C sees comes from a live reference of the
//! right length for the whole call.

#![cfg(feature = "system")]
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Octets of a nonce.
const NONCE: usize = 12;
/// Octets of a tag.
const TAG: usize = 16;

// SAFETY: these are the functions of shim.c, with the same parameters.
unsafe extern "C" {
    safe fn mobikex_imb_key_size() -> usize;
    safe fn mobikex_imb_key_align() -> usize;
    safe fn mobikex_imb_manager() -> *mut c_void;
    fn mobikex_imb_key(manager: *const c_void, long_key: c_int, key: *const u8, made: *mut c_void);
    fn mobikex_imb_seal(
        manager: *const c_void,
        long_key: c_int,
        made: *const c_void,
        text: *mut u8,
        len: u64,
        nonce: *const u8,
        aad: *const u8,
        aad_len: u64,
        tag: *mut u8,
    );
    fn mobikex_imb_open(
        manager: *const c_void,
        long_key: c_int,
        made: *const c_void,
        text: *mut u8,
        len: u64,
        nonce: *const u8,
        aad: *const u8,
        aad_len: u64,
        tag: *mut u8,
    );
}

/// The library's table of functions for this processor. It lives as long as the process.
struct Manager(NonNull<c_void>);

// SAFETY: after it is made, it is only read: the functions that are called through it get all that they change as
// arguments of their own.
unsafe impl Send for Manager {}
// SAFETY: as above.
unsafe impl Sync for Manager {}

/// `None` where the processor has no AES instructions, or the library fails its own test.
fn manager() -> Option<&'static Manager> {
    static MANAGER: OnceLock<Option<Manager>> = OnceLock::new();
    let make = || NonNull::new(mobikex_imb_manager()).map(Manager);
    MANAGER.get_or_init(make).as_ref()
}

/// As the library wants its keys aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

/// A key of AES-128-GCM or AES-256-GCM with nonces of 12 octets and tags of 16. Wiped when dropped.
pub struct GcmKey {
    manager: &'static Manager,
    long_key: c_int,
    made: Box<[Line]>,
}

impl GcmKey {
    /// Makes a key of 16 or 32 octets ready. `None` for other lengths, and where the library cannot be used.
    pub fn new(key: &[u8]) -> Option<Self> {
        let long_key = match key.len() {
            16 => 0,
            32 => 1,
            _ => return None,
        };
        let manager = manager()?;
        if mobikex_imb_key_align() > align_of::<Line>() {
            return None;
        }
        let mut made =
            vec![Line([0; 64]); mobikex_imb_key_size().div_ceil(size_of::<Line>())].into_boxed_slice();
        // SAFETY: `key` has the length that `long_key` says, and `made` at least the size and the alignment that the
        // library's header asks for.
        unsafe { mobikex_imb_key(manager.0.as_ptr(), long_key, key.as_ptr(), made.as_mut_ptr().cast()) };
        Some(Self { manager, long_key, made })
    }

    /// Encrypts `text` in place and writes the tag.
    #[inline]
    pub fn seal(&self, nonce: &[u8; NONCE], aad: &[u8], text: &mut [u8], tag: &mut [u8; TAG]) {
        // SAFETY: `made` was filled by `mobikex_imb_key` for this length of key; all lengths are those of the slices, and
        // what is written is borrowed exclusively.
        unsafe {
            mobikex_imb_seal(
                self.manager.0.as_ptr(),
                self.long_key,
                self.made.as_ptr().cast(),
                text.as_mut_ptr(),
                text.len() as u64,
                nonce.as_ptr(),
                aad.as_ptr(),
                aad.len() as u64,
                tag.as_mut_ptr(),
            );
        }
    }

    /// Decrypts `text` in place; whether the tag is right. If not, the text is worthless.
    #[inline]
    #[must_use]
    pub fn open(&self, nonce: &[u8; NONCE], aad: &[u8], text: &mut [u8], tag: &[u8; TAG]) -> bool {
        let mut right = [0; TAG];
        // SAFETY: as in `seal`.
        unsafe {
            mobikex_imb_open(
                self.manager.0.as_ptr(),
                self.long_key,
                self.made.as_ptr().cast(),
                text.as_mut_ptr(),
                text.len() as u64,
                nonce.as_ptr(),
                aad.as_ptr(),
                aad.len() as u64,
                right.as_mut_ptr(),
            );
        }
        right.ct_eq(tag).into()
    }
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.made.iter_mut().for_each(|line| line.0.zeroize());
    }
}

impl fmt::Debug for GcmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GcmKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification of GCM (McGrew and Viega), test cases 2 and 14; the rest is compared with the other providers.
    #[test]
    fn known_answers() {
        let sealed = |key: &[u8]| {
            let key = GcmKey::new(key).expect("a processor with AES");
            let (mut text, mut tag) = ([0; 16], [0; TAG]);
            key.seal(&[0; NONCE], &[], &mut text, &mut tag);
            let whole = (text, tag);
            assert!(key.open(&[0; NONCE], &[], &mut text, &tag) && text == [0; 16]);
            tag[15] ^= 1;
            assert!(!key.open(&[0; NONCE], &[], &mut text, &tag));
            whole
        };
        let (text, tag) = sealed(&[0; 16]);
        assert_eq!(u128::from_be_bytes(text), 0x0388_dace_60b6_a392_f328_c2b9_71b2_fe78);
        assert_eq!(u128::from_be_bytes(tag), 0xab6e_47d4_2cec_13bd_f53a_67b2_1257_bddf);
        let (text, tag) = sealed(&[0; 32]);
        assert_eq!(u128::from_be_bytes(text), 0xcea7_403d_4d60_6b6e_074e_c5d3_baf3_9d18);
        assert_eq!(u128::from_be_bytes(tag), 0xd0d1_c8a7_9999_6bf0_265b_98b5_d48a_b919);
    }

    #[test]
    fn keys_of_other_lengths_are_refused() {
        assert!([0, 15, 17, 24, 31, 33].iter().all(|len| GcmKey::new(&vec![0; *len]).is_none()));
    }
}
